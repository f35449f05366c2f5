"""A study written as YAML reads back as the same study."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmeter.spec import load_study, load_study_text
from qmeter.spec.write import study_yaml

ROOT = Path(__file__).parents[2]
STUDIES = sorted([*(ROOT / "studies").glob("*.yaml"), ROOT / "src" / "qmeter" / "study" / "quickstart.yaml"])


@pytest.mark.parametrize("path", [p for p in STUDIES if not p.name.endswith("_tune.yaml")], ids=lambda p: p.stem)
def test_what_is_written_reads_back_the_same(path):
    study = load_study(path)
    assert load_study_text(study_yaml(study)) == study
