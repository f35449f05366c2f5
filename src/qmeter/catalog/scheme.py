"""What a quantization method is: its numbers, its format, and what each engine must be told and must then report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qmeter.catalog.layout import KVFormat, WeightLayout
from qmeter.catalog.shape import ModelShape
from qmeter.errors import MethodUnsupported


class MethodClass(StrEnum):
    """What a method quantizes."""

    NONE = "none"
    WEIGHT_ONLY = "weight-only"
    WEIGHT_ACTIVATION = "weight-activation"
    KV_CACHE = "kv-cache"
    COMBINED = "combined"


@dataclass(frozen=True)
class Paper:
    """Where a method is described; ``arxiv`` is ``None`` where it is a format without a paper."""

    title: str
    arxiv: str | None = None

    @property
    def url(self) -> str | None:
        """Address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None


@dataclass(frozen=True)
class EngineFlags:
    """What one engine must be told to run a method, and what it must then report.

    Attributes:
        checkpoint: kind of checkpoint it needs, see :data:`qmeter.catalog.CHECKPOINTS` ("bf16", "gptq-int4-g128", …).
        args: command-line arguments, always given.
        load_args: arguments that make the engine quantize a 16-bit checkpoint as it loads it; not given where the
            artifact is quantized already (the engine then reads its quantization from the checkpoint).
        env: environment variables to set.
        properties: engine properties to set (OpenVINO).
        layout: how the weights lie in the engine's memory; gives the expected weight bytes.
        other_layouts: layouts that files of this kind may also have; as right as the first.
        kv: how the KV cache is stored.
        weight_types, activation_types, kv_types: words that the engine may report for each and be right.
        kernels: kernel families that are this method, matched case-insensitively as parts of the reported kernel's
            name; empty: any kernel.
        kernel_shows: parts ("weights", "activations") that such a kernel proves: a weight-only kernel proves weights.
        wrong_kernels: kernel families that show that another method runs, matched the same way.
        min_capability, max_capability: GPU compute capability it needs, both ends included; ``None``: no bound.
        needs: packages or programs that must be installed beside the engine.
        note: what a reader must know of this method on this engine.
    """

    checkpoint: str
    layout: WeightLayout
    kv: KVFormat
    weight_types: tuple[str, ...]
    activation_types: tuple[str, ...]
    kv_types: tuple[str, ...]
    args: tuple[str, ...] = ()
    load_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    other_layouts: tuple[WeightLayout, ...] = ()
    kernels: tuple[str, ...] = ()
    kernel_shows: tuple[str, ...] = ("weights",)
    wrong_kernels: tuple[str, ...] = ()
    min_capability: tuple[int, int] | None = None
    max_capability: tuple[int, int] | None = None
    needs: tuple[str, ...] = ()
    note: str | None = None

    @property
    def capability_range(self) -> str:
        """The compute capabilities that have it, in words: "9.0 exactly", "8.9 or more", "7.5 to 9.9", "any"."""
        low, high = (".".join(map(str, c)) if c else None for c in (self.min_capability, self.max_capability))
        if low == high:
            return f"{low} exactly" if low else "any"
        return f"{low} or more" if high is None else f"{low or 'any'} to {high}"

    def refuses(self, capability: tuple[int, int] | None) -> str | None:
        """Why a device of this compute capability (``None``: a CPU) cannot run it, or ``None`` where it can."""
        if self.min_capability is None and self.max_capability is None:
            return None
        if capability is None:
            return f"needs a GPU of compute capability {self.capability_range}"
        low = self.min_capability is not None and capability < self.min_capability
        high = self.max_capability is not None and capability > self.max_capability
        has = ".".join(map(str, capability))
        return f"needs compute capability {self.capability_range}; the device has {has}" if low or high else None


@dataclass(frozen=True)
class Method:
    """One quantization method.

    Attributes:
        name: as studies name it.
        title: for people.
        kind: what it quantizes.
        weight_type, activation_type, kv_type: number types in the words of ``record.EffectiveConfig``.
        weight_bits, activation_bits, kv_bits: nominal bits, scales not counted.
        group_size: inputs that share a weight scale; -1 a channel, 0 a tensor, ``None`` where weights keep 16 bits.
        symmetric: whether weights have no zero point; ``None`` where weights keep 16 bits.
        calibration: whether making the checkpoint needs calibration data.
        format: checkpoint format ("safetensors", "gptq", "awq", "compressed-tensors", "bitsandbytes", "gguf").
        paper: where it comes from.
        engines: engine name → what it needs there; an engine that is absent cannot run it.
        note: what a reader must know.
        aliases: other names it is found by.
    """

    name: str
    title: str
    kind: MethodClass
    weight_type: str
    activation_type: str
    kv_type: str
    weight_bits: float
    activation_bits: float
    kv_bits: float
    group_size: int | None
    symmetric: bool | None
    calibration: bool
    format: str
    layout: WeightLayout
    kv: KVFormat
    paper: Paper | None
    engines: Mapping[str, EngineFlags]
    note: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts it quantizes, of "weights", "activations", "kv"; ``("weights",)`` for 16-bit baselines."""
        quantized = {"weights": self.weight_bits, "activations": self.activation_bits, "kv": self.kv_bits}
        return tuple(part for part, bits in quantized.items() if bits < 16) or ("weights",)

    def flags(self, engine: str) -> EngineFlags:
        """What ``engine`` is told and must report.

        Raises:
            MethodUnsupported: the catalog knows no way to run it there; the hint names the engines that have it.
        """
        if engine in self.engines:
            return self.engines[engine]
        able = ", ".join(name for name in self.engines if name != "endpoint")
        hint = f"engines that run it: {able}; `qmeter methods --engine {engine}` lists what {engine} runs"
        raise MethodUnsupported(f"engine {engine!r} has no way to run method {self.name!r}", hint=hint)

    def expected_weight_bytes(self, shape: ModelShape, engine: str | None = None) -> int:
        """Bytes of weights in memory, all devices together: as ``engine`` lays them out, or as the format does."""
        flags = self.engines.get(engine) if engine else None
        return shape.weight_bytes(flags.layout if flags else self.layout)

    def kv_bytes_per_token(self, shape: ModelShape, engine: str | None = None) -> float:
        """Bytes of KV cache a token takes, scales included: as ``engine`` stores them, or as the format does."""
        flags = self.engines.get(engine) if engine else None
        return shape.kv_bytes_per_token(flags.kv if flags else self.kv)
