"""The search space: axes with listed values, the points they make, and what cannot be from the start."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from qmeter import catalog
from qmeter.catalog import Method, ModelShape
from qmeter.errors import UnknownName

F64 = NDArray[np.float64]
Value = str | int | float | bool

METHOD, KV, POWER = "method", "kv_type", "power_cap_w"
PARALLEL = ("tp", "pp", "dp")
OWN_KV = "own"
"""The value of ``kv_type`` that leaves a method's own KV type as it is."""


@dataclass(frozen=True)
class Point:
    """One configuration: axis → value, in the space's order of axes."""

    values: tuple[tuple[str, Value], ...]

    def get(self, axis: str) -> Value | None:
        """The value on an axis, ``None`` where the space has no such axis."""
        return next((v for name, v in self.values if name == axis), None)

    @cached_property
    def id(self) -> str:
        """Hash of the values."""
        return hashlib.sha256(json.dumps(dict(self.values), sort_keys=True).encode()).hexdigest()[:10]

    @property
    def label(self) -> str:
        """For people: the method, then each knob."""
        parts = [str(v) for name, v in self.values if name == METHOD]
        parts += [f"{SHORT.get(n, n)}={_text(v)}" for n, v in self.values if n != METHOD]
        return " ".join(parts)

    def as_dict(self) -> dict[str, Value]:
        """Plain data."""
        return dict(self.values)


SHORT = {
    "max_sequences": "seqs", "token_budget": "budget", "chunked_prefill": "chunked", "prefix_cache": "prefix",
    "async_scheduling": "async", "gpu_memory_fraction": "mem", "kv_cache_gib": "kv", KV: "kv", POWER: "cap",
}  # fmt: skip
"""Axis → how a label writes it."""


def _text(value: Value) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Space:
    """All combinations of the axes' values but those that cannot be.

    Attributes:
        axes: name → values, as listed.
        shape, engine: of the model and engine that are tuned: they say which combinations cannot be.
        points: every possible combination.
        excluded: why others were left out → how many.
    """

    axes: Mapping[str, tuple[Value, ...]]
    shape: ModelShape
    engine: str
    points: tuple[Point, ...] = field(init=False)
    excluded: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        kept, why = [], Counter[str]()
        for values in product(*self.axes.values()):
            point = Point(tuple(zip(self.axes, values, strict=True)))
            if (reason := self._impossible(point)) is None:
                kept.append(point)
            else:
                why[reason] += 1
        object.__setattr__(self, "points", tuple(kept))
        object.__setattr__(self, "excluded", dict(why))

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def row(self) -> dict[Point, int]:
        """Point → its place in ``points``."""
        return {point: i for i, point in enumerate(self.points)}

    def method_of(self, point: Point) -> str:
        """The catalog method of a point: the ``method`` axis, with its KV type where there is a ``kv_type`` axis."""
        return with_kv(str(point.get(METHOD)), point.get(KV), self.engine)

    def _impossible(self, point: Point) -> str | None:
        kv = point.get(KV)
        try:
            self.method_of(point)
        except UnknownName:
            return f"the catalog has no method {point.get(METHOD)} with {kv} KV cache on {self.engine}"
        tp = int(point.get("tp") or 1)
        if self.shape.heads % tp:
            return f"tp {tp} does not divide the {self.shape.heads} attention heads of {self.shape.name}"
        budget, sequences = point.get("token_budget"), point.get("max_sequences")
        if self.engine == "vllm" and budget and sequences and int(budget) < int(sequences):
            return "vLLM refuses a token_budget below max_sequences"
        return None


def with_kv(method: str, kv: Value | None, engine: str) -> str:
    """The catalog method that is ``method`` with the KV type ``kv``.

    Raises:
        UnknownName: there is none that the engine runs.
    """
    if kv is None or kv == OWN_KV:
        return method
    base = catalog.method(method)
    if base.kv_type == kv:
        return method
    found = [m for m in catalog.methods() if m.kv_type == kv and engine in m.engines and _same_weights(base, m, engine)]
    if len(found) != 1:
        raise UnknownName("method", f"{method} with {kv} KV cache", [m.name for m in found])
    return found[0].name


def _same_weights(a: Method, b: Method, engine: str) -> bool:
    parts = [(m.weight_type, m.activation_type, m.flags(engine).layout) for m in (a, b) if engine in m.engines]
    return len(parts) == 2 and parts[0] == parts[1]


def features(space: Space) -> tuple[F64, NDArray[np.int64]]:
    """What a surrogate sees of each point: numbers in 0..1, shape (n, d), and categories as codes, shape (n, c).

    Ordered axes go by the logarithm of their value. A method is a category, and what the catalog knows of it: bytes of
    its weights, and bits of activations and of KV, so that what one method shows says something of its neighbours.
    """
    numbers, kinds = [], []
    for name, values in space.axes.items():
        column = [p.get(name) for p in space.points]
        if name == METHOD:
            kinds.append(_codes(column))
            numbers += _method_columns(space)
        elif name == KV or any(isinstance(v, str) for v in values):
            if name != KV:
                kinds.append(_codes(column))
        elif len(set(values)) > 1:
            numbers.append(_scaled(np.array([float(v) for v in column if v is not None])))
    rows = len(space.points)
    made = np.column_stack([c for c in numbers if np.ptp(c) > 0] or [np.zeros(rows)])
    return made, np.column_stack(kinds) if kinds else np.zeros((rows, 0), dtype=np.int64)


def _method_columns(space: Space) -> list[F64]:
    rows = {m: catalog.method(m) for m in {space.method_of(p) for p in space.points}}
    names = [space.method_of(p) for p in space.points]
    weights = {m: float(row.expected_weight_bytes(space.shape, space.engine)) for m, row in rows.items()}
    kv = {m: float(row.kv_bytes_per_token(space.shape, space.engine)) for m, row in rows.items()}
    acts = {m: BITS.get(row.activation_type, 16.0) for m, row in rows.items()}
    return [_scaled(np.array([table[m] for m in names])) for table in (weights, kv, acts)]


BITS = {"int8": 8.0, "fp8": 8.0, "int4": 4.0}


def _scaled(values: F64) -> F64:
    """Onto 0..1, by the logarithm where all are positive."""
    x = np.log(values) if values.min() > 0 else values
    span = float(np.ptp(x))
    return np.asarray((x - x.min()) / span if span else np.zeros_like(x), dtype=np.float64)


def _codes(column: Sequence[object]) -> NDArray[np.int64]:
    order = {v: i for i, v in enumerate(dict.fromkeys(column))}
    return np.array([order[v] for v in column], dtype=np.int64)
