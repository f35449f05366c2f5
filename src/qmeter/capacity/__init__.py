"""Decisions' raw material: deployments as offers, and the rate, power and promise that each sustains under a load.

    from qmeter.capacity import ClassLoad, Drawn, Mix, Supply, offers, sustain
    from qmeter.spec.workload import SLO, FixedLength

    found = offers("h200-8b-grid", {"h200": Supply(price_usd_h=4.0, count=16)})
    chat = ClassLoad("chat", Drawn(FixedLength(tokens=256), FixedLength(tokens=96)), SLO(ttft="300ms", tpot="20ms"))
    one = sustain(found[0], Mix((chat,)), draws=12)      # one.rate_hz, one.curve, one.power_w(rate)

All of it is deterministic by seed. Pricing, choosing and scheduling are the deciding rooms' business.
"""

from qmeter.capacity.offer import Offer, Supply, lower_is_better, offer_of, with_knobs
from qmeter.capacity.pool import Pool, Served
from qmeter.capacity.source import deployments, fitted, fitted_physics, offers, qualities, quality_by_method
from qmeter.capacity.sustain import Capacity, Kept, LoadPoint, Precision, kept, lower_bound, sustain
from qmeter.capacity.traffic import ClassLoad, Drawn, Empirical, LengthLaw, Mix, Sample, sample

__all__ = [
    "Capacity",
    "ClassLoad",
    "Drawn",
    "Empirical",
    "Kept",
    "LengthLaw",
    "LoadPoint",
    "Mix",
    "Offer",
    "Pool",
    "Precision",
    "Sample",
    "Served",
    "Supply",
    "deployments",
    "fitted",
    "fitted_physics",
    "kept",
    "lower_bound",
    "lower_is_better",
    "offer_of",
    "offers",
    "qualities",
    "quality_by_method",
    "sample",
    "sustain",
    "with_knobs",
]
