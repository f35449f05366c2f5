"""Scheduling a day of load on a fleet: which deployment runs when, who serves what, at least energy under promises."""
