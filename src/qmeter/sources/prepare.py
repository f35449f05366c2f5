"""From a study's model and method to the files that the engine loads."""

from __future__ import annotations

import re
from pathlib import Path

from qmeter.catalog import Method
from qmeter.engines.base import Artifact
from qmeter.errors import MethodUnsupported, SourceError
from qmeter.sources.base import SOURCES, Progress, Request
from qmeter.sources.cache import read_json
from qmeter.sources.gguf_variants import make_variant
from qmeter.spec.study import ModelRef

_SCHEME = re.compile(r"^([a-z][a-z0-9+-]*):(?!//)(.+)$")
UNQUANTIZED = ("bf16", "f16")
"""Checkpoint kinds that a folder as published is."""


def prepare(
    model: ModelRef, method: Method, engine: str, cache: Path, *, progress: Progress = lambda _: None
) -> Artifact:
    """The model in the form that ``method`` on ``engine`` needs: fetched and converted once, then found in ``cache``.

    Args:
        progress: told in a few words what is being done; not called for what is in the cache already.

    Raises:
        SourceError: it cannot be fetched, is not what was named, or cannot be converted.
        MethodUnsupported: the engine cannot run the method.
        MissingExtra: the source or the conversion needs a package that is not installed.
        UnknownName: no such scheme.
    """
    flags = method.engines.get(engine)
    if flags is None:
        raise MethodUnsupported(
            f"{engine} has no way to run {method.name}", stage="source", hint="`qmeter methods` says where it runs"
        )
    if flags.checkpoint == "remote":
        return Artifact(Path(), "remote", "")
    own = model.checkpoints.get(method.name)
    scheme, reference = split_source(own or model.source)
    cache = cache.expanduser().absolute()
    cache.mkdir(parents=True, exist_ok=True)
    request = Request(reference, None if own else model.sha256, method, engine, cache, progress)
    artifact = SOURCES.create(scheme).fetch(request)
    if flags.checkpoint.startswith("gguf-"):
        return _as_gguf(artifact, flags.checkpoint, cache, progress, as_given=own is not None)
    return _as_folder(artifact, flags.checkpoint, model, method, as_given=own is not None or scheme == "synth")


def split_source(source: str) -> tuple[str, str]:
    """``(scheme, reference)`` of a source; a text without a scheme is a path."""
    match = _SCHEME.match(source)
    return (match[1], match[2]) if match else ("path", source)


def _as_gguf(artifact: Artifact, kind: str, cache: Path, progress: Progress, *, as_given: bool) -> Artifact:
    if artifact.format == "openvino" or as_given:
        return artifact
    if artifact.format != "gguf":
        raise SourceError(
            f"the method needs a GGUF ({kind}), but {artifact.path.name} is {artifact.format}", stage="source",
            hint="name a GGUF file as models[].source, or a converted one in models[].checkpoints",
        )  # fmt: skip
    return make_variant(artifact, kind, cache, progress)


def _as_folder(artifact: Artifact, kind: str, model: ModelRef, method: Method, *, as_given: bool) -> Artifact:
    if as_given or artifact.format != "safetensors" or kind in UNQUANTIZED:
        if artifact.format == "gguf":
            raise SourceError(
                f"{method.name} needs safetensors ({kind}), but {artifact.path.name} is a GGUF", stage="source",
                hint="name a folder or hf: source",
            )  # fmt: skip
        return artifact
    if (read_json(artifact.path / "config.json") or {}).get("quantization_config"):
        return artifact
    raise SourceError(
        f"{method.name} needs a checkpoint of its own ({kind}); {model.name} is not quantized", stage="source",
        hint=f"make one with `qmeter quantize`, and name it in models[].checkpoints.{method.name}",
    )  # fmt: skip
