"""What the pipeline says of itself while it loads and first runs: properties, primitives, constants.

Three independent sources, none of them the request:

- the compiled model's properties, which GenAI prints (``OPENVINO_LOG_LEVEL``) after compiling;
- the matrix primitives that oneDNN reports creating (``ONEDNN_VERBOSE=profile_create``), with the number types of
  source and weights and the group size of dynamic activation quantization, as the first generation builds them;
- the constants of the model that GenAI built from the GGUF (it saves that model on request).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MODEL_HEADER = "Model: LLM with Paged Attention"
VERBOSE_ENV = {"OPENVINO_LOG_LEVEL": "5", "ONEDNN_VERBOSE": "profile_create"}
"""Environment that makes GenAI and oneDNN report; execution itself is not traced, so steps cost the same."""

TYPES = {"u8": "int8", "s8": "int8", "i8": "int8", "u4": "int4", "s4": "int4", "i4": "int4"}
"""Engine word → catalog word, where they differ."""


class Captured:
    """Text that the process wrote to its standard output, from native code too."""

    text: str = ""


@contextmanager
def captured_stdout() -> Iterator[Captured]:
    """Collect file descriptor 1 while the block runs."""
    out = Captured()
    sys.stdout.flush()
    saved = os.dup(1)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        try:
            yield out
        finally:
            sys.stdout.flush()
            ctypes.CDLL(None).fflush(None)
            os.dup2(saved, 1)
            os.close(saved)
            sink.seek(0)
            out.text = sink.read().decode("utf-8", "replace")


@dataclass(frozen=True)
class Primitive:
    """A matrix product that oneDNN built: number types and the group of dynamic activation quantization (0: none)."""

    kind: str
    implementation: str
    source: str
    weights: str
    source_group: int


@dataclass(frozen=True)
class Evidence:
    """What was found.

    Attributes:
        properties: the compiled model's properties, verbatim.
        primitives: inner products (the layers' and the head's matrix products) and how many of each were built.
        constants_bytes: element type → bytes, of the constants with 2 dimensions or more; empty: not read.
        constants_source: where the constants were read.
    """

    properties: Mapping[str, str]
    primitives: Mapping[Primitive, int] = field(default_factory=dict)
    constants_bytes: Mapping[str, int] = field(default_factory=dict)
    constants_source: str = ""

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of all weight constants together, scales and zero points included."""
        return sum(self.constants_bytes.values()) or None

    @property
    def weight_type(self) -> str | None:
        """The type most built primitives read their weights in; the constants' where none was reported."""
        votes: Counter[str] = Counter()
        for primitive, count in self.primitives.items():
            votes[primitive.weights] += count
        return _word((votes or Counter(self.constants_bytes)).most_common(1))

    @property
    def activation_type(self) -> str | None:
        """The type activations enter the products in: int8 where they are quantized dynamically."""
        votes: Counter[str] = Counter()
        for primitive, count in self.primitives.items():
            votes["s8" if primitive.source_group else primitive.source] += count
        return _word(votes.most_common(1))

    @property
    def kernel(self) -> str | None:
        """The implementation that most primitives use."""
        votes: Counter[str] = Counter()
        for primitive, count in self.primitives.items():
            votes[primitive.implementation] += count
        return votes.most_common(1)[0][0] if votes else None


def _word(top: list[tuple[str, int]]) -> str | None:
    return TYPES.get(top[0][0], top[0][0]) if top else None


def parse_properties(text: str) -> dict[str, str]:
    """The last printed property block of the language model; ``{}`` where none was printed."""
    _, found, block = text.rpartition(MODEL_HEADER)
    properties = {}
    for line in block.splitlines()[1:] if found else ():
        match = re.match(r"  ([A-Z][A-Z0-9_]*): ?(.*)$", line)
        if match is None:
            break
        properties[match[1]] = match[2].strip()
    return properties


_MD = re.compile(r"(src|wei)(?::\w)?:([a-z]+\d+)")


def parse_primitives(lines: Iterable[str]) -> dict[Primitive, int]:
    """The inner products among oneDNN's creation reports.

    A line reads ``onednn_verbose,v1,primitive,create:…,cpu,inner_product,<implementation>,…,src:… wei:… dst:…,attr…``.
    """
    found: Counter[Primitive] = Counter()
    for line in lines:
        parts = line.split(",")
        if len(parts) < 9 or parts[0] != "onednn_verbose" or not parts[3].startswith("create"):
            continue
        if parts[5] != "inner_product":
            continue
        types = dict(_MD.findall(parts[8]))
        if "src" not in types or "wei" not in types:
            continue
        group = re.search(r"src_dyn_quant_group_size:(\d+)", line)
        found[Primitive(parts[5], parts[6], types["src"], types["wei"], int(group[1]) if group else 0)] += 1
    return dict(found)


def constants_of(xml: Path) -> dict[str, int]:
    """Element type → bytes of the constants of 2 dimensions or more of an OpenVINO model."""
    import openvino

    found: Counter[str] = Counter()
    for op in openvino.Core().read_model(str(xml)).get_ops():
        if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) >= 2:
            found[op.get_element_type().get_type_name()] += op.get_byte_size()
    return dict(found)
