"""Traffic between the GPUs of a deployment over the window: what tensor and pipeline parallelism move over NVLink."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from qmeter.analysis.energy import Series, reason
from qmeter.record import Quantity, SeriesInfo, Window

_GPU = re.compile(r"^(gpu\d+)\.")


def link_metrics(
    series: Series, info: Sequence[SeriesInfo], window: Window, output_tokens: float
) -> dict[str, Quantity]:
    """``nvlink_bytes_s`` and ``nvlink_bytes_per_token``; nothing where there are not two GPUs.

    Sent bytes are summed over the GPUs: what one sends another receives. Source: NVML's NVLink data counter, else
    GPM's mean rate between readings.
    """
    names = {m[1] for n in {*series, *(i.name for i in info)} if (m := _GPU.match(n))}
    gpus = sorted(names, key=lambda n: (len(n), n))
    if len(gpus) < 2:
        return {}
    rates = [_sent(gpu, series, info, window) for gpu in gpus]
    unknown = next((r for r in rates if r.value is None), None)
    if unknown is not None:
        rate = unknown
    else:
        notes = sorted({r.why for r in rates if r.why})
        rate = Quantity.of(sum(r.value or 0.0 for r in rates), "B/s", n=len(rates), why="; ".join(notes) or None)
    if rate.value is None:
        each = Quantity.unknown("B/token", rate.why or "unknown")
    elif output_tokens <= 0:
        each = Quantity.unknown("B/token", "no output token in the window")
    else:
        each = Quantity.of(rate.value * window.length_s / output_tokens, "B/token", n=int(output_tokens), why=rate.why)
    return {"nvlink_bytes_s": rate, "nvlink_bytes_per_token": each}


def _sent(gpu: str, series: Series, info: Sequence[SeriesInfo], window: Window) -> Quantity:
    key, other = f"{gpu}.nvlink_tx_bytes", f"{gpu}.gpm.nvlink_tx_bytes_s"
    if key in series:
        t_s, counted = series[key]
        if len(t_s) > 1 and t_s[0] <= window.start_s and t_s[-1] >= window.end_s and (np.diff(counted) >= 0).all():
            ends = np.interp([window.start_s, window.end_s], t_s, counted)
            return Quantity.of(float(ends[1] - ends[0]) / window.length_s, "B/s")
    if other in series:
        t_s, rate = series[other]
        inside = (t_s >= window.start_s) & (t_s < window.end_s)
        if inside.sum() > 1:
            return Quantity.of(float(rate[inside].mean()), "B/s", why="mean of GPM's rates, not counted")
    why = "its counter does not cover the window, or stepped back" if key in series else reason(key, info)
    return Quantity.unknown("B/s", f"{key}: {why}; {other}: {reason(other, info)}")
