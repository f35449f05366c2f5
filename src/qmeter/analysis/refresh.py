"""GPM readings that lie between two refreshes of the counters: NVML answers 0 for them, which is no measurement."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from qmeter.analysis.stats import F64

_MARK = re.compile(r"^(gpu\d+)\.gpm\.dram_util$")
"""The metric that tells: a share of no time, which NVML gives as not a number, so that it has no reading then."""


def with_news(series: Mapping[str, tuple[F64, F64]]) -> dict[str, tuple[F64, F64]]:
    """The series without GPM readings during which no time had passed for the GPU's counters.

    Records made at 20 Hz before the sampler left them out hold a 0 in every second reading of each metric but the
    DRAM's, so their means came out at half. Left out is a reading of nothing but zeros where the DRAM's is missing; a
    GPU without that metric keeps all its readings.
    """
    made = dict(series)
    for gpu, mark in ((m[1], name) for name in series if (m := _MARK.match(name))):
        names = [name for name in series if name.startswith(f"{gpu}.gpm.")]
        told = np.concatenate([series[mark][0], *(series[n][0][series[n][1] != 0.0] for n in names)])
        for name in names:
            t_s, value = series[name]
            kept = np.isin(t_s, told)
            made[name] = (t_s[kept], value[kept])
    return made
