"""Reference profiles: measured records that ship with qMeter, one folder each (data only)."""
