"""Energy over the window: cumulative counters as the source, integrated power as the cross-check, never 0 for unknown.

A counter is read as a staircase: it moves every refresh period (about 100 ms for NVML), so a reading is stale by up to
that long. Readings are interpolated at the window's edges, and the two stale edges bound the error of the difference:
``low``/``high`` of an energy are that bound (refresh period × highest local power), not a confidence interval. Of a
ratio (J/token) they hold the bound plus the batch-to-batch spread inside the window.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qmeter.analysis.refresh import with_news
from qmeter.analysis.stats import F64, t_quantile
from qmeter.record import Quantity, Reason, SeriesInfo, Telemetry, Window

CROSS_CHECK = 0.02
"""Counter and integrated power must agree within this share."""
AVERAGED_S = 1.0
"""NVML's averaged power is the mean of this long before its reading (Ampere and newer). Units: s."""
EDGE_GAP_S = 1.0
"""Longest stretch without a reading at an edge of the window."""
BATCHES = 10
"""Parts of the window whose J/token give the ratio's spread."""

INTEGRATED = "integrated from sampled power, not counted"
"""How the caveat of an energy without a counter begins."""

Series = dict[str, tuple[F64, F64]]


@dataclass(frozen=True)
class Counter:
    """A cumulative energy counter over the window, steps back mended.

    Attributes:
        t_s, energy_j: readings, energy from the first reading on, never falling.
        refresh_s: how often the counter moves, as seen in its readings.
        mended: steps back (wrap or reset) bridged with the power around them.
    """

    t_s: F64
    energy_j: F64
    refresh_s: float
    mended: int

    def at(self, t_s: F64 | float) -> F64:
        """Energy at given times by linear interpolation. Units: J."""
        return np.asarray(np.interp(t_s, self.t_s, self.energy_j), dtype=np.float64)

    def bound_j(self, window: Window) -> float:
        """Most that the difference over the window can be wrong by: one refresh period at the higher edge power."""
        powers = []
        for edge in (window.start_s, window.end_s):
            span = np.array([edge - 2 * self.refresh_s, edge + 2 * self.refresh_s])
            span = np.clip(span, self.t_s[0], self.t_s[-1])
            if span[1] > span[0]:
                powers.append(float(np.diff(self.at(span))[0]) / float(span[1] - span[0]))
        return self.refresh_s * max(powers, default=0.0)


def counter(t_s: F64, value: F64, window: Window) -> Counter | str:
    """The counter's readings made usable, or why they are not."""
    fault = _coverage(t_s, window)
    if fault:
        return fault
    steps, gaps = np.diff(value), np.diff(t_s)
    back = steps < 0
    if back.any():
        good = ~back & (gaps > 0)
        power = float(steps[good].sum() / gaps[good].sum()) if good.any() else 0.0
        steps = np.where(back, power * gaps, steps)
    energy = np.concatenate([[0.0], np.cumsum(steps)])
    inside = (t_s >= window.start_s) & (t_s <= window.end_s)
    if inside.sum() >= 2 and float(np.ptp(energy[inside])) == 0.0:
        return f"the counter did not move in the window ({int(inside.sum())} readings, all the same): it is stuck"
    moved = t_s[1:][steps > 0]
    refresh = float(np.median(np.diff(moved))) if len(moved) > 2 else float(np.median(gaps))
    return Counter(t_s, energy, max(refresh, float(np.median(gaps)) if len(gaps) else 0.0), int(back.sum()))


def _coverage(t_s: F64, window: Window) -> str | None:
    if len(t_s) < 3:
        return f"only {len(t_s)} readings"
    before, after = float(t_s[0]) - window.start_s, window.end_s - float(t_s[-1])
    if before > 0 or after > 0:
        span = f"{window.start_s:.2f} to {window.end_s:.2f} s"
        return f"readings run from {t_s[0]:.2f} to {t_s[-1]:.2f} s, the window from {span}"
    for edge in (window.start_s, window.end_s):
        k = int(np.searchsorted(t_s, edge))
        if 0 < k < len(t_s) and float(t_s[k] - t_s[k - 1]) > EDGE_GAP_S:
            return f"no reading for {t_s[k] - t_s[k - 1]:.1f} s at the window's edge"
    return None


def integrated_j(t_s: F64, power_w: F64, window: Window) -> float | str:
    """Trapezoid integral of instant power over the window, edges interpolated; or why there is none. Units: J."""
    fault = _coverage(t_s, window)
    if fault:
        return fault
    inside = (t_s > window.start_s) & (t_s < window.end_s)
    edges = np.interp([window.start_s, window.end_s], t_s, power_w)
    t = np.concatenate([[window.start_s], t_s[inside], [window.end_s]])
    p = np.concatenate([[edges[0]], power_w[inside], [edges[1]]])
    return float(np.trapezoid(p, t))


@dataclass(frozen=True)
class DeviceEnergy:
    """One device's energy over the window: the quantity, the cumulative curve behind it where there is one, checks."""

    name: str
    energy: Quantity
    bound_j: float
    curve: Counter | None
    warnings: tuple[Reason, ...]
    checks: Mapping[str, Quantity] = field(default_factory=dict)
    """``integrated_ratio`` and ``averaged_ratio``: integrated instant and averaged power over the counter's energy."""


def device_energy(name: str, series: Series, info: Sequence[SeriesInfo], window: Window) -> DeviceEnergy:
    """Energy of one device (``gpu0``, ``cpu``) from its counter, else from its power, else unknown with the reason."""
    key, power_key = f"{name}.energy_j", f"{name}.power_w"
    read = counter(*series[key], window) if key in series else reason(key, info)
    integral = integrated_j(*series[power_key], window) if power_key in series else reason(power_key, info)
    if isinstance(read, str):
        if isinstance(integral, str):
            offered = any(s.name == power_key for s in info) or power_key in series
            why = f"{key}: {read}" + (f"; {power_key}: {integral}" if offered else "")
            return DeviceEnergy(name, Quantity.unknown("J", why), 0.0, None, ())
        why = f"{INTEGRATED} ({key}: {read})"
        curve = _power_curve(*series[power_key])
        return DeviceEnergy(name, Quantity.of(integral, "J", why=why), 0.0, curve, ())
    edges = read.at(np.array([window.start_s, window.end_s]))
    energy, bound = float(edges[1] - edges[0]), read.bound_j(window)
    warnings = []
    if read.mended:
        message = f"{key} stepped back {read.mended} times (wrap or reset); bridged with the mean power"
        warnings.append(Reason(kind="energy_counter_reset", stage="analyse", message=message))
    checks = _checks(name, series, info, window, energy)
    if not isinstance(integral, str) and energy > 0 and abs(integral / energy - 1) > CROSS_CHECK:
        noise = _reading_noise(*series[power_key], window)
        warnings.append(_disagreement(name, energy, integral, noise, checks["averaged_ratio"]))
    why = f"bound from the counter's refresh period of {read.refresh_s * 1000:.0f} ms"
    quantity = Quantity.of(energy, "J", low=max(0.0, energy - bound), high=energy + bound, why=why)
    return DeviceEnergy(name, quantity, bound, read, tuple(warnings), checks)


def _checks(
    name: str, series: Series, info: Sequence[SeriesInfo], window: Window, energy: float
) -> dict[str, Quantity]:
    """Both integrals of power over the counter's energy, which should be 1."""
    out = {}
    for check, key, lag_s in (
        ("integrated_ratio", f"{name}.power_w", 0.0),
        ("averaged_ratio", f"{name}.average_power_w", AVERAGED_S / 2),
    ):
        if key not in series:
            out[check] = Quantity.unknown("1", f"{key}: {reason(key, info)}")
            continue
        t_s, power_w = series[key]
        found = integrated_j(t_s - lag_s, power_w, window)
        if isinstance(found, str) or energy <= 0:
            out[check] = Quantity.unknown("1", found if isinstance(found, str) else "no energy in the window")
        else:
            out[check] = Quantity.of(found / energy, "1", n=int(np.count_nonzero(np.diff(power_w)) + 1))
    return out


def _disagreement(name: str, energy: float, integral: float, noise: float, averaged: Quantity) -> Reason:
    off = integral / energy - 1
    other = "" if averaged.value is None else f"; power averaged over each second gives {averaged.value - 1:+.1%}"
    chance = "which the spread of the power readings explains" if abs(off) <= 2 * noise else "beyond their spread"
    return Reason(
        kind="energy_cross_check",
        stage="analyse",
        message=f"{name}: integrated power gives {off:+.1%} against the energy counter "
        f"({integral:.4g} J, {energy:.4g} J), {chance} (standard error {noise:.1%}){other}; "
        f"they must agree within {CROSS_CHECK:.0%}",
        hint="lengthen the window (reading power faster than the driver refreshes it tells no more), "
        "or look for another job on the device",
    )


def _reading_noise(t_s: F64, power_w: F64, window: Window) -> float:
    """Relative standard error of a mean of readings drawn by chance, repeated readings counted once."""
    inside = power_w[(t_s > window.start_s) & (t_s < window.end_s)]
    fresh = inside[np.concatenate([[True], np.diff(inside) != 0])] if len(inside) else inside
    mean = float(fresh.mean()) if len(fresh) else 0.0
    return float(fresh.std(ddof=1) / math.sqrt(len(fresh))) / mean if len(fresh) > 1 and mean > 0 else 0.0


def _power_curve(t_s: F64, power_w: F64) -> Counter:
    steps = np.diff(t_s) * (power_w[1:] + power_w[:-1]) / 2
    return Counter(t_s, np.concatenate([[0.0], np.cumsum(steps)]), float(np.median(np.diff(t_s))), 0)


def reason(key: str, info: Sequence[SeriesInfo]) -> str:
    """Why a series has no readings, in the sampler's words."""
    named = next((s for s in info if s.name == key), None)
    if named is None:
        return "no sampler gives it on this host"
    return named.gap or "it was sampled but gave no reading"


def devices(series: Series, info: Sequence[SeriesInfo], prefix: str = "gpu") -> list[str]:
    """Names of the devices that telemetry knows (with readings or with a gap), ``gpu0`` first."""
    names = {s.name for s in info} | set(series)
    found = {m[1] for n in names if (m := re.match(rf"({prefix}\d*)\.(?:energy_j|power_w)$", n))}
    return sorted(found, key=lambda n: (len(n), n))


@dataclass(frozen=True)
class Work:
    """What the window's energy is divided by, and the token times for its spread inside the window."""

    output_tokens: float
    total_tokens: float
    requests: float
    e2e_mean_s: Quantity
    token_t_s: F64
    token_n: F64


def energy_metrics(
    telemetry: Telemetry,
    info: Sequence[SeriesInfo],
    window: Window,
    work: Work,
    *,
    idle_power: Quantity | None,
    confidence: float,
) -> tuple[dict[str, Quantity], list[Reason]]:
    """All energy quantities of a cell and the warnings on them.

    ``energy_j`` sums the GPUs where there are any, else it is the CPU package's; each device also stands alone
    (``gpu0.energy_j``, ``cpu.energy_j``).
    """
    series = grouped(telemetry)
    gpus = [device_energy(n, series, info, window) for n in devices(series, info)]
    cpu = device_energy("cpu", series, info, window)
    parts = gpus or [cpu]
    out = {f"{d.name}.energy_j": d.energy for d in [*gpus, cpu]}
    out |= {f"{d.name}.{check}": q for d in gpus for check, q in d.checks.items()}
    warnings = [w for d in [*gpus, cpu] for w in d.warnings]
    total = _summed(parts, gpu=bool(gpus))
    out["energy_j"] = total
    out |= _power(series, [d.name for d in parts], total, window, info)
    out |= _per_work(total, parts, window, work, confidence)
    out |= _idle(total, idle_power, window)
    return out, warnings


def grouped(telemetry: Telemetry) -> Series:
    """Series name → (t_s, value) in time order; NaN readings and GPM readings without news are left out."""
    names, member = np.unique(telemetry.series.astype(str), return_inverse=True)
    order = np.lexsort((telemetry.t_s, member))
    splits = np.searchsorted(member[order], np.arange(1, len(names)))
    made = {}
    for name, rows in zip(names, np.split(order, splits), strict=True) if len(names) else ():
        rows = rows[~np.isnan(telemetry.value[rows])]
        if len(rows):
            made[str(name)] = (telemetry.t_s[rows], telemetry.value[rows])
    return with_news(made)


def _summed(parts: list[DeviceEnergy], *, gpu: bool) -> Quantity:
    missing = [d for d in parts if not d.energy.known]
    if missing:
        if not gpu:
            return Quantity.unknown("J", f"this host gives no energy reading: {missing[0].energy.why}")
        return Quantity.unknown("J", missing[0].energy.why or "unknown")
    value = sum(d.energy.value or 0.0 for d in parts)
    bound = sum(d.bound_j for d in parts)
    scope = "GPU boards only: host CPU, memory and power supply not included" if gpu else "CPU package only"
    notes = sorted({d.energy.why for d in parts if d.energy.why})
    low, high = (max(0.0, value - bound), value + bound) if bound else (None, None)
    return Quantity.of(value, "J", low=low, high=high, n=len(parts), why="; ".join([scope, *notes]))


def _power(
    series: Series, names: list[str], total: Quantity, window: Window, info: Sequence[SeriesInfo]
) -> dict[str, Quantity]:
    mean = scaled(total, 1 / window.length_s, "W")
    keys = [f"{n}.power_w" for n in names]
    absent = [k for k in keys if k not in series]
    if absent:
        return {"power_mean_w": mean, "power_peak_w": Quantity.unknown("W", f"{absent[0]}: {reason(absent[0], info)}")}
    grid = np.unique(np.concatenate([series[k][0] for k in keys]))
    grid = grid[(grid >= window.start_s) & (grid < window.end_s)]
    if not len(grid):
        return {"power_mean_w": mean, "power_peak_w": Quantity.unknown("W", "no power reading in the window")}
    summed = np.sum([np.interp(grid, *series[k]) for k in keys], axis=0)
    peak = Quantity.of(float(summed.max()), "W", n=len(grid), why="highest reading; shorter peaks are not seen")
    return {"power_mean_w": mean, "power_peak_w": peak}


def scaled(q: Quantity, factor: float, unit: str) -> Quantity:
    """A quantity times an exact factor, its bounds too; unknown stays unknown for the same reason."""
    if q.value is None:
        return Quantity.unknown(unit, q.why or "unknown", n=q.n)
    low, high = (None if b is None else b * factor for b in (q.low, q.high))
    return Quantity.of(q.value * factor, unit, low=low, high=high, n=q.n, why=q.why)


def _per_work(
    total: Quantity, parts: list[DeviceEnergy], window: Window, work: Work, confidence: float
) -> dict[str, Quantity]:
    units = {
        "j_per_output_token": (work.output_tokens, "J/token", "output token"),
        "j_per_total_token": (work.total_tokens, "J/token", "token"),
        "j_per_request": (work.requests, "J/request", "finished request"),
    }
    spread = _ratio_spread(parts, window, work, confidence)
    caveat = INTEGRATED if any((d.energy.why or "").startswith(INTEGRATED) for d in parts) else None
    out = {}
    for name, (count, unit, what) in units.items():
        if total.value is None:
            out[name] = Quantity.unknown(unit, total.why or "unknown")
        elif count <= 0:
            out[name] = Quantity.unknown(unit, f"no {what} in the window")
        else:
            value = total.value / count
            bound = (total.high - total.value) / total.value if total.high is not None and total.value > 0 else 0.0
            half = value * (bound + spread) if spread is not None else None
            low, high = (None, None) if half is None else (max(0.0, value - half), value + half)
            out[name] = Quantity.of(value, unit, low=low, high=high, n=int(count), why=caveat)
    e2e = work.e2e_mean_s
    per = out["j_per_request"]
    if per.value is None or e2e.value is None:
        why = per.why if per.value is None else e2e.why
        out["edp_j_s"] = Quantity.unknown("J·s", why or "unknown")
    else:
        out["edp_j_s"] = Quantity.of(per.value * e2e.value, "J·s", n=per.n, why="energy per request × mean E2E")
    return out


def _ratio_spread(parts: list[DeviceEnergy], window: Window, work: Work, confidence: float) -> float | None:
    """Relative half-width of J/token from batches of the window (ratio estimator, Cochran 1977, section 6)."""
    edges = np.linspace(window.start_s, window.end_s, BATCHES + 1)
    tokens, _ = np.histogram(work.token_t_s, bins=edges, weights=work.token_n)
    curves = [d.curve for d in parts]
    if tokens.sum() <= 0 or any(c is None for c in curves):
        return None
    energy = np.sum([np.diff(c.at(edges)) for c in curves if c is not None], axis=0)
    ratio = float(energy.sum() / tokens.sum())
    if ratio <= 0:
        return None
    rest = energy - ratio * tokens
    error = math.sqrt(BATCHES / (BATCHES - 1) * float(rest @ rest)) / float(tokens.sum())
    return t_quantile(0.5 + confidence / 2, BATCHES - 1) * error / ratio


def _idle(total: Quantity, idle: Quantity | None, window: Window) -> dict[str, Quantity]:
    if idle is None or idle.value is None:
        why = idle.why if idle is not None and idle.why else "no idle baseline was measured"
        return {
            "idle_power_w": Quantity.unknown("W", why),
            "energy_above_idle_j": Quantity.unknown("J", total.why or why if total.value is None else why),
        }
    if total.value is None or idle.value is None:
        return {"idle_power_w": idle, "energy_above_idle_j": Quantity.unknown("J", total.why or "unknown")}
    base = idle.value * window.length_s
    low, high = (None if b is None else b - base for b in (total.low, total.high))
    above = f"above {idle.value:.0f} W {idle.why}" if idle.why else None
    return {
        "idle_power_w": idle,
        "energy_above_idle_j": Quantity.of(total.value - base, "J", low=low, high=high, why=above),
    }
