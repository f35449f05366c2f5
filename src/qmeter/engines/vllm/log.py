"""What vLLM's log says: the effective configuration, and why a start failed. Format strings of vLLM 0.25.1."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from qmeter.errors import EngineCrashed, EngineError, MethodUnsupported, OutOfMemory

_GIB = 2**30
_LINES: dict[str, re.Pattern[str]] = {
    "engine_version": re.compile(r"Initializing a V1 LLM engine \(v(\S+?)\) with config"),
    "tensor_parallel_size": re.compile(r"[ ,]tensor_parallel_size=(\d+)"),
    "pipeline_parallel_size": re.compile(r"[ ,]pipeline_parallel_size=(\d+)"),
    "data_parallel_size": re.compile(r"[ ,]data_parallel_size=(\d+)"),
    "kv_tokens": re.compile(r"GPU KV cache size: ([\d,]+) tokens"),
    "kv_gib": re.compile(r"Available KV cache memory: (-?[\d.]+) GiB"),
    "attention": re.compile(r"Using (\S+) attention backend"),
    "flash_attention": re.compile(r"Using FlashAttention version (\d+)"),
    "quantization": re.compile(r"[ ,]quantization=([^,\s]+)"),
    "kv_cache_dtype": re.compile(r"[ ,]kv_cache_dtype=([^,\s]+)"),
    "dtype": re.compile(r"[ ,]dtype=torch\.([^,\s]+)"),
    "load_format": re.compile(r"[ ,]load_format=([^,\s]+)"),
    "max_seq_len": re.compile(r"[ ,]max_seq_len=(\d+)"),
    "prefix_caching": re.compile(r"[ ,]enable_prefix_caching=(\w+)"),
    "token_budget": re.compile(r"max_num_batched_tokens=(\d+)"),
    "load_s": re.compile(r"Model loading took .* and ([\d.]+) seconds"),
    "compile_s": re.compile(r"torch\.compile took ([\d.]+) s in total"),
    "init_s": re.compile(r"init engine \(.*?\) took ([\d.]+) s"),
    "graphs_s": re.compile(r"Graph capturing finished in ([\d.]+) secs"),
    "async_scheduling": re.compile(r"Asynchronous scheduling is (enabled|disabled)"),
}
ALLOCATOR_BYTES = 48 << 20
"""Most that "Model loading took" counts beside the tensors: two half-used segments of 20 MiB of torch's allocator, and
half a hundredth of a GiB. Up to 43 MiB were seen (SmolLM2-135M, every method with an FP8 cache or online FP8)."""
_KV_TOKENS = _LINES["kv_tokens"]
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB")
_RANK = re.compile(r"\(EngineCore_DP(\d+) pid=\d+\)")
_PROCESS = re.compile(r"\((\w+ pid=\d+)\)")
_KERNEL = re.compile(r"(?:Using|Selected) (\w*Kernel\w*) for (\w+)")
_CONFIGURED = re.compile(r"Kernel configured with weights (\S+) and activations (\S+)")
_ERROR_LINE = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception)): (.+)")

_TAKEN = re.compile(r"Free memory on device .*less than desired GPU memory utilization", re.IGNORECASE)
_MEMORY = re.compile(
    r"out of memory|No available memory for the cache|larger than the available KV cache|even a single token"
    r"|not enough GPU memory",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"kernel that can implement|not supported|unsupported|compatible scheme was found|No valid attention backend"
    r"|is not valid for this configuration|not divisible|does not support|kernels require|Unknown quantization"
    r"|does not match the quantization method|no '\w+' kernel exists",
    re.IGNORECASE,
)
_DEATH = re.compile(r"Engine core initialization failed|EngineCore failed to start|error: (?:unrecognized|argument)")

TYPES_BY_SCHEME: dict[str, tuple[str, str]] = {
    "CompressedTensorsW8A8Int8": ("int8", "int8"),
    "CompressedTensorsW8A8Fp8": ("fp8", "fp8"),
    "CompressedTensorsW8A16Fp8": ("fp8", "bf16"),
    "CompressedTensorsW4A8Fp8": ("int4", "fp8"),
    "Fp8LinearMethod": ("fp8", "fp8"),
    "Fp8PtpcOnlineLinearMethod": ("fp8", "fp8"),
    "Fp8PerTensorOnlineLinearMethod": ("fp8", "fp8"),
    "Fp8PerBlockOnlineLinearMethod": ("fp8", "fp8"),
    "AutoAWQMarlinLinearMethod": ("int4", "bf16"),
}
"""vLLM's linear method or scheme → weight and activation type, where its name alone decides."""
SILENT_SCHEMES = ("bitsandbytes",)
"""Values of ``quantization`` whose kernels vLLM never names: only the weight bytes tell whether they are in effect."""

TYPE_WORDS = {
    "uint4b8": "int4", "uint4": "int4", "int4": "int4", "uint8b128": "int8", "uint8": "int8", "int8": "int8",
    "float8_e4m3fn": "fp8", "bfloat16": "bf16", "float16": "f16",
}  # fmt: skip
"""vLLM's scalar types and torch's → the catalog's words."""


@dataclass(frozen=True)
class LogFacts:
    """What a log says: ``values`` by name, ``kernels`` as (kernel, scheme), ``worker_gib`` of weights a worker process.

    ``configured``: weight and activation type that the in-place loader saw in the kernel's configuration.
    ``replicas``: engine cores by their names ``EngineCore_DPn``, one a data-parallel rank. vLLM 0.25 makes each rank of
    a dense model an engine of its own, whose configuration says ``data_parallel_size=1``; the first rank alone logs it.
    ``replica_kv_tokens``: KV-cache tokens of each engine core, by rank.
    """

    values: dict[str, str] = field(default_factory=dict)
    kernels: tuple[tuple[str, str], ...] = ()
    worker_gib: tuple[float, ...] = ()
    configured: tuple[str, str] | None = None
    replicas: int = 1
    replica_kv_tokens: tuple[int, ...] = ()

    @property
    def weight_bytes(self) -> int | None:
        """Weights in memory of all devices together: each worker prints its own share, in hundredths of a GiB.

        Where fewer workers than there are have a line in the log, their mean counts for each; where more have, all do.
        """
        if not self.worker_gib:
            return None
        return int(sum(self.worker_gib) / len(self.worker_gib) * self._workers * _GIB)

    @property
    def weight_excess_bytes(self) -> int:
        """Most that :attr:`weight_bytes` may hold beside the tensors: :data:`ALLOCATOR_BYTES` a worker."""
        return ALLOCATOR_BYTES * self._workers if self.worker_gib else 0

    @property
    def _workers(self) -> int:
        inside = math.prod(int(self.values.get(f"{name}_parallel_size", 1)) for name in ("tensor", "pipeline"))
        asked = inside * max(self.replicas, int(self.values.get("data_parallel_size", 1)))
        return max(asked, len(self.worker_gib))

    @property
    def kernel(self) -> str | None:
        """The quantized matrix kernels, in the order chosen; ``None`` where the log names none."""
        return " + ".join(dict.fromkeys(kernel for kernel, _ in self.kernels)) or None

    def types(self) -> tuple[str | None, str | None]:
        """Weight and activation type as the chosen schemes say; 16-bit where no quantized kernel was chosen."""
        dtype = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(self.values.get("dtype", ""))
        if not self.kernels:
            silent = self.values.get("quantization") in SILENT_SCHEMES
            return (None, None) if silent else (dtype, dtype)
        kernel, scheme = self.kernels[0]
        weight, activation = TYPES_BY_SCHEME.get(scheme, (None, None))
        if self.configured:
            seen = (self.configured[0], self.configured[1].removeprefix("torch."))
            weight, activation = (TYPE_WORDS.get(word) for word in seen)
        if "Marlin" in kernel and activation == "fp8" and weight == "fp8":
            activation = dtype
        return weight, activation


def parse(text: str) -> LogFacts:
    """The first occurrence of each known line; kernels in order, once each; weights a process, KV tokens a rank."""
    values = {name: match[1] for name, pattern in _LINES.items() if (match := pattern.search(text))}
    kernels = dict.fromkeys((m[1], m[2]) for m in _KERNEL.finditer(text))
    weights = _by_process(text, _WEIGHTS)
    told = _CONFIGURED.search(text)
    configured = (told[1], told[2]) if told else None
    cached = _by_process(text, _KV_TOKENS)
    ranks = {name: int(name.split(" ")[0].partition("_DP")[2] or 0) for name in cached}
    return LogFacts(
        values=values, kernels=tuple(kernels), worker_gib=tuple(float(gib) for gib in weights.values()),
        configured=configured, replicas=max(1, len(set(_RANK.findall(text)))),
        replica_kv_tokens=tuple(int(cached[name].replace(",", "")) for name in sorted(cached, key=ranks.__getitem__)),
    )  # fmt: skip


def _by_process(text: str, pattern: re.Pattern[str]) -> dict[str, str]:
    """The last match of each process ("Worker pid=9947"), in order; a process whose name is not told stands for itself.

    Processes write into one log at once, so a line may carry several names: the one nearest to the words counts.
    """
    found: dict[str, str] = {}
    for match in pattern.finditer(text):
        names = _PROCESS.findall(text, text.rfind("\n", 0, match.start()) + 1, match.start())
        found[names[-1] if names else f"unnamed pid={len(found)}"] = match[1]
    return found


def failure(text: str) -> EngineError | None:
    """Why the start failed, by the log; ``None`` while nothing in it says that it did.

    A named cause (memory, an unsupported kernel or shape) is reported as soon as its exception is in the log; any
    other exception only once vLLM says that the engine did not start.
    """
    errors = [f"{m[1]}: {m[2].strip()}" for line in text.splitlines() if (m := _ERROR_LINE.search(line))]
    for line in errors:
        if _TAKEN.search(line):
            return OutOfMemory(
                f"another process holds the device's memory: {_short(line)}",
                stage="ready",
                hint="end it (nvidia-smi names it) and run again with --retry-failed, or lower gpu_memory_fraction",
            )
        if _MEMORY.search(line):
            return OutOfMemory(
                f"the model does not fit: {_short(line)}",
                stage="ready",
                hint="use more devices (parallelism), a method with fewer bits, or a shorter max_model_tokens",
            )
    for line in errors:
        if _UNSUPPORTED.search(line):
            return MethodUnsupported(
                f"vLLM refuses it: {_short(line)}",
                stage="ready",
                hint="take another method for this device or shape; `qmeter methods` lists what each needs",
            )
    died = _DEATH.search(text)
    if died:
        cause = next((e for e in errors if "Engine core init" not in e), None) or _line_of(text, died.start())
        return EngineCrashed(f"vLLM did not start: {_short(cause)}", stage="ready", hint="read the server's log")
    return None


def _short(line: str) -> str:
    return line if len(line) <= 400 else line[:400] + " …"


def _line_of(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0].strip()
