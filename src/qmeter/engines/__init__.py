"""Engines: one seam of three methods, one file and one row an engine."""
