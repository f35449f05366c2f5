"""``synth:MODEL`` sources: which format a method's synthetic checkpoint has, and where it lies."""

from __future__ import annotations

from pathlib import Path

from qmeter import catalog
from qmeter.catalog.scheme import Method
from qmeter.engines.base import Artifact
from qmeter.errors import MethodUnsupported, SourceError
from qmeter.sources.synth.checkpoint import Recipe, write_checkpoint, write_frame

SCHEME = "synth:"
ROADS = ("inplace", "disk")
"""``synth:MODEL@inplace`` (the default): the engine makes the weights; ``@disk``: they are written first."""
SEED = 1
PUBLISHED = {"fp8_per_channel": "ct-fp8-dynamic", "fp8_per_block": "fp8-block"}
"""What vLLM can quantize while loading a 16-bit checkpoint → the format in which the same is published."""


def checkpoint_kind(method: Method, engine: str = "vllm") -> str:
    """The format that a method's synthetic checkpoint is written in for ``engine``.

    Raises:
        MethodUnsupported: the engine has no way to run the method.
    """
    flags = method.engines.get(engine)
    if flags is None:
        raise MethodUnsupported(
            f"{engine} has no way to run {method.name}", stage="source", hint="`qmeter methods` says where it runs"
        )
    return next((PUBLISHED[word] for word in flags.load_args if word in PUBLISHED), flags.checkpoint)


def prepare_synth(source: str, method: Method, engine: str, cache: Path, *, seed: int = SEED) -> Artifact:
    """The synthetic model of ``source`` in the method's format, made or found in ``cache``.

    Args:
        source: ``synth:<catalog model>`` and, after ``@``, one of :data:`ROADS`.

    Raises:
        SourceError: no such road, or the disk is too small.
        UnknownName: no such catalog model.
        MethodUnsupported: engine or shape refuses the method.
    """
    name, _, road = source.removeprefix(SCHEME).partition("@")
    if (road or ROADS[0]) not in ROADS:
        raise SourceError(f"{source!r}: no road named {road!r}", hint=f"write {SCHEME}{name}@{' or @'.join(ROADS)}")
    recipe = Recipe(shape=catalog.model(name), kind=checkpoint_kind(method, engine), seed=seed)
    folder = cache / "synth" / f"{name}-{recipe.kind}-{road or ROADS[0]}-{recipe.digest[:12]}"
    if road == "disk":
        return _on_disk(folder, recipe)
    if not (folder / "config.json").is_file():
        write_frame(folder, recipe)
    return Artifact(
        path=folder,
        format="synth",
        sha256=recipe.digest,
        notes=(f"synthetic Gaussian weights, {recipe.kind}, seed {seed}, made inside the engine",),
    )


def _on_disk(folder: Path, recipe: Recipe) -> Artifact:
    marker = folder / "model.safetensors.index.json"
    if not marker.is_file():
        write_checkpoint(folder, recipe)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Artifact(
        path=folder,
        format="safetensors",
        sha256=recipe.digest,
        weight_bytes=size,
        notes=(f"synthetic Gaussian weights, {recipe.kind}, seed {recipe.seed}, from files (digest of the recipe)",),
    )
