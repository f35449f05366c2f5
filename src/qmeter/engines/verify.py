"""Whether the method took effect: what the engine reports against what the catalog expects. No engine is named here.

Each check passes, fails, or is unknown (``passed is None``) with the reason; a method is verified only when every part
that it quantizes was shown by a check that passed. The runner turns failed checks into ``MethodNotApplied``.
"""

from __future__ import annotations

from dataclasses import replace

from qmeter.catalog import EngineFlags, Method, ModelShape
from qmeter.catalog.formats import PLAIN
from qmeter.engines.base import Artifact
from qmeter.record import Check, EffectiveConfig, Verification
from qmeter.spec.study import Deployment

WEIGHT_BYTES_TOLERANCE = 0.10
"""Largest relative difference between reported and expected weight bytes; INT4, 8-bit and 16-bit are 1.8x apart."""


def verify(
    deployment: Deployment, method: Method, shape: ModelShape, artifact: Artifact, effective: EffectiveConfig
) -> Verification:
    """Every check of one deployment; raises nothing.

    Args:
        deployment: what was asked (engine and data-parallel degree count).
        method, shape: the catalog's rows for it.
        artifact: what was given to the engine; only explains a failure, never passes a check.
        effective: what the running engine says of itself.
    """
    flags = method.engines.get(deployment.engine.name) or _generic(method)
    checks = (
        _weight_bytes(flags, shape, artifact, effective, replicas=deployment.parallelism.dp),
        _type(effective, "weight_type", flags.weight_types, "weights"),
        _type(effective, "activation_type", flags.activation_types, "activations"),
        _type(effective, "kv_type", flags.kv_types, "kv"),
        _kernel(flags, effective),
    )
    return Verification(checks=checks, needed=method.parts)


def _generic(method: Method) -> EngineFlags:
    """Expectations for an engine that the catalog has no row for: the method's own numbers and format."""
    return replace(method.engines["endpoint"], checkpoint="", note=None)


def _weight_bytes(
    flags: EngineFlags, shape: ModelShape, artifact: Artifact, effective: EffectiveConfig, replicas: int
) -> Check:
    """Bytes loaded on all devices together against the exact count of each right layout, within the tolerance."""
    right = [shape.weight_bytes(layout) * replicas for layout in (flags.layout, *flags.other_layouts)]
    asked = f"{' or '.join(_gib(count) for count in right)} ±{WEIGHT_BYTES_TOLERANCE:.0%}"
    if effective.weight_excess_bytes:
        asked += f", and up to {_gib(effective.weight_excess_bytes)} of its allocator's"
    seen = effective.weight_bytes
    if seen is None:
        return Check(name="weight_bytes", expected=asked, seen=None, passed=None, why=_unsaid("weight bytes"))
    plain = shape.weight_bytes(PLAIN) * replicas
    excess = effective.weight_excess_bytes
    passed = any(_close(seen, count) or _excused(seen, count, plain, excess) for count in right)
    why = None
    if not passed:
        why = _explain(seen, right[0], plain, artifact)
    return Check(
        name="weight_bytes", expected=asked, seen=_gib(seen), passed=passed, why=why, shows=("weights",)
    )  # fmt: skip


def _explain(seen: int, expected: int, unquantized: int, artifact: Artifact) -> str:
    text = f"{seen / expected:.2f} times the bytes expected"
    if _close(seen, unquantized):
        return f"{text}: just what the model takes at 16 bits, so it was loaded unquantized"
    if artifact.weight_bytes is not None and _close(seen, artifact.weight_bytes):
        return f"{text}, but just what the artifact holds ({artifact.path.name}): the artifact is in another format"
    return f"{text}: other tensors are quantized, or the shape is not the model's"


def _type(effective: EffectiveConfig, name: str, accepted: tuple[str, ...], part: str) -> Check:
    """One reported number type against the words that are right for it."""
    seen: str | None = getattr(effective, name)
    asked = " or ".join(accepted)
    if seen is None:
        return Check(name=name, expected=asked, seen=None, passed=None, why=_unsaid(name.replace("_", " ")))
    passed = seen.lower() in accepted
    why = None if passed else f"the engine runs its {part} in {seen}"
    return Check(name=name, expected=asked, seen=seen, passed=passed, why=why, shows=(part,))


def _kernel(flags: EngineFlags, effective: EffectiveConfig) -> Check:
    """The matrix kernel named by the engine against the families that are the method, and those that are not."""
    seen = effective.kernel
    asked = " or ".join(flags.kernels) if flags.kernels else "any"
    if flags.wrong_kernels:
        asked += f", not {' or '.join(flags.wrong_kernels)}"
    if seen is None:
        why = _unsaid("a kernel")
        if flags.kernels:
            why += ", though one is expected: see the weight bytes"
        return Check(name="kernel", expected=asked, seen=None, passed=None, why=why)
    wrong = _named(seen, flags.wrong_kernels)
    if wrong:
        why = f"{wrong} is another method's kernel"
        return Check(name="kernel", expected=asked, seen=seen, passed=False, why=why)
    if not flags.kernels:
        return Check(name="kernel", expected=asked, seen=seen, passed=None, why="any kernel will do for this method")
    passed = _named(seen, flags.kernels) is not None
    why_not = None if passed else "none of the kernels that run this method"
    return Check(name="kernel", expected=asked, seen=seen, passed=passed, why=why_not, shows=flags.kernel_shows)


def _named(kernel: str, families: tuple[str, ...]) -> str | None:
    """The first family whose name is part of the kernel's, ignoring case."""
    return next((family for family in families if family.lower() in kernel.lower()), None)


def _close(seen: int, expected: int) -> bool:
    return abs(seen - expected) <= WEIGHT_BYTES_TOLERANCE * expected


def _excused(seen: int, expected: int, plain: int, excess: int) -> bool:
    """Whether what is too much can be an allocator's, and the bytes are nearer to the method's than to no method's."""
    over = seen - expected
    within = 0 < over <= WEIGHT_BYTES_TOLERANCE * expected + excess
    return excess > 0 and within and (expected >= plain or over < plain - seen)


def _unsaid(what: str) -> str:
    return f"the engine does not report {what}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.3f} GiB"
