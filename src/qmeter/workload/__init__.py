"""Workloads: seeded, pure; the same seed gives the same schedule to the byte."""
