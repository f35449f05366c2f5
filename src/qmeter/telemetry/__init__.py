"""Telemetry: samplers behind one seam, one recorder, one clock."""
