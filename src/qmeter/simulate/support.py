"""Whether a question lies inside what a calibration's records covered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qmeter.errors import AnalysisError
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.load import SimLoad, SimResult

NEAR = 1.05
"""Beyond the support by up to this factor is no extrapolation worth a word."""
REFUSE_SHARE = 0.05
"""Share of steps beyond the support from which a question is refused."""
FAR = 1.5
"""Factor beyond the support from which even few steps refuse the question."""


@dataclass(frozen=True)
class _Axis:
    what: str
    limit: float
    share: float
    most: float

    @property
    def refused(self) -> bool:
        """Whether too much of the question lies beyond what was measured."""
        return self.most > self.limit * NEAR and (self.share > REFUSE_SHARE or self.most > FAR * self.limit)


def check(calibration: Calibration, load: SimLoad, result: SimResult, *, allow: bool) -> tuple[str, ...]:
    """Notes on steps beyond the calibration's support, and on requests shorter or longer than any measured.

    Raises:
        AnalysisError: too much of the run lies beyond it and ``allow`` is off.
    """
    notes = _lengths(calibration, load)
    for axis in _axes(calibration, load, result):
        if axis.most <= axis.limit * NEAR:
            continue
        text = (f"{axis.what}: up to {axis.most:,.0f} asked, up to {axis.limit:,.0f} measured "
                f"({axis.share:.0%} of it beyond)")  # fmt: skip
        if not allow and axis.refused:
            raise AnalysisError(
                f"the calibration {calibration.label} does not cover this question: {text}",
                hint="measure a cell there and calibrate again, or allow extrapolation (intervals are then too narrow)",
            )
        notes.append(text)
    return tuple(notes)


def beyond(calibration: Calibration, load: SimLoad, result: SimResult) -> str | None:
    """The end of what was measured that a question lies beyond ("up to 96 sequences in a step"); ``None``: it is
    covered, as :func:`check` has it."""
    axis = next((a for a in _axes(calibration, load, result) if a.refused), None)
    return None if axis is None else f"up to {axis.limit:,.0f} {axis.what}"


def _lengths(calibration: Calibration, load: SimLoad) -> list[str]:
    """Notes on prompt and output lengths outside the measured ones; never a reason to refuse: steps are what counts."""
    s, notes = calibration.support, []
    for what, seen, asked in (("prompt", s.prompt_tokens, load.prompt), ("output", s.output_tokens, load.output)):
        if seen is None or not len(asked):
            continue
        share = float(np.mean((asked * NEAR < seen[0]) | (asked > seen[1] * NEAR)))
        if share > 0:
            span = _range(int(asked.min()), int(asked.max()))
            notes.append(f"{what} length in tokens: {span} asked, {_range(*seen)} measured ({share:.0%} outside)")
    return notes


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _axes(calibration: Calibration, load: SimLoad, result: SimResult) -> list[_Axis]:
    s = calibration.support
    axes = []
    lengths = (load.prompt + load.output).astype(np.float64)
    pairs = [("request length in tokens", float(s.longest_request_tokens), lengths)]
    d = result.detail
    if d is not None and len(d.step_s):
        pairs.append(("sequences in a step", float(s.sequences), d.step_running.astype(np.float64)))
        pairs.append(("tokens in a step", float(s.step_tokens), (d.step_decodes + d.step_prefill).astype(np.float64)))
        pairs.append(("KV tokens read in a step", s.kv_tokens, d.step_kv))
    for what, limit, values in pairs:
        if len(values):
            axes.append(_Axis(what, limit, float(np.mean(values > limit * NEAR)), float(values.max())))
    return axes
