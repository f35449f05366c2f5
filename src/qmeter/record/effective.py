"""What an engine says it really runs, and the checks that the method took effect."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EffectiveConfig(_Frozen):
    """The deployment as the engine itself reports it; ``None`` where it does not say.

    Attributes:
        engine_version: as the engine reports it.
        weight_bytes: bytes of weights loaded on all devices together.
        weight_excess_bytes: most that ``weight_bytes`` holds beside the tensors where it is what an allocator took.
        weight_type, activation_type, kv_type: number formats in the catalog's words ("f16", "int8", "int4", "fp8").
        kernel: the compute kernel named in the log or properties.
        kv_blocks: **measured** number of KV-cache blocks, all of one replica.
        kv_block_tokens: tokens a block holds.
        token_budget: most tokens batched in one step.
        max_sequences: most sequences running at once.
        max_model_tokens: longest sequence accepted.
        properties: everything else the engine said of itself, verbatim.
        sources: field name → where it was read ("log: Model loading took", "GET /qmeter/config", …).
    """

    engine_version: str | None = None
    weight_bytes: int | None = None
    weight_excess_bytes: int = 0
    weight_type: str | None = None
    activation_type: str | None = None
    kv_type: str | None = None
    kernel: str | None = None
    kv_blocks: int | None = None
    kv_block_tokens: int | None = None
    token_budget: int | None = None
    max_sequences: int | None = None
    max_model_tokens: int | None = None
    properties: dict[str, str] = {}
    sources: dict[str, str] = {}


class Check(_Frozen):
    """One comparison of what was asked with what the engine reports.

    ``passed is None`` means that the engine does not report it; ``why`` then says so. ``shows`` names the parts of
    the deployment ("weights", "activations", "kv") that a pass shows to be as asked.
    """

    name: str
    expected: str
    seen: str | None
    passed: bool | None
    why: str | None = None
    shows: tuple[str, ...] = ()


class Verification(_Frozen):
    """All checks of one deployment, and the parts that the method changes (``needed``: "weights", "kv", …).

    ``verified``: at least one check passed, none failed, and every needed part was shown by a check that passed: an
    FP8 KV cache is not verified by the right weight bytes.
    """

    checks: tuple[Check, ...]
    needed: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that contradict the method asked for."""
        return tuple(c for c in self.checks if c.passed is False)

    @property
    def verified(self) -> bool:
        """Whether the method was shown to be in effect."""
        return not self.failed and any(c.passed for c in self.checks) and not self.unshown

    @property
    def unshown(self) -> tuple[str, ...]:
        """The parts the method changes that no passed check has shown to be in effect."""
        shown = {part for c in self.checks if c.passed for part in c.shows}
        return tuple(part for part in self.needed if part not in shown)
