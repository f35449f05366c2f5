"""Capacity planning: which deployments, how many replicas, and who serves what, at least cost, energy or carbon."""
