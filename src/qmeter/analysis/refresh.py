"""GPM readings that lie between two refreshes of the counters: NVML answers 0 for them, which is no measurement."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from qmeter.analysis.stats import F64

REFRESH_S = 0.1
"""Time between two refreshes of GPM's counters (H100 and H200, driver 580). Units: s."""
_GPM = re.compile(r"^(gpu\d+)\.gpm\.")


def with_news(series: Mapping[str, tuple[F64, F64]]) -> dict[str, tuple[F64, F64]]:
    """The series without GPM readings that had no news.

    Records made at 20 Hz before the sampler left them out hold a 0 in every second reading of each metric but the
    DRAM's, so their means come out at half. Left out is a reading whose every metric is 0, within one and a half
    :data:`REFRESH_S` of one that is not; longer stretches of zeros are believed.
    """
    made = dict(series)
    for gpu in {m[1] for name in series if (m := _GPM.match(name))}:
        names = [name for name in series if name.startswith(f"{gpu}.gpm.")]
        told = np.unique(np.concatenate([series[n][0][series[n][1] != 0.0] for n in names]))
        for name in names:
            t_s, value = series[name]
            silent = ~np.isin(t_s, told) & (_distance(t_s, told) <= 1.5 * REFRESH_S)
            made[name] = (t_s[~silent], value[~silent])
    return made


def _distance(t_s: F64, told: F64) -> F64:
    """Time from each to the nearest of ``told``; infinite where there is none. Units: s."""
    if not len(told):
        return np.full(len(t_s), np.inf)
    after = np.searchsorted(told, t_s)
    before_s = t_s - told[np.maximum(after - 1, 0)]
    after_s = told[np.minimum(after, len(told) - 1)] - t_s
    return np.minimum(np.abs(before_s), np.abs(after_s))
