"""What is wrong with a study, in words: pydantic's errors as faults with the file's path, value and what is valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from qmeter.registry import nearest
from qmeter.spec.document import Fault, YamlPath
from qmeter.spec.schema import annotated, annotation_at, describe, leaves, model_at, models_in

Owner = type[BaseModel] | None
"""The model that a fault's key stands in, where there is one."""


def explain(error: ValidationError, root: type[BaseModel], data: Any) -> list[Fault]:
    """One fault for each path that ``error`` names; branches of a union count as one. Lines are not known here."""
    by_path: dict[YamlPath, list[dict[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] != "too_short" or not detail["input"]:  # else: items that failed are not counted by pydantic
            by_path.setdefault(_in_data(detail["loc"], detail["type"], data), []).append(dict(detail))
    return [Fault(path, _message(details, path, root, data)) for path, details in by_path.items()]


def _message(details: list[dict[str, Any]], path: YamlPath, root: type[BaseModel], data: Any) -> str:
    if len(details) > 1:  # each branch of a union without a tag has its own say
        return f"expected {describe(annotation_at(root, path, data))}, found {brief(details[0]['input'])}"
    make = _MESSAGES.get(details[0]["type"], _as_pydantic_says)
    return make(details[0], path, model_at(root, path[:-1], data))


def stray_booleans(root: type[BaseModel], data: Any) -> list[Fault]:
    """Faults where the file has true/false (or yes, on, …) for a number, which pydantic would take as 1 or 0."""
    found: list[Fault] = []

    def visit(value: Any, path: YamlPath) -> None:
        if isinstance(value, bool):
            annotation = annotation_at(root, path, data)
            if annotation is not None and bool not in leaves(annotation):
                found.append(Fault(path, f"expected {describe(annotation)}, found {brief(value)}"))
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in pairs:
            visit(child, (*path, key))

    visit(data, ())
    return found


def brief(value: Any) -> str:
    """A value as it stands in YAML, cut to a readable length."""
    words = {True: "true", False: "false", None: "nothing"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    kinds: dict[type[object], str] = {dict: "a mapping", list: "a list"}
    kind = kinds.get(type(value))
    text = f"{kind} {text}" if kind else text
    return text if len(text) <= 80 else f"{text[:77]}…"


def unknown(what: str, name: str, known: list[str]) -> str:
    """``unknown key 'rat'; did you mean 'rate'? valid: …``."""
    close = nearest(name, known)
    did = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    listed = ", ".join(known) if len(known) <= 40 else f"{', '.join(known[:40])}, …"
    return f"unknown {what} {name!r}{did or ';'} valid: {listed}"


def _in_data(loc: tuple[str | int, ...], kind: str, data: Any) -> YamlPath:
    """Pydantic's location without the union tags that it puts between the file's own keys."""
    path: list[str | int] = []
    for at, step in enumerate(loc):
        last = at == len(loc) - 1
        if step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int):
            path.append(step)
            data = data[step] if isinstance(data, dict) or (isinstance(step, int) and step < len(data)) else None
        elif last and kind == "missing":
            path.append(step)
    return tuple(path)


def _missing(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    info = owner.model_fields.get(str(path[-1])) if owner else None
    return f"missing: expected {describe(annotated(info))}" if info else "missing"


def _extra(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    fields = owner.model_fields if owner else {}
    text = unknown("key", str(path[-1]), list(fields))
    for name, info in fields.items():
        if any(str(path[-1]) in m.model_fields for m in models_in(info.annotation)):
            return f"{text} ({path[-1]!r} belongs under {name!r})"
    return text


def _tag_invalid(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    known = [tag.strip().strip("'") for tag in detail["ctx"]["expected_tags"].split(",")]
    return unknown("kind", str(detail["ctx"]["tag"]), known)


def _tag_missing(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    return f"expected a mapping with a kind (one of {', '.join(_kinds(path, owner))}), found {brief(detail['input'])}"


def _not_a_model(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    return _tag_missing(detail, path, owner) if _kinds(path, owner) else _wrong_type(detail, path, owner)


def _kinds(path: YamlPath, owner: Owner) -> list[str]:
    info = owner.model_fields.get(str(path[-1])) if owner and path else None
    models = models_in(info.annotation) if info else []
    return [str(m.model_fields["kind"].default) for m in models if "kind" in m.model_fields]


def _wrong_type(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    words = {"string": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
             "tuple": "a list (- one item a line)", "dict": "a mapping", "model": "a mapping of keys",
             "finite": "a finite number"}  # fmt: skip
    expected = words.get(detail["type"].split("_")[0], "another type")
    quote = "; put it in quotes" if expected == "text" and isinstance(detail["input"], bool | int | float) else ""
    return f"expected {expected}, found {brief(detail['input'])}{quote}"


def _bound(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    words = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge"), "less_than": ("below", "lt"),
             "less_than_equal": ("at most", "le")}  # fmt: skip
    word, key = words[detail["type"]]
    percent = path[-1] == "percentile" and isinstance(detail["input"], int | float) and 1 < detail["input"] <= 100
    hint = f"; write {detail['input'] / 100:g} for p{detail['input']:g}" if percent else ""
    return f"must be {word} {detail['ctx'][key]:g}, found {brief(detail['input'])}{hint}"


def _value(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    return str(detail["ctx"]["error"])


def _literal(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    known = [part.strip().strip("'") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
    close = nearest(str(detail["input"]), known)
    did = f"; did you mean {close[0]!r}?" if close else ""
    return f"expected {detail['ctx']['expected']}, found {brief(detail['input'])}{did}"


def _pattern(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    meaning = {
        "sha256": "64 hexadecimal digits",
        "api_key_env": "the name of an environment variable (never the key itself)",
        "name": "a name of letters, digits, '.', '_' and '-'",
    }
    found = "what is written is not one" if path[-1] == "api_key_env" else f"found {brief(detail['input'])}"
    return f"expected {meaning.get(str(path[-1]), 'text like ' + detail['ctx']['pattern'])}, {found}"


def _too_short(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    return "the list is empty: at least one item is needed"


def _as_pydantic_says(detail: dict[str, Any], path: YamlPath, owner: Owner) -> str:
    return f"{detail['msg']}, found {brief(detail['input'])}"


_MESSAGES: dict[str, Callable[[dict[str, Any], YamlPath, Owner], str]] = {
    "missing": _missing,
    "extra_forbidden": _extra,
    "union_tag_invalid": _tag_invalid,
    "union_tag_not_found": _tag_missing,
    "string_pattern_mismatch": _pattern,
    "literal_error": _literal,
    "value_error": _value,
    "too_short": _too_short,
    **dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), _bound),
    **dict.fromkeys(
        ("string_type", "int_type", "int_parsing", "int_from_float", "float_type", "float_parsing", "bool_type",
         "bool_parsing", "tuple_type", "dict_type", "finite_number"),
        _wrong_type,
    ),
    **dict.fromkeys(("model_type", "model_attributes_type"), _not_a_model),
}  # fmt: skip
