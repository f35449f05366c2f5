"""The physics form: step time from bytes and operations, with a few efficiencies shared by all deployments.

    t = host + layer L + (mem^p + op^p)^(1/p) + KV bytes / (bandwidth e_kv) + pair operations / (rate e_attn) + links

mem: weight bytes a device reads / (bandwidth e_mem); op: 2 x weights x tokens / (rate e_op); a layer's launch costs and
the host's are constants. Fitted on steps of several deployments at once, it carries to lengths, loads, models and
devices that were never measured; the farther it is carried, the wider its intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from qmeter.catalog import Device, ModelShape
from qmeter.errors import AnalysisError, MissingExtra
from qmeter.simulate.observe import Observed
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Efficiencies:
    """What the hardware's ceilings and the stack leave; the same for every deployment of one engine.

    Attributes:
        mem, op, kv, attn: shares of the ceilings reached by weights, matrix products, KV reads, prefill attention.
        host_s, layer_s, seq_s: seconds a step, a layer and a sequence.
        bend: exponent p that joins the memory and the arithmetic limit (large: a sharp knee).
        link_s, link_bytes_s: latency of one all-reduce, and bytes a second through one device's links.
    """

    mem: float = 0.8
    op: float = 0.65
    kv: float = 0.6
    attn: float = 0.35
    host_s: float = 1.0e-3
    layer_s: float = 2.0e-5
    seq_s: float = 5.0e-6
    bend: float = 4.0
    link_s: float = 1.0e-5
    link_bytes_s: float = 3.0e11


FITTED = ("mem", "op", "kv", "attn", "host_s", "layer_s", "seq_s")
"""What single-device records can tell; the links' two numbers need records of several devices."""
LINKS = ("link_s", "link_bytes_s")
LARGEST_SHARE = 1.0
LEAST_CHECKED = 3
"""Deployments from which on one is left out, to say how far the form is off: the rest must be more than one."""


@dataclass(frozen=True)
class Placement:
    """A model in one format on one kind of device.

    Attributes:
        weight_bytes: all weights as stored; kv_bytes_token: KV cache a token, all layers.
        compute: number type of the matrix products, as in ``Device.rates_op_s``.
        devices: tensor-parallel degree.
    """

    shape: ModelShape
    device: Device
    weight_bytes: float
    kv_bytes_token: float
    compute: str = "bf16"
    devices: int = 1


def terms(place: Placement, e: Efficiencies) -> dict[str, float]:
    """Seconds a step (``base``), a token, a KV token, a pair, a sequence, and of reading the weights once.

    Raises:
        AnalysisError: the catalog does not know the device's bandwidth or rate.
    """
    d, s, n = place.device, place.shape, place.devices
    rate = d.rates_op_s.get(place.compute) or d.rates_op_s.get("bf16")
    rate16 = d.rates_op_s.get("bf16")
    if not d.bandwidth_bytes_s or not rate or not rate16:
        raise AnalysisError(
            f"the catalog has no bandwidth or rate of {d.name} in {place.compute}",
            hint="measure the roofline on that host, or choose a device that 'qmeter devices' lists with rates",
        )
    read = place.weight_bytes - (0 if s.tied_embeddings else s.embedding_params * _embedding_bytes(place))
    shared = min(n, s.kv_heads)
    link = 2 * s.layers if n > 1 else 0
    return {
        "base": e.host_s + e.layer_s * s.layers + link * e.link_s,
        "weights": read / n / (d.bandwidth_bytes_s * min(e.mem, LARGEST_SHARE)),
        "token": 2 * s.linear_params / n / (rate * min(e.op, LARGEST_SHARE)),
        "head": 2 * s.embedding_params / n / (rate16 * min(e.op, LARGEST_SHARE)),
        "kv": place.kv_bytes_token / shared / (d.bandwidth_bytes_s * min(e.kv, LARGEST_SHARE)),
        "pair": 4 * s.layers * s.heads * s.head_dim / n / (rate16 * min(e.attn, LARGEST_SHARE)),
        "sequence": e.seq_s,
        "link_token": link * 2 * s.hidden * 2 * (n - 1) / n / e.link_bytes_s,
    }


def _embedding_bytes(place: Placement) -> float:
    """Bytes of one embedding weight: the input embedding is looked up, not read; it is stored in 16 bit."""
    return 2.0


def seconds(place: Placement, e: Efficiencies, steps: Observed) -> F64:
    """Modelled time of each step. Shape (steps,)."""
    t = terms(place, e)
    tokens = (steps.decodes + steps.prefill).astype(np.float64)
    sequences = (steps.decodes + steps.chunks).astype(np.float64)
    return _join(t, tokens, sequences, e.bend) + t["kv"] * steps.kv + t["pair"] * steps.pairs


def _join(t: dict[str, float], tokens: F64, sequences: F64, bend: float) -> F64:
    ops = t["token"] * tokens + t["head"] * sequences
    joined = (t["weights"] ** bend + ops**bend) ** (1 / bend)
    return np.asarray(t["base"] + joined + t["sequence"] * sequences + t["link_token"] * tokens, dtype=np.float64)


def step_model(place: Placement, e: Efficiencies, rules: Rules) -> StepModel:
    """The physics as a step model's tables, for a placement that may never have been measured."""
    t = terms(place, e)
    n = np.arange(rules.max_sequences + 1, dtype=np.float64)
    tokens = np.arange(rules.token_budget + 1, dtype=np.float64)
    decode = _join(t, n, n, e.bend)
    mixed = _join(t, tokens, np.zeros_like(tokens), e.bend)
    chunk_s = t["sequence"] + t["head"]
    return StepModel(decode, mixed, kv_s=t["kv"], pair_s=t["pair"], chunk_s=chunk_s)


def kv_blocks(place: Placement, memory_share: float = 0.9, block_tokens: int = 16, spare_bytes: float = 4e9) -> int:
    """Blocks that would fit a placement **never measured**: a derived count, so its predictions are marked so.

    Raises:
        AnalysisError: the weights alone do not fit.
    """
    memory = place.device.memory_bytes or 0
    free = memory * memory_share - place.weight_bytes / place.devices - spare_bytes
    per_block = place.kv_bytes_token / min(place.devices, place.shape.kv_heads) * block_tokens
    blocks = int(free // per_block)
    if blocks < 2:
        raise AnalysisError(f"{place.shape.name} does not fit {place.devices} x {place.device.name}",
                            hint="use more devices or a method with smaller weights")  # fmt: skip
    return blocks


@dataclass(frozen=True)
class PhysicsFit:
    """Efficiencies, and how far off the form is from a deployment left out of the fit.

    Attributes:
        sigma: root mean square of log(measured / modelled) of all steps' time, each deployment left out in turn;
            ``None``: not checked, since there are fewer than :data:`LEAST_CHECKED`.
        deployments: how many were fitted.
    """

    efficiencies: Efficiencies
    sigma: float | None
    deployments: int

    @property
    def off(self) -> str:
        """In words, how far a deployment left out of the fit is off."""
        if self.sigma is not None:
            return f"a deployment left out is off by {self.sigma:.1%}"
        return f"not checked: how far a deployment left out is off ({self.over}, a check takes {LEAST_CHECKED})"

    @property
    def over(self) -> str:
        """How many deployments were fitted, in words."""
        return f"{self.deployments} deployment{'' if self.deployments == 1 else 's'}"


def fit_physics(parts: Sequence[tuple[Placement, Observed]], *, start: Efficiencies | None = None) -> PhysicsFit:
    """Fit the efficiencies to steps of several deployments, each deployment weighing the same.

    Each is then left out in turn, to say how far off the form is where it saw nothing: a fit more for each, about half
    a second.

    Raises:
        AnalysisError: no steps.
        MissingExtra: scipy is not installed.
    """
    if not parts:
        raise AnalysisError("no steps to fit the physics form to", hint="give records of at least one deployment")
    begin = start or Efficiencies()
    names = FITTED + (LINKS if any(p.devices > 1 for p, _ in parts) else ())
    found = _least_squares(parts, begin, names)
    sigma = None
    if len(parts) >= LEAST_CHECKED:
        logs = []
        for k, (place, steps) in enumerate(parts):
            other = _least_squares([p for i, p in enumerate(parts) if i != k], found, names)
            logs.append(math.log(float(steps.seconds.sum()) / float(seconds(place, other, steps).sum())))
        sigma = float(np.sqrt(np.mean(np.square(logs))))
    return PhysicsFit(found, sigma, len(parts))


def _least_squares(
    parts: Sequence[tuple[Placement, Observed]], begin: Efficiencies, names: Sequence[str]
) -> Efficiencies:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise MissingExtra("simulate", "fitting the physics form") from error
    thin = [(p, _thinned(o)) for p, o in parts]

    def residuals(x: F64) -> F64:
        e = _with(begin, names, np.exp(x))
        return np.concatenate(
            [np.log(seconds(p, e, o) / o.seconds) / math.sqrt(len(o)) for p, o in thin] + [0.02 * (x - x0)]
        )

    x0 = np.log([getattr(begin, n) for n in names])
    solved = least_squares(residuals, x0, loss="soft_l1", f_scale=0.1)
    return _with(begin, names, np.exp(solved.x))


def _with(base: Efficiencies, names: Sequence[str], values: F64) -> Efficiencies:
    kept = {f.name: getattr(base, f.name) for f in fields(base)}
    return Efficiencies(**(kept | dict(zip(names, (float(v) for v in values), strict=True))))


def _thinned(steps: Observed, most: int = 1500) -> Observed:
    """At most ``most`` steps, spread evenly over batch sizes, so that common batches do not drown rare ones."""
    if len(steps) <= most:
        return steps
    order = np.lexsort((steps.kv, steps.decodes + steps.prefill))
    mask = np.zeros(len(steps), dtype=bool)
    mask[order[np.linspace(0, len(steps) - 1, most).astype(int)]] = True
    return steps.where(mask)
