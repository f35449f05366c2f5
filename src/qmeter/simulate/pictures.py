"""Pictures of a calibration: predicted against measured with intervals, residuals of steps, and coverage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qmeter.errors import MissingExtra
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.validate import Comparison

QUANTILES = np.linspace(0.005, 0.995, 100)
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def _altair() -> Any:
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingExtra("report", "pictures") from error
    return altair


def draw(rows: Sequence[Comparison], calibrations: Sequence[Calibration], folder: Path) -> list[Path]:
    """Write the pictures as SVG into ``folder`` and return their paths.

    Raises:
        MissingExtra: the report extra is not installed.
    """
    alt = _altair()
    folder.mkdir(parents=True, exist_ok=True)
    made = {"step-residuals": _residuals(alt, calibrations)}
    if rows:
        made |= {"predicted-measured": _against(alt, rows), "coverage": _coverage(alt, rows)}
    paths = []
    for name, chart in made.items():
        path = folder / f"{name}.svg"
        chart.save(str(path))
        paths.append(path)
    return paths


def _against(alt: Any, rows: Sequence[Comparison]) -> Any:
    data = [
        {"metric": r.metric, "measured": r.measured, "predicted": r.predicted, "low": r.low, "high": r.high,
         "deployment": r.deployment, "workload": r.workload}
        for r in rows
    ]  # fmt: skip
    base = alt.Chart().encode(x=alt.X("measured:Q", title="measured", scale=alt.Scale(zero=False)))
    line = alt.Chart().mark_line(color="#999", strokeDash=[4, 3]).encode(x="measured:Q", y=alt.Y("measured:Q"))
    bars = base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title="predicted"), y2="high:Q", color="deployment:N")
    points = base.mark_point(filled=True, size=45).encode(
        y=alt.Y("predicted:Q", title="predicted", scale=alt.Scale(zero=False)), color="deployment:N"
    )
    layered = alt.layer(line, bars, points, data=alt.Data(values=data)).properties(width=260, height=220)
    return layered.facet(facet=alt.Facet("metric:N", title=None), columns=3).resolve_scale(
        x="independent", y="independent"
    )


def _residuals(alt: Any, calibrations: Sequence[Calibration]) -> Any:
    data = []
    for c in calibrations:
        for kind, pool in (("decode steps", c.noise_decode), ("steps with prefill", c.noise_mixed)):
            ordered = np.quantile(np.asarray(pool), QUANTILES)
            data += [
                {"deployment": c.label, "kind": kind, "share": float(s), "ratio": float(v)}
                for s, v in zip(QUANTILES, ordered, strict=True)
            ]
    return (
        alt.Chart(alt.Data(values=data))
        .mark_line()
        .encode(
            x=alt.X("ratio:Q", title="measured / modelled step time", scale=alt.Scale(zero=False, clamp=True)),
            y=alt.Y("share:Q", title="share of steps at or below"),
            color="deployment:N",
            strokeDash="kind:N",
        )
        .properties(width=460, height=280)
    )


def _coverage(alt: Any, rows: Sequence[Comparison]) -> Any:
    """Share of measurements inside intervals of each level, the intervals scaled as a normal's."""
    from qmeter.simulate.predict import CONFIDENCE, normal_quantile

    unit = normal_quantile((1 + CONFIDENCE) / 2)
    data = []
    for metric in dict.fromkeys(r.metric for r in rows):
        own = [r for r in rows if r.metric == metric]
        for level in LEVELS:
            scale = normal_quantile((1 + level) / 2) / unit
            inside = [abs(r.measured - r.predicted) <= scale * max((r.high - r.low) / 2, 1e-12) for r in own]
            data.append({"metric": metric, "level": level, "inside": float(np.mean(inside))})
    line = alt.Chart(alt.Data(values=[{"level": v} for v in LEVELS])).mark_line(color="#999", strokeDash=[4, 3])
    seen = alt.Chart(alt.Data(values=data)).mark_line(point=True)
    return (
        line.encode(x="level:Q", y="level:Q")
        + seen.encode(
            x=alt.X("level:Q", title="asked coverage", axis=alt.Axis(format="%")),
            y=alt.Y("inside:Q", title="measurements inside", axis=alt.Axis(format="%")),
            color="metric:N",
        )
    ).properties(width=360, height=300)
