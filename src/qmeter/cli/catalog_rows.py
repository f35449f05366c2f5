"""The catalog's rows as plain data (``--json``) and as table cells."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.markup import escape

from qmeter import catalog
from qmeter.catalog import Device, EngineFlags, Method, ModelShape

MODEL_COLUMNS = ("model", "parameters", "hidden", "layers", "heads/KV", "MLP", "vocabulary", "tied", "16-bit GiB",
                 "KV kB/token", "longest", "from")  # fmt: skip
DEVICE_COLUMNS = ("device", "memory GiB", "GB/s", "dense Tera-op/s", "TDP W", "capability", "source")


def methods_of(engine: str) -> list[str]:
    """Names of the methods that the catalog has flags for on ``engine``."""
    return [m.name for m in catalog.methods() if engine in m.engines]


def method_data(method: Method, why_not: str | None, shape: ModelShape | None, engine: str | None) -> dict[str, Any]:
    """A method as plain data; bytes only where a model is named."""
    data: dict[str, Any] = {
        "name": method.name,
        "title": method.title,
        "class": method.kind.value,
        "weights": {"type": method.weight_type, "bits": method.weight_bits, "group_size": method.group_size,
                    "symmetric": method.symmetric},
        "activations": {"type": method.activation_type, "bits": method.activation_bits},
        "kv_cache": {"type": method.kv_type, "bits": method.kv_bits},
        "calibration": method.calibration,
        "format": method.format,
        "paper": {"title": method.paper.title, "url": method.paper.url} if method.paper else None,
        "engines": {name: _flags_data(flags) for name, flags in method.engines.items()},
        "note": method.note,
        "runs": why_not is None,
        "why_not": why_not,
    }  # fmt: skip
    if shape is not None:
        data["model"] = shape.name
        data["weight_bytes"] = method.expected_weight_bytes(shape, engine)
        data["kv_bytes_per_token"] = method.kv_bytes_per_token(shape, engine)
    return data


def _flags_data(flags: EngineFlags) -> dict[str, Any]:
    named = ("checkpoint", "args", "load_args", "env", "properties", "kernels", "min_capability", "max_capability",
             "needs", "note")  # fmt: skip
    return {name: getattr(flags, name) for name in named}


WIDE_ONLY = ("class", "calibration", "needs")
"""Columns of the methods that a narrow terminal leaves out."""


def method_columns(shape: ModelShape | None, every: bool) -> list[str]:
    """Headings of the methods table."""
    columns = ["method", "class", "weights", "activations", "KV", "group", "calibration", "engines"]
    if shape is not None:
        columns += [f"{shape.name} GiB", "KV kB/token"]
    return [*columns, *(["why not"] if every else ["needs"])]


def method_row(
    method: Method, why_not: str | None, shape: ModelShape | None, engine: str | None, every: bool
) -> list[str]:
    """One line of the methods table."""
    group = {None: "", -1: "channel", 0: "tensor"}.get(method.group_size, str(method.group_size))
    able = [name for name in method.engines if name != "endpoint"]
    cells = [method.name, method.kind.value, method.weight_type, method.activation_type, method.kv_type, group,
             "yes" if method.calibration else "no", ", ".join(able)]  # fmt: skip
    if shape is not None:
        cells += [f"{method.expected_weight_bytes(shape, engine) / 2**30:.2f}",
                  f"{method.kv_bytes_per_token(shape, engine) / 1e3:.1f}"]  # fmt: skip
    last = (why_not or "") if every else _needs(method, engine)
    return [escape(cell) for cell in (*cells, last)]


def _needs(method: Method, engine: str | None) -> str:
    found = {}
    for name, flags in method.engines.items():
        if engine in (None, name) and (flags.min_capability or flags.needs):
            found[name] = ", ".join([*([f"capability {flags.capability_range}"] if flags.min_capability else []),
                                     *flags.needs])  # fmt: skip
    if engine is not None:
        return found.get(engine, "")
    return "; ".join(f"{name}: {text}" for name, text in found.items())


def model_data(shape: ModelShape) -> dict[str, Any]:
    """A model as plain data."""
    plain = catalog.method("bf16")
    rope = dict(shape.rope_scaling) if shape.rope_scaling else None
    return {
        **asdict(shape),
        "rope_scaling": rope,
        "params": shape.params,
        "weight_bytes_16bit": plain.expected_weight_bytes(shape),
        "kv_bytes_per_token_16bit": shape.kv_bytes_per_token(16),
    }


def model_row(shape: ModelShape) -> list[str]:
    """One line of the models table."""
    data = model_data(shape)
    return [shape.name, f"{shape.params:,}", str(shape.hidden), str(shape.layers), f"{shape.heads}/{shape.kv_heads}",
            str(shape.intermediate), str(shape.vocab), "yes" if shape.tied_embeddings else "no",
            f"{data['weight_bytes_16bit'] / 2**30:.2f}", f"{data['kv_bytes_per_token_16bit'] / 1e3:.1f}",
            str(shape.max_positions), shape.hf_id]  # fmt: skip


def device_data(device: Device) -> dict[str, Any]:
    """A device as plain data; an unknown number is null and ``unknown`` says why."""
    return asdict(device)


def device_row(device: Device) -> list[str]:
    """One line of the devices table; "unknown" where the catalog has no single number."""
    rates = ", ".join(f"{kind} {rate / 1e12:g}" for kind, rate in device.rates_op_s.items())
    capability = ".".join(map(str, device.compute_capability)) if device.compute_capability else "none"
    return [device.name, _or_unknown(device.memory_bytes, 2**30), _or_unknown(device.bandwidth_bytes_s, 1e9),
            rates or "unknown", _or_unknown(device.tdp_w, 1), capability,
            "; ".join(device.sources) or device.unknown.get("memory_bytes", "")]  # fmt: skip


def _or_unknown(value: float | None, scale: float) -> str:
    return "unknown" if value is None else f"{value / scale:.4g}"
