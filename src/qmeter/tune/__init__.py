"""Multi-objective tuning: a search that proposes studies, and learns from their records. It never runs one."""
