"""A study as YAML that :func:`qmeter.spec.load_study` reads back to the same study: quantities with their units."""

from __future__ import annotations

from enum import Enum
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qmeter.spec.schema import annotated, written
from qmeter.spec.study import Study

UNITS = {"duration": "s", "rate": "/s", "size": "B"}
"""A word of how a quantity is written (:class:`qmeter.spec.units.Written`) → the unit that its SI value is given."""


def study_yaml(study: Study) -> str:
    """The study's YAML, without what is as by default."""
    return str(yaml.safe_dump(_plain(study), sort_keys=False, allow_unicode=True, width=100))


def _plain(thing: Any) -> Any:
    if isinstance(thing, BaseModel):
        fields = type(thing).model_fields
        shown = {n: getattr(thing, n) for n, info in fields.items() if _differs(n, info, getattr(thing, n))}
        return {name: _quantity(fields[name], value) for name, value in shown.items()}
    if isinstance(thing, tuple | list):
        return [_plain(item) for item in thing]
    if isinstance(thing, dict):
        return {key: _plain(item) for key, item in thing.items()}
    return thing.value if isinstance(thing, Enum) else thing


def _differs(name: str, info: FieldInfo, value: Any) -> bool:
    """Whether a field must be written: it has no default, is another value, or says which kind this is."""
    return name == "kind" or info.is_required() or value != info.get_default(call_default_factory=True)


def _quantity(info: FieldInfo, value: Any) -> Any:
    example = written(annotated(info))
    if example is None or not isinstance(value, int | float):
        return _plain(value)
    unit = next(unit for word, unit in UNITS.items() if word in example)
    return f"{value:.12g}{unit}"
