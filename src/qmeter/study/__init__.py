"""Studies: the runner, one deployment at a time, every cell a record; checks before anything starts; resume."""
