"""Quality of the served model: fidelity to the reference, graded tasks, paired statistics."""
