"""The host's measured roofline: copy bandwidth and matrix rate by number type (torch on the GPU).

Random data, since a product of zeros draws less power and runs faster. Each figure is the median of repeats timed by
device events after warm-ups.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qmeter.errors import MissingExtra, TelemetryError

COPY_BYTES = 8 << 30
SIZE = 8192
"""Rows, columns and depth of the matrix product."""
REPEATS, WARMUPS = 15, 5


@dataclass(frozen=True)
class Ceiling:
    """One measured ceiling: ``value`` in ``unit`` (byte/s counts bytes read and written), or why there is none."""

    name: str
    unit: str
    value: float | None
    spread: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Roofline:
    """What one device reached. ``spread`` of a ceiling is (max - min) / median over its repeats."""

    device: str
    capability: str
    torch_version: str
    ceilings: tuple[Ceiling, ...]

    def ridge(self, name: str) -> float | None:
        """Operations a byte above which a kernel of this matrix type is bound by arithmetic; ``None`` if unknown."""
        rates = {c.name: c.value for c in self.ceilings}
        rate, copy = rates.get(name), rates.get("copy")
        return rate / copy if rate and copy else None


def measure(index: int = 0, repeats: int = REPEATS) -> Roofline:
    """Measure the device; takes a few seconds and 16 GiB of its memory.

    Raises:
        MissingExtra: torch is not installed.
        TelemetryError: torch sees no such GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("synth", "measuring a roofline") from error
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise TelemetryError(f"torch sees no GPU {index}", hint="a roofline is measured on the GPU itself")
    with torch.cuda.device(index), torch.inference_mode():
        works: tuple[tuple[str, str, float, Callable[[Any], Callable[[], Any]]], ...] = (
            ("copy", "B/s", 2.0 * COPY_BYTES, _copy),
            ("read", "B/s", float(COPY_BYTES), _read),
            ("bf16", "FLOP/s", 2.0 * SIZE**3, _product("bfloat16")),
            ("f16", "FLOP/s", 2.0 * SIZE**3, _product("float16")),
            ("fp8", "FLOP/s", 2.0 * SIZE**3, _product_fp8),
            ("int8", "OP/s", 2.0 * SIZE**3, _product_int8),
        )
        ceilings = tuple(_ceiling(torch, *work, repeats) for work in works)
        major, minor = torch.cuda.get_device_capability(index)
        return Roofline(torch.cuda.get_device_name(index), f"{major}.{minor}", torch.__version__, ceilings)


def _ceiling(
    torch: Any, name: str, unit: str, amount: float, make: Callable[[Any], Callable[[], Any]], repeats: int
) -> Ceiling:
    try:
        work = make(torch)
        for _ in range(WARMUPS):
            work()
        times = [_timed_s(torch, work) for _ in range(repeats)]
    except Exception as error:  # a type that this device or torch lacks is a gap, whatever torch raises for it
        return Ceiling(name, unit, None, why=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    finally:
        torch.cuda.empty_cache()
    middle = statistics.median(times)
    return Ceiling(name, unit, amount / middle, spread=(max(times) - min(times)) / middle)


def _timed_s(torch: Any, work: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _copy(torch: Any) -> Callable[[], Any]:
    source = torch.randint(-(2**62), 2**62, (COPY_BYTES // 8,), device="cuda", dtype=torch.int64)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _read(torch: Any) -> Callable[[], Any]:
    source = torch.randn(COPY_BYTES // 4, device="cuda", dtype=torch.float32)
    return lambda: source.sum()


def _product(dtype: str) -> Callable[[Any], Callable[[], Any]]:
    def make(torch: Any) -> Callable[[], Any]:
        a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=getattr(torch, dtype)) for _ in range(2))
        return lambda: a @ b

    return make


def _product_fp8(torch: Any) -> Callable[[], Any]:
    a, b = (torch.randn(SIZE, SIZE, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda", dtype=torch.float32)
    return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _product_int8(torch: Any) -> Callable[[], Any]:
    a, b = (torch.randint(-127, 128, (SIZE, SIZE), device="cuda", dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b.t())


def to_json(roofline: Roofline) -> str:
    """As it is stored."""
    return json.dumps(asdict(roofline), indent=1)


def from_json(text: str) -> Roofline:
    """Back from :func:`to_json`.

    Raises:
        TelemetryError: it is no roofline.
    """
    try:
        data = json.loads(text)
        ceilings = tuple(Ceiling(**c) for c in data.pop("ceilings"))
        return Roofline(**data, ceilings=ceilings)
    except (ValueError, TypeError, KeyError) as error:
        raise TelemetryError(
            f"this is no roofline: {error}", hint="write one with qmeter.telemetry.roofline"
        ) from error
