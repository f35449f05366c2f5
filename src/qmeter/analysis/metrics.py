"""What each quantity of a record is: label, unit, which way is better, and its definition; one row each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Better(StrEnum):
    """Which way an improvement goes; NEITHER for what only describes."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"


@dataclass(frozen=True)
class Metric:
    """One quantity's meaning, for tables, charts and definitions."""

    name: str
    label: str
    unit: str
    better: Better
    definition: str


def _latency(name: str, label: str, definition: str) -> list[Metric]:
    rows = [Metric(f"{name}_mean_s", f"{label} mean", "s", Better.LOWER, f"Mean of: {definition}")]
    for p in (50, 90, 95, 99):
        text = f"{p}th percentile of: {definition}"
        rows.append(Metric(f"{name}_p{p}_s", f"{label} p{p}", "s", Better.LOWER, text))
    return rows


_ROWS = [
    *_latency("ttft", "TTFT", "time from the intended send to the first token, over requests due in the window"),
    *_latency("ttft_from_sent", "TTFT from send", "time from the actual send to the first token (service side only)"),
    *_latency("tpot", "TPOT", "a request's time from first to last token over the tokens after its first event"),
    *_latency("itl", "ITL", "gap between tokens of one request that end in the window; n tokens in one event share it"),
    *_latency("e2e", "E2E", "time from the intended send to the last token"),
    Metric("throughput_tok_s", "Output rate", "token/s", Better.HIGHER, "Output tokens that arrived in the window"),
    Metric("total_tok_s", "Total rate", "token/s", Better.HIGHER,
           "Output tokens that arrived plus prompt tokens of requests whose first token arrived in the window"),
    Metric("request_rate_hz", "Requests done", "1/s", Better.HIGHER, "Requests that ended well in the window"),
    Metric("offered_rate_hz", "Requests due", "1/s", Better.NEITHER, "Requests due in the window"),
    Metric("goodput_hz", "Goodput", "1/s", Better.HIGHER,
           "SLO attainment times the rate of requests due over the planned window"),
    Metric("slo_attainment", "SLO attainment", "1", Better.HIGHER,
           "Share of the requests due in the window that finished inside every limit of the SLO"),
    Metric("failed_share", "Failed", "1", Better.LOWER, "Share of requests due that failed or did not finish"),
    Metric("in_flight_mean", "In flight", "1", Better.NEITHER, "Mean number of requests open, as the client sees it"),
    Metric("running_mean", "Running", "1", Better.NEITHER, "Mean number of sequences the engine says it runs"),
    Metric("waiting_mean", "Waiting", "1", Better.NEITHER, "Mean number of sequences the engine says wait"),
    Metric("kv_use_max", "KV use, highest", "1", Better.NEITHER, "Highest share of KV-cache blocks in use"),
    Metric("memory_peak_bytes", "Memory, highest", "B", Better.LOWER,
           "Highest memory in use: GPU memory where there is a GPU, else the engine's resident memory"),
    Metric("nvlink_bytes_s", "NVLink traffic", "B/s", Better.LOWER,
           "Bytes sent over NVLink a second, summed over the deployment's GPUs"),
    Metric("nvlink_bytes_per_token", "NVLink traffic per token", "B/token", Better.LOWER,
           "Bytes sent over NVLink in the window over its output tokens"),
    Metric("energy_j", "Energy", "J", Better.LOWER,
           "Energy of the serving devices over the window, from their counters (GPUs, else the CPU package)"),
    Metric("integrated_ratio", "Integrated power", "1", Better.NEITHER,
           "Integral of the sampled instant power over the energy counter's difference; should be 1 within 2%"),
    Metric("averaged_ratio", "Averaged power", "1", Better.NEITHER,
           "Integral of the driver's one-second mean power, taken half a second earlier, over the energy counter's"),
    Metric("j_per_output_token", "Energy per output token", "J/token", Better.LOWER,
           "energy_j over the output tokens that arrived in the window"),
    Metric("j_per_total_token", "Energy per token", "J/token", Better.LOWER, "energy_j over output and prompt tokens"),
    Metric("j_per_request", "Energy per request", "J/request", Better.LOWER,
           "energy_j over the requests that ended well in the window"),
    Metric("power_mean_w", "Power, mean", "W", Better.LOWER, "energy_j over the window's length"),
    Metric("power_peak_w", "Power, highest", "W", Better.LOWER, "Highest sampled power in the window"),
    Metric("idle_power_w", "Power, idle", "W", Better.NEITHER, "Mean power before the deployment was started"),
    Metric("idle_sm_clock_hz", "SM clock, idle", "Hz", Better.NEITHER,
           "Mean SM clock of its GPUs while the idle power was taken"),
    Metric("idle_temperature_c", "Temperature, idle", "°C", Better.NEITHER,
           "Mean temperature of its GPUs while the idle power was taken"),
    Metric("idle_memory_used_bytes", "GPU memory, idle", "B", Better.NEITHER,
           "Mean memory in use on its GPUs while the idle power was taken: a context shows there"),
    Metric("idle_processes", "GPU processes, idle", "1", Better.NEITHER,
           "Processes with a context on its GPUs, as the driver lists them just after the idle power was taken"),
    Metric("idle_standbys", "Started ahead, idle", "1", Better.NEITHER,
           "Programs started ahead, to become the next server, that were alive while the idle power was taken"),
    Metric("energy_above_idle_j", "Energy above idle", "J", Better.LOWER, "energy_j less idle power × window"),
    Metric("edp_j_s", "Energy-delay product", "J·s", Better.LOWER, "Energy per request × mean E2E"),
    Metric("weight_bytes", "Weights", "B", Better.LOWER, "Bytes of weights loaded, as the engine reports them"),
    Metric("kv_capacity_tokens", "KV capacity", "token", Better.HIGHER, "KV-cache blocks × tokens a block, measured"),
    Metric("ppl_ratio", "Perplexity ratio", "1", Better.LOWER,
           "Perplexity of the reference's own continuations on this deployment over that on the reference"),
    Metric("logprob_gap", "Log-probability gap", "nat/token", Better.LOWER,
           "Mean drop in log-probability of the reference's tokens; above 0 is worse"),
    Metric("kl_sampled", "KL, sampled", "nat/token", Better.LOWER,
           "KL divergence from the reference, on its sampled continuations"),
    Metric("kl_topk", "KL, top-k", "nat/token", Better.LOWER, "KL divergence over top-k lists: a lower bound"),
    Metric("top1_agreement", "Top-1 agreement", "1", Better.HIGHER,
           "Share of positions where deployment and reference give the same best next token"),
    Metric("greedy_agreement", "Greedy agreement", "1", Better.HIGHER,
           "Share of tokens that agree in free-running greedy text, up to the first difference"),
    Metric("first_divergence_tokens", "First divergence", "token", Better.HIGHER,
           "Mean position of the first difference in free-running greedy text"),
    Metric("changed_share", "Changed answers", "1", Better.LOWER,
           "Share of greedy continuations that differ from the reference's anywhere"),
    Metric("decode_logprob_gap", "Decode log-probability gap", "nat/token", Better.LOWER,
           "Log-probability gap of generated tokens before the first difference (reads the quantized KV cache)"),
]  # fmt: skip

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
"""Name → meaning. Names with a device or task in them: see :func:`metric`."""


def metric(name: str, unit: str = "1") -> Metric:
    """The row of ``name``; device parts (``gpu0.energy_j``) and task scores (``task.<name>.accuracy``) are derived."""
    if name in METRICS:
        return METRICS[name]
    head, _, tail = name.rpartition(".")
    if name.startswith("task."):
        parts = name.split(".")
        label = " ".join(parts[1:]).replace("_", " ")
        if parts[-1] == "changed_text":
            text = f"Share of answers of the task {parts[1]!r} that read differently when asked again alone"
            return Metric(name, label, unit, Better.NEITHER, text)
        return Metric(name, label, unit, Better.HIGHER, f"Score of the task {parts[1]!r}, graded under the load")
    if tail in METRICS:
        row = METRICS[tail]
        return Metric(name, f"{row.label}, {head}", row.unit, row.better, f"{row.definition}; {head} alone")
    return Metric(name, name.replace("_", " "), unit, Better.NEITHER, "")
