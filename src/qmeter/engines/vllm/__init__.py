"""vLLM: launch, what it says of itself, metrics and iteration log. Written against vLLM 0.25.1.

The adapter is loaded late, so that vLLM's own processes can import :mod:`.steplog` from here and nothing else.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "VllmEngine":
        from qmeter.engines.vllm.adapter import VllmEngine

        return VllmEngine
    raise AttributeError(name)
