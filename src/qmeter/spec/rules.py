"""What a valid-looking study must still keep, by itself: unique names, references inside it, an endpoint's URL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from qmeter.spec.document import Fault, YamlPath
from qmeter.spec.explain import unknown
from qmeter.spec.study import Study

AXES = ("model", "engine", "method", "tp", "pp", "dp", "placement", "workload", "repeat")


def broken_rules(study: Study) -> list[Fault]:
    """Every rule that the study breaks, with paths into the expanded study."""
    return [
        *_twice("models", "name", [m.name for m in study.models]),
        *_twice("workloads", "name", [w.name for w in study.workloads]),
        *_twice("methods", None, study.methods),
        *_twice("parallelism", None, [f"tp {p.tp}, pp {p.pp}, dp {p.dp}" for p in study.parallelism]),
        *_twice("placement", None, [p.value for p in study.placement]),
        *_twice("engines", None, [e.model_dump_json() for e in study.engines], "this engine"),
        *_references(study),
        *_exclusions(study),
        *_endpoints(study),
    ]


def _twice(list_name: str, key: str | None, names: Iterable[str], what: str | None = None) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in first:
            tail: YamlPath = (key,) if key else ()
            said = what or repr(name)
            yield Fault((list_name, i, *tail), f"{said} stands twice: {list_name}[{first[name]}] is the same")
        first.setdefault(name, i)


def _references(study: Study) -> Iterator[Fault]:
    reference = study.quality.reference
    if reference is not None and reference not in study.methods:
        yield Fault(("quality", "reference"), f"must be a method of this study: {_not_among(reference, study.methods)}")
    for i, model in enumerate(study.models):
        for method in model.checkpoints:
            if method not in study.methods:
                text = f"a checkpoint for a method that is not studied: {_not_among(method, study.methods)}"
                yield Fault(("models", i, "checkpoints", method), text)


def _exclusions(study: Study) -> Iterator[Fault]:
    known = {
        "model": [m.name for m in study.models],
        "engine": [e.name for e in study.engines],
        "method": list(study.methods),
        "tp": _degrees(study, "tp"),
        "pp": _degrees(study, "pp"),
        "dp": _degrees(study, "dp"),
        "placement": [p.value for p in study.placement],
        "workload": [w.name for w in study.workloads],
        "repeat": [str(i) for i in range(study.repeats)],
    }
    for i, rule in enumerate(study.exclude):
        if not rule:
            yield Fault(("exclude", i), f"an empty rule would exclude everything; name one of {', '.join(AXES)}")
        for axis, name in rule.items():
            if axis not in known:
                yield Fault(("exclude", i, axis), unknown("axis", axis, list(AXES)))
            elif name not in known[axis]:
                yield Fault(("exclude", i, axis), f"excludes nothing: {_not_among(name, known[axis])}")


def _degrees(study: Study, axis: str) -> list[str]:
    return list(dict.fromkeys(p.as_axes()[axis] for p in study.parallelism))


def _endpoints(study: Study) -> Iterator[Fault]:
    for i, engine in enumerate(study.engines):
        if engine.url is None:
            continue
        try:
            url = urlsplit(engine.url)
            problem = (
                None if url.scheme in ("http", "https") and url.hostname else "needs http:// or https:// and a host"
            )
            url.port  # noqa: B018  (raises on a bad port)
        except ValueError as error:
            problem, url = str(error), urlsplit("")
        if problem:
            yield Fault(("engines", i, "url"), f"{problem}, as in 'http://127.0.0.1:8000'; found {engine.url!r}")
        elif url.username or url.password or url.query:
            text = "a URL must not carry credentials or a query: put the key in a variable and name it in api_key_env"
            yield Fault(("engines", i, "url"), text)


def _not_among(name: str, known: Iterable[str]) -> str:
    return unknown("name", name, list(known))
