"""Loads, rules and models for the simulator's tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from qmeter.simulate.load import SimLoad
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel, piecewise


def load(arrivals, prompts, outputs, **more):
    return SimLoad(np.array(arrivals, float), np.array(prompts), np.array(outputs), **more)


def model(sequences=64, tokens=2048, noise=None, draw_host=(0.0084, 0.025, 0.002), **more):
    decode = piecewise(np.array([1, 8, 64.0]), np.array([0.008, 0.0085, 0.012]), sequences)
    mixed = piecewise(np.array([1, 256, 2048.0]), np.array([0.009, 0.012, 0.06]), tokens)
    values = {
        "kv_s": 2e-8, "pair_s": 1e-9, "chunk_s": 1e-4, "host_s": draw_host[0], "host_seq_s": 1e-6,
        "host_mixed_s": draw_host[1], "tail_s": draw_host[2], "kv_j": 1e-6, "pair_j": 1e-8, "busy_w": 300.0,
        "decode_j": 100 * decode, "mixed_j": 200 * mixed,
        "mixed_clock_s": 0.7 * mixed,
    }  # fmt: skip
    if noise is not None:
        rng = np.random.default_rng(noise)
        values |= {"noise_decode": rng.lognormal(0, 0.1, 997), "noise_mixed": rng.lognormal(0, 0.2, 499)}
    return StepModel(decode, mixed, **(values | more))


def constant(seconds):
    """Every step lasts the same."""
    return StepModel(np.full(2, seconds), np.full(2, seconds))


@st.composite
def cases(draw, prefix=False):
    """A random load, rules and model, from roomy to starved of blocks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, block = draw(st.integers(1, 40)), draw(st.sampled_from([1, 4, 16]))
    prompts, outputs = rng.integers(1, 200, n), rng.integers(1, 80, n)
    need = -(-int((prompts + outputs).max()) // block) + 1
    seats = draw(st.sampled_from([1, 4, 16, 64]))
    mixed = draw(st.booleans())
    rules = Rules(
        token_budget=max(seats, draw(st.sampled_from([32, 64, 256, 2048]))), max_sequences=seats,
        kv_blocks=int(need * draw(st.sampled_from([1, 1.5, 3, 20]))) + 1, block_tokens=block,
        reserve_full_prompt=not mixed or draw(st.booleans()), async_scheduling=draw(st.booleans()), mixed=mixed,
        prefix_cache=prefix,
    )  # fmt: skip
    concurrency = draw(st.none() | st.integers(1, 20))
    arrivals = np.sort(rng.uniform(0, draw(st.sampled_from([0.01, 1.0, 5.0])), n))
    made = SimLoad(
        arrivals,
        prompts,
        outputs,
        concurrency=concurrency,
        think_s=draw(st.sampled_from([0.0, 0.05])),
        spacing_s=draw(st.sampled_from([0.0, 0.003])),
    )
    host = draw(st.sampled_from([(0.0, 0.0, 0.0), (0.0084, 0.025, 0.002), (0.004, 0.03, 0.0025), (0.02, 0.02, 0.001)]))
    front = {
        "output_seq_s": draw(st.sampled_from([0.0, 1e-4, 2e-3])),
        "input_each_s": draw(st.sampled_from([0.0, 7e-4])),
        "cap_w": draw(st.sampled_from([np.inf, 450.0, 330.0])),
        "settle_s": draw(st.sampled_from([0.02, 0.3])),
        "launch_w": draw(st.sampled_from([None, 80.0])),
    }
    return made, rules, model(seats, rules.token_budget, draw(st.none() | st.integers(0, 99)), host, **front)
