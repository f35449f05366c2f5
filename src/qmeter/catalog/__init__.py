"""The catalog: quantization methods, models and devices as frozen data, and what follows from them."""

from qmeter.catalog.formats import CHECKPOINTS
from qmeter.catalog.hardware import Device
from qmeter.catalog.layout import KVFormat, Packing, WeightLayout
from qmeter.catalog.lookup import (
    device,
    device_from_nvml,
    devices,
    method,
    methods,
    model,
    models,
    why_not,
)
from qmeter.catalog.memory import MemoryFit, memory_fit
from qmeter.catalog.scheme import EngineFlags, Method, MethodClass, Paper
from qmeter.catalog.shape import Linear, ModelShape

__all__ = [
    "CHECKPOINTS",
    "Device",
    "EngineFlags",
    "KVFormat",
    "Linear",
    "MemoryFit",
    "Method",
    "MethodClass",
    "ModelShape",
    "Packing",
    "Paper",
    "WeightLayout",
    "device",
    "device_from_nvml",
    "devices",
    "memory_fit",
    "method",
    "methods",
    "model",
    "models",
    "why_not",
]
