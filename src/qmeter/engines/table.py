"""The table of engines: a new one is one file and one row here, or an entry point in ``qmeter.engines``."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec

from qmeter.engines.base import Engine
from qmeter.registry import Registry


class Gpus(StrEnum):
    """Which of the visible GPUs a deployment runs on, and so whose energy is its own."""

    NONE = "none"
    AS_MANY_AS_ASKED = "as many as its parallelism asks for"
    ALL = "all"


@dataclass(frozen=True)
class Traits:
    """One built-in engine: its adapter, what it needs of this host, what a study may say of it, what to expect.

    Attributes:
        adapter: ``module:attribute``.
        title: for people.
        packages, programs: one of them must be here, or nothing where both are empty; ``advice``: how to get it.
        gpus: the GPUs it runs on; all where it does not say (an attached server, an engine that spreads by itself).
        attached: it attaches to a URL and is not started.
        program: a study may name its program (``binary``).
        parallel: degrees of parallelism that it takes.
        predicted: nothing runs, so the catalog's flags do not bind it: its calibration says what it knows.
        cold_start_s, start_s: launch to ready, the first in a lease and later ones, as seen so far; estimates of a
            dry run where no record tells better. Units: s.
    """

    adapter: str
    title: str
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    advice: str = ""
    gpus: Gpus = Gpus.ALL
    attached: bool = False
    program: bool = False
    parallel: frozenset[str] = frozenset()
    predicted: bool = False
    cold_start_s: float = 30.0
    start_s: float = 30.0


TRAITS: dict[str, Traits] = {
    "openvino": Traits(
        "qmeter.engines.openvino:OpenVinoEngine",
        "OpenVINO GenAI, embedded (CPU)",
        packages=("openvino_genai",),
        advice="pip install 'qmeter[openvino]'",
        gpus=Gpus.NONE,
        cold_start_s=6.0,
        start_s=6.0,
    ),
    "llamacpp": Traits(
        "qmeter.engines.llamacpp:LlamaCppEngine",
        "llama.cpp's llama-server",
        programs=("llama-server",),
        advice="build llama.cpp and put llama-server on PATH, or name it in engines[].binary",
        program=True,
        parallel=frozenset({"tp", "pp"}),
        cold_start_s=5.0,
        start_s=5.0,
    ),
    "vllm": Traits(
        "qmeter.engines.vllm:VllmEngine",
        "vLLM",
        packages=("vllm",),
        programs=("vllm",),
        advice="pip install vllm on a GPU host, or name its program in engines[].binary",
        gpus=Gpus.AS_MANY_AS_ASKED,
        program=True,
        parallel=frozenset({"tp", "pp", "dp"}),
        cold_start_s=110.0,
        start_s=50.0,
    ),
    "endpoint": Traits(
        "qmeter.engines.endpoint:EndpointEngine",
        "any OpenAI-compatible server, attached to by engines[].url",
        attached=True,
        parallel=frozenset({"tp", "pp", "dp"}),
        cold_start_s=0.0,
        start_s=0.0,
    ),
    "simulated": Traits(
        "qmeter.engines.simulated:SimulatedEngine",
        "predicted from engines[].options.calibration; nothing is started",
        gpus=Gpus.NONE,
        predicted=True,
        parallel=frozenset({"tp", "pp"}),
        cold_start_s=0.0,
        start_s=0.0,
    ),
}
"""Built-in engine → its row; one that a plug-in brings has none, and is not held to any of this."""

UNKNOWN = Traits("", "an engine of a plug-in")

ENGINES: Registry[Engine] = Registry(
    "engine", {name: row.adapter for name, row in TRAITS.items()}, group="qmeter.engines"
)


def traits(name: str) -> Traits:
    """The engine's row, or one that asks nothing where a plug-in brings it."""
    return TRAITS.get(name, UNKNOWN)


@dataclass(frozen=True)
class Availability:
    """Whether an engine can be started here: ``found`` names what was found, ``why`` what is missing."""

    name: str
    title: str
    available: bool
    found: str | None
    why: str | None
    advice: str | None


def availability(name: str) -> Availability:
    """Whether this host has the engine, without starting or importing it.

    Raises:
        UnknownName: no such engine.
    """
    need = TRAITS.get(name)
    if need is None:
        return _imported(name)
    found = _found(need)
    if found is not None:
        return Availability(name, need.title, True, found, None, None)
    missing = [f"the Python package {p}" for p in need.packages] + [f"the program {p} on PATH" for p in need.programs]
    return Availability(name, need.title, False, None, f"this host lacks {' or '.join(missing)}", need.advice)


def gpus_of(name: str, devices: int) -> int | None:
    """How many of the visible GPUs a deployment on ``devices`` devices runs on; ``None``: all."""
    return {Gpus.NONE: 0, Gpus.AS_MANY_AS_ASKED: devices, Gpus.ALL: None}[traits(name).gpus]


def _found(need: Traits) -> str | None:
    for package in need.packages:
        if find_spec(package) is not None:
            return f"Python package {package}"
    for program in need.programs:
        if path := shutil.which(program):
            return path
    return None if need.packages or need.programs else "nothing needed"


def _imported(name: str) -> Availability:
    """An engine of a third party: available if its adapter can be imported."""
    try:
        adapter = ENGINES.get(name)
    except ImportError as error:
        return Availability(name, name, False, None, f"its adapter cannot be imported: {error}", None)
    return Availability(name, name, True, f"entry point {getattr(adapter, '__module__', name)}", None, None)
