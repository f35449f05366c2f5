"""Study files: validated once, frozen, expanded into cells that are hashed over everything that affects the result."""

from qmeter.spec.load import load_study, load_study_text
from qmeter.spec.study import Cell, Deployment, Study, deployments, expand

__all__ = ["Cell", "Deployment", "Study", "deployments", "expand", "load_study", "load_study_text"]
