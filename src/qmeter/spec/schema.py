"""What the study's types ask for at a place in the data: for messages that say what would be valid."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qmeter.spec.document import YamlPath
from qmeter.spec.units import Written

_TYPES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    tuple: "a list (- one item a line)",
}


def annotation_at(root: type[BaseModel], path: YamlPath, data: Any) -> Any:
    """The type that the schema asks for at ``path``, or ``None`` where the schema has no such place."""
    annotation: Any = root
    for step in path:
        annotation = _step(annotation, step, data)
        if annotation is None:
            return None
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            data = None
    return annotation


def model_at(root: type[BaseModel], path: YamlPath, data: Any) -> type[BaseModel] | None:
    """The model at ``path`` (a union's by the data's ``kind``), or ``None``."""
    annotation = annotation_at(root, path, data)
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            data = None
    return _model(annotation, data)


def describe(annotation: Any) -> str:
    """A type in words for a person."""
    for written in (m for m in _metadata(annotation) if isinstance(m, Written)):
        return written.example
    options = [leaf for leaf in leaves(annotation) if leaf is not type(None)]
    if any(get_origin(option) is Literal for option in options):
        return " or ".join(repr(a) for option in options for a in get_args(option))
    words = [_TYPES.get(get_origin(option) or option, "a mapping of keys") for option in options]
    return " or ".join(dict.fromkeys(words))


def written(annotation: Any) -> str | None:
    """How a quantity of this type is written, in words; ``None`` where the type is no quantity with a unit."""
    return next((m.example for m in _metadata(annotation) if isinstance(m, Written)), None)


def _step(annotation: Any, step: str | int, data: Any) -> Any:
    model = _model(annotation, data)
    if model is not None:
        found = model.model_fields.get(str(step))
        return annotated(found) if found else None
    for leaf in leaves(annotation):
        arguments = get_args(leaf)
        if get_origin(leaf) is tuple and isinstance(step, int):
            return arguments[0]
        if get_origin(leaf) is dict:
            return arguments[1]
    return None


def annotated(info: FieldInfo) -> Any:
    """A field's type with its validators, as it was declared."""
    return typing.Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _model(annotation: Any, data: Any) -> type[BaseModel] | None:
    models: list[type[BaseModel]] = models_in(annotation)
    if len(models) <= 1:
        return models[0] if models else None
    kind = data.get("kind") if isinstance(data, dict) else None
    return next((m for m in models if m.model_fields["kind"].default == kind), None)


def leaves(annotation: Any) -> list[Any]:
    """The alternatives of a type, unions and annotations taken apart."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return leaves(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [leaf for part in get_args(annotation) for leaf in leaves(part)]
    return [annotation]


def _metadata(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        inner, *metadata = get_args(annotation)
        return [*_metadata(inner), *metadata]
    if origin in (typing.Union, types.UnionType):
        return [m for part in get_args(annotation) for m in _metadata(part)]
    return []


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models among a type's alternatives."""
    return [m for m in leaves(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
