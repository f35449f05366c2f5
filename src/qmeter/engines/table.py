"""The table of engines: a new one is one file and one row here, or an entry point in ``qmeter.engines``."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec

from qmeter.engines.base import Engine
from qmeter.registry import Registry

ENGINES: Registry[Engine] = Registry(
    "engine",
    {
        "openvino": "qmeter.engines.openvino:OpenVinoEngine",
        "llamacpp": "qmeter.engines.llamacpp:LlamaCppEngine",
        "vllm": "qmeter.engines.vllm:VllmEngine",
        "endpoint": "qmeter.engines.endpoint:EndpointEngine",
        "simulated": "qmeter.engines.simulated:SimulatedEngine",
    },
    group="qmeter.engines",
)


class Gpus(StrEnum):
    """Which of the visible GPUs a deployment runs on, and so whose energy is its own."""

    NONE = "none"
    AS_MANY_AS_ASKED = "the first ones, by its parallelism"
    ALL = "all"


@dataclass(frozen=True)
class Requirement:
    """What an engine needs of this host: one of ``packages`` or ``programs``, or nothing where both are empty.

    ``gpus``: the GPUs it runs on; all where it does not say (an attached server, an engine that spreads by itself).
    """

    title: str
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    advice: str = ""
    gpus: Gpus = Gpus.ALL


REQUIREMENTS: dict[str, Requirement] = {
    "openvino": Requirement(
        "OpenVINO GenAI, embedded (CPU)",
        packages=("openvino_genai",),
        advice="pip install 'qmeter[openvino]'",
        gpus=Gpus.NONE,
    ),
    "llamacpp": Requirement(
        "llama.cpp's llama-server",
        programs=("llama-server",),
        advice="build llama.cpp and put llama-server on PATH, or name it in engines[].binary",
    ),
    "vllm": Requirement(
        "vLLM",
        packages=("vllm",),
        programs=("vllm",),
        advice="pip install vllm on a GPU host, or name its program in engines[].binary",
        gpus=Gpus.AS_MANY_AS_ASKED,
    ),
    "endpoint": Requirement("any OpenAI-compatible server, attached to by engines[].url"),
    "simulated": Requirement("predicted from engines[].options.calibration; nothing is started", gpus=Gpus.NONE),
}
"""Built-in engine → what it needs."""


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
    need = REQUIREMENTS.get(name)
    if need is None:
        return _imported(name)
    found = _found(need)
    if found is not None:
        return Availability(name, need.title, True, found, None, None)
    missing = [f"the Python package {p}" for p in need.packages] + [f"the program {p} on PATH" for p in need.programs]
    return Availability(name, need.title, False, None, f"this host lacks {' or '.join(missing)}", need.advice)


def gpus_of(name: str, devices: int) -> int | None:
    """How many of the visible GPUs, from the first, a deployment on ``devices`` devices runs on; ``None``: all."""
    need = REQUIREMENTS.get(name)
    counts = {Gpus.NONE: 0, Gpus.AS_MANY_AS_ASKED: devices, Gpus.ALL: None}
    return counts[need.gpus if need else Gpus.ALL]


def _found(need: Requirement) -> str | None:
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
