"""Engine knobs on a calibrated deployment: the scheduler's rules as another configuration would have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qmeter import catalog
from qmeter.errors import AnalysisError
from qmeter.simulate.calibration import Calibration, plain

Value = str | int | float | bool

RULES = {
    "max_sequences": int, "token_budget": int, "max_model_tokens": int, "kv_blocks": int, "prefix_cache": bool,
    "chunked_prefill": bool, "async_scheduling": bool,
}  # fmt: skip
"""Knobs that are rules of the simulated scheduler, and their type."""
FREE = ("step_log", "cuda_graph_sizes", "gpu_memory_fraction", "steps", "kv_block_tokens")
"""Knobs that the simulator keeps as the calibration has them, without a word."""


def with_knobs(calibration: Calibration, options: Mapping[str, Value]) -> tuple[Calibration, tuple[str, ...]]:
    """The calibration under other engine knobs, and the knobs that the simulator knows nothing of.

    The KV-block count stays the measured one unless ``kv_blocks`` or ``kv_cache_gib`` says otherwise.

    Raises:
        AnalysisError: no scheduler can run so, or (vLLM) a prompt could never be scheduled.
    """
    rules = calibration.scheduler()
    changes = {name: RULES[name](value) for name, value in options.items() if name in RULES}
    if gib := options.get("kv_cache_gib"):
        d = calibration.deployment
        each = catalog.method(d["method"]).kv_bytes_per_token(catalog.model(d["shape"]), d["engine"])
        changes["kv_blocks"] = max(2, int(float(gib) * 2**30 / (each * rules.block_tokens)))
    made = replace(rules, **changes)
    if calibration.deployment["engine"] == "vllm" and not made.chunked_prefill:
        longest = made.max_model_tokens or 0
        if made.token_budget < longest:
            raise AnalysisError(
                f"without chunked prefill vLLM needs a token_budget of at least max_model_tokens, {longest}",
                hint="raise token_budget, or leave chunked_prefill on",
            )
    silent = tuple(n for n in options if n not in RULES and n not in FREE and n != "kv_cache_gib" and "." not in n)
    return calibration.model_copy(update={"rules": plain(made)}), silent
