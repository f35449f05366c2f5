"""Calibrations of made-up deployments whose truth is known: for tests of what plans, schedules and tunes with them."""

from __future__ import annotations

import numpy as np

from qmeter.simulate.calibration import Calibration, Support, plain
from qmeter.simulate.fit import Basis
from qmeter.simulate.rules import Rules


def made_calibration(
    method: str = "bf16",
    *,
    speed: float = 1.0,
    power: float = 1.0,
    device: str = "h200",
    model: str = "llama-3.1-8b",
    devices: int = 1,
    sigma: float = 0.02,
    energy: bool = True,
    longest_tokens: int = 4096,
    output_seq_s: float = 0.0,
    input_each_s: float = 0.0,
    seed: int = 0,
) -> Calibration:
    """A synchronous deployment: a decode step takes 6 ms for one sequence, 20 ms for 64, a prefill token 20 µs.

    Args:
        speed: times are divided by it.
        power: serving power is 300 W times it; idle power is 80 W.
        sigma: spread (log scale) of whole runs and of the bootstrap draws.
        energy: whether it has an energy counter.
        longest_tokens: longest request that its support covers.
        output_seq_s, input_each_s: the front end's time a token and a request.
    """
    rules = Rules(2048, 64, 3000, async_scheduling=False)
    basis = Basis((1.0, 8.0, 64.0), (1.0, 256.0, 2048.0))
    coefficients = np.array([0.006, 0.001, 0.013, 0.008, 0.006, 0.036, 4e-8, 1e-9, 0.0]) / speed
    rng = np.random.default_rng(seed)
    joules = np.array([80.0, 300.0 * power, 0.0, 0.002, 0.0, 0.0])
    spread = np.exp(rng.normal(0, sigma, 24))
    noise = rng.lognormal(0, 0.05, 4096)
    return Calibration(
        deployment={"id": f"{method}-{speed}", "study": "made", "model": model, "shape": model, "method": method,
                    "engine": "vllm", "device": device, "parallelism": {"tp": devices, "pp": 1, "dp": 1}},
        effective={"weight_bytes": int(16e9 / speed), "kv_blocks": 3000},
        rules=plain(rules), basis=plain(basis), coefficients=tuple(coefficients),
        draws=tuple(tuple(coefficients * s) for s in spread),
        noise_decode=tuple(noise / noise.mean()), noise_mixed=tuple(noise / noise.mean()),
        energy=tuple(joules) if energy else None,
        energy_draws=tuple(tuple(joules * s) for s in spread) if energy else (),
        energy_series="gpu0.energy_j" if energy else None,
        why_no_energy=None if energy else "the records hold no energy counter with enough readings",
        input_s=0.002, output_s=0.001, output_seq_s=output_seq_s, input_each_s=input_each_s,
        cell_sigma=sigma, energy_sigma=0.01,
        support=Support(sequences=64, step_tokens=2048, kv_tokens=48000.0, longest_request_tokens=longest_tokens,
                        energy=energy),
        cells=("made",), qmeter_version="test",
    )  # fmt: skip
