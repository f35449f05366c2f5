"""Public fakes and instruments for tests and calibration: a ground-truth server, a misbehaving one, a fake engine."""
