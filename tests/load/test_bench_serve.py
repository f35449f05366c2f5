"""The pure parts of benchmarks/gpu: bench's arrivals, pairing, where a difference comes from, the table."""

import importlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def bench():
    names = ("bench_pairs", "bench_serve", "bench_tap")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        pairs, serve, _ = (importlib.import_module(name) for name in names)
        yield pairs, serve
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in names:
            sys.modules.pop(name, None)


def drawn_as_bench_does(count, rate_hz, seed):
    """What vllm/benchmarks/serve.py of 0.25.1 does, step by step, with numpy's global generator."""
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        at = [np.random.gamma(shape=1.0, scale=1.0 / (rate_hz * 1.0)) for _ in range(count)]
    finally:
        np.random.set_state(state)
    for i in range(1, count):
        at[i] += at[i - 1]
    return [t * (count / rate_hz / at[-1]) for t in at]


def run_of(pairs, client, number=0, server="bf16", *, ttft, add=0.0, engine=None, **more):
    ttft = np.asarray(ttft)
    n = len(ttft)
    made = {
        "server": server, "rate_hz": 8.0, "round": number, "client": client, "seed": 0, "ttft_s": ttft,
        "ttft_intended_s": ttft + add, "tpot_s": np.full(n, 0.006), "late_s": np.zeros(n), "prompt_tokens": [512] * n,
        "output_tokens": [128] * n, "failed": 0, "engine": engine or {},
    }  # fmt: skip
    return pairs.Run(**made | more)


@pytest.mark.parametrize(("count", "rate_hz", "seed"), [(160, 8.0, 0), (400, 20.0, 3), (2, 1.5, 7)])
def test_arrivals_are_those_that_bench_draws(bench, count, rate_hz, seed):
    pairs, _ = bench
    ours = pairs.bench_offsets(count, rate_hz, seed)
    assert np.allclose(ours, drawn_as_bench_does(count, rate_hz, seed), rtol=0, atol=1e-9)
    assert ours[-1] == pytest.approx(count / rate_hz)


def test_lateness_counts_from_the_least_late_request(bench):
    pairs, _ = bench
    offset = np.array([0.1, 0.5, 0.9])
    assert pairs.lateness(1000 + offset + [0.002, 0.001, 0.004], offset) == pytest.approx([0.001, 0.0, 0.003])


def test_pairing_finds_a_small_shift_that_unpaired_means_hide(bench):
    pairs, _ = bench
    rng = np.random.default_rng(1)
    base = rng.exponential(0.04, 300)
    found = pairs.paired([(base + 0.002 + rng.normal(0, 0.003, 300), base)])
    assert found.low < 0.002 < found.high
    assert found.low > 0.001 and found.high < 0.003
    assert found.relative == pytest.approx(found.first / found.second - 1)
    assert found.relative_low < found.relative < found.relative_high


def test_failed_requests_leave_both_sides_of_a_pair(bench):
    pairs, _ = bench
    a, b = np.full(50, 2.0), np.full(50, 1.0)
    a[3], b[7] = np.nan, np.nan
    assert pairs.paired([(a, b)]).n == 48
    assert pairs.paired([(a[3:4], b[3:4])]) is None


def test_only_rounds_with_the_same_arrivals_are_paired(bench):
    pairs, _ = bench
    made = (("text", 0, 0), ("bench", 0, 0), ("text", 1, 1), ("bench", 1, 9), ("text", 2, 2))
    runs = [run_of(pairs, c, k, ttft=np.full(9, 0.04), seed=s) for c, k, s in made]
    assert [(a.round, b.client) for a, b in pairs.rounds(runs, "text", "bench")] == [(0, "bench")]


def test_the_split_adds_up_and_takes_the_clients_share_from_the_ground_truth(bench):
    pairs, _ = bench
    rng = np.random.default_rng(2)
    base = rng.exponential(0.03, 200)
    ours = run_of(pairs, "text", ttft=base, add=5e-5, engine={"ttft_s": 0.028, "queue_s": 0.002, "prefill_s": 0.024})
    theirs = run_of(pairs, "bench", ttft=base + 0.003, engine={"ttft_s": 0.029, "queue_s": 0.002, "prefill_s": 0.0245})
    truth = [run_of(pairs, c, server="ground truth", ttft=np.full(40, 0.04 + e), truth_ttft_s=np.full(40, 0.04),
                    to_server_s=np.full(40, e / 2)) for c, e in (("text", 0.0001), ("bench", 0.0018))]  # fmt: skip
    row = pairs.summary([ours, theirs, *truth], "ground truth")["comparisons"][0]
    parts = row["split"]
    assert parts["total"] == pytest.approx(-0.003 + 5e-5)
    assert parts["sending"] == pytest.approx(5e-5)
    assert parts["engine"] == pytest.approx(-0.0005)
    assert parts["front"] == pytest.approx(-0.0005)
    assert parts["clients"] == pytest.approx(-0.0017)
    named = parts["sending"] + parts["engine"] + parts["front"] + parts["outside"]
    assert named == pytest.approx(parts["total"])
    assert parts["rest"] == pytest.approx(parts["outside"] - parts["clients"])


def test_a_tpot_difference_is_the_engines_as_far_as_its_own_histogram_shows_it(bench):
    pairs, _ = bench
    ours, theirs = (
        run_of(pairs, c, ttft=np.full(9, 0.04), tpot_s=np.full(9, client), engine={"tpot_s": own})
        for c, client, own in (("text", 0.0099, 0.0098), ("bench", 0.0094, 0.0094))
    )
    parts = pairs.summary([ours, theirs], "ground truth")["comparisons"][0]["tpot_split"]
    assert parts == {"total": pytest.approx(5e-4), "engine": pytest.approx(4e-4), "clients": pytest.approx(1e-4)}
    silent = [run_of(pairs, c, ttft=np.full(9, 0.04)) for c in ("text", "bench")]
    assert pairs.summary(silent, "ground truth")["comparisons"][0]["tpot_split"] is None


def test_what_was_measured_on_the_gpu_is_what_the_documentation_says(bench):
    """GIVEN the runs beside ``vllm bench serve`` on an H100 THEN the clients' part of every TPOT difference is under
    0.01 ms, and what is left of a TTFT difference when engine, front and clients are taken off is under 1 ms."""
    pairs, _ = bench
    data = json.loads((BENCHMARKS / "measured" / "h100_bench_serve.json").read_text())
    found = pairs.summary([pairs.Run.from_json(r) for r in data["runs"]], "ground truth")
    assert [(r["server"], r["rate_hz"]) for r in found["comparisons"]] == [
        ("bf16", 8.0), ("bf16", 20.0), ("fp8", 8.0), ("fp8", 20.0),
    ]  # fmt: skip
    assert all(abs(r["tpot_split"]["clients"]) < 1e-5 and abs(r["split"]["rest"]) < 1e-3 for r in found["comparisons"])
    errors = {(r["client"], r["rate_hz"]): r["ttft_error_s"] for r in found["ground_truth"]}
    assert all(errors["text", rate] < 5e-5 and errors["bench", rate] > 1e-3 for rate in (8.0, 20.0))
    assert found["faults"] == []


def test_what_makes_a_comparison_worth_less_is_said(bench):
    pairs, _ = bench
    good, other = (run_of(pairs, c, ttft=np.full(9, 0.04)) for c in ("text", "bench"))
    assert pairs.faults([good, other]) == []
    other.prompt_tokens = [513] * 9
    other.reported = {"mean_ttft_ms": 55.0}
    good.failed, good.proof = 2, ["client_lateness: late"]
    told = "\n".join(pairs.faults([good, other]))
    assert all(word in told for word in ("prompt tokens differ", "2 requests failed", "client_lateness", "55.000"))


def test_a_run_survives_its_json_and_the_table_is_made_of_it(bench):
    pairs, _ = bench
    rng = np.random.default_rng(3)
    base = rng.exponential(0.04, 80)
    base[5] = np.nan
    runs = [run_of(pairs, c, k, ttft=base + d, failed=1) for k in (0, 1) for c, d in (("text", 0), ("bench", 0.001))]
    again = [pairs.Run.from_json(json.loads(json.dumps(r.as_json()))) for r in runs]
    assert np.allclose(again[1].ttft_s, runs[1].ttft_s, equal_nan=True, atol=1e-6)
    text = pairs.table(pairs.summary(again, "ground truth"))
    assert "TTFT: qMeter text, bench" in text and "within 5%" in text and "n=158" in text
    assert "TTFT: qMeter ids, bench" in text and "not measured" in text


def test_every_client_gets_the_same_prompts_at_the_same_times(bench):
    pairs, serve = bench
    load = serve.load_of(8.0, 20, 1, 64)
    text, ids = (serve.schedule_of(load, c, 16) for c in ("text", "ids"))
    assert np.array_equal(text.send_s, ids.send_s)
    assert np.array_equal(text.send_s, pairs.bench_offsets(20, 8.0, 1))
    for a, b in zip(text.requests, ids.requests, strict=True):
        assert [int(w.removeprefix("w")) for w in a.prompt.split()] == list(b.prompt)
        assert a.prompt_tokens == b.prompt_tokens == 64


def test_bench_is_read_request_by_request(bench):
    _, serve = bench
    load = serve.load_of(8.0, 3, 0, 8)
    data = {"ttfts": [0.04, 0.0, 0.05], "itls": [[0.01, 0.02], [], [0.03]], "output_lens": [3, 0, 3],
            "input_lens": [8, 8, 8], "errors": ["", "refused", ""], "start_times": list(50 + load.offset_s),
            "mean_ttft_ms": 45.0}  # fmt: skip
    run, start_s = serve.read_bench(data, "bf16", load, 0)
    assert run.failed == 1 and np.isnan(run.ttft_s[1]) and np.isnan(run.tpot_s[1])
    assert run.tpot_s[[0, 2]] == pytest.approx([0.015, 0.015])  # one event may carry two tokens
    assert run.late_s == pytest.approx([0, 0, 0], abs=1e-9)
    assert start_s[0] == data["start_times"][0]
    assert run.reported == {"mean_ttft_ms": 45.0}


def test_the_engines_histograms_are_read_between_two_pages(bench, monkeypatch):
    _, serve = bench
    name = "vllm:time_to_first_token_seconds"
    page = (f'# TYPE {name} histogram\n{name}_bucket{{engine="0",le="0.1"}} 2.0\n{name}_sum{{engine="0"}} 0.5\n'
            f'{name}_count{{engine="0"}} 10.0\nvllm:num_requests_running{{engine="0"}} 3.0\n')  # fmt: skip

    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self):
            return page.encode()

    monkeypatch.setattr(serve.urllib.request, "urlopen", lambda *_, **__: Answer())
    after = serve.metrics("http://127.0.0.1:1")
    assert after["vllm:num_requests_running"] == 3.0
    assert serve.engine_means({f"{name}_sum": 0.1, f"{name}_count": 2.0}, after)["ttft_s"] == pytest.approx(0.05)
    assert serve.engine_means(after, after) == {}


def packet(source, target, data):
    ip = bytes([0x45]) + bytes(8) + bytes([6]) + bytes(10)
    return ip + struct.pack("!HH", source, target) + bytes(8) + bytes([5 << 4]) + bytes(7) + data


def test_the_wire_is_read_from_the_last_segment_of_a_request_to_the_first_with_a_token(bench):
    pairs, serve = bench
    watch = sys.modules["bench_tap"].Watch(80)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nx-request-id: qmeter-1\r\n\r\n"
    event = b'data: {"choices":[{"text":" a"}]}\n\n'
    for source, target, data, at_ns in (
        (5, 80, head, 100), (5, 80, b'{"prompt"', 300), (80, 5, b"", 310), (80, 5, b"HTTP/1.1 200 OK\r\n\r\n", 400),
        (6, 80, head.replace(b"-1", b"-0"), 450), (80, 5, event, 900), (80, 6, b"HTTP/1.1 200 OK\r\n\r\n" + event, 950),
        (80, 5, event, 1500), (80, 5, b"data: [DONE]\n\n", 1600), (5, 80, b"GET /metrics HTTP/1.1\r\n\r\n", 1700),
    ):  # fmt: skip
        watch.take(packet(source, target, data), at_ns)
    one, zero = watch.rows
    assert (one["id"], one["begun_ns"], one["asked_ns"], one["first_ns"], one["last_ns"]) == (1, 100, 300, 900, 1500)
    assert (zero["id"], zero["asked_ns"], zero["first_ns"]) == (0, 450, 950)
    run = run_of(pairs, "text", ttft=np.array([600e-9, 900e-9]))
    serve.add_wire(run, watch.rows, np.array([400e-9, 50e-9]))
    assert run.wire_ttft_s == pytest.approx([500e-9, 600e-9])
    assert run.wire_before_s == pytest.approx([50e-9, 250e-9])
    assert pairs.wire_error([run]) == pytest.approx(200e-9)


def test_the_wire_outranks_the_ground_truth_in_the_split(bench):
    pairs, _ = bench
    ours, theirs = (run_of(pairs, c, ttft=np.full(9, t), wire_ttft_s=np.full(9, 0.038), wire_before_s=np.zeros(9),
                           engine={"ttft_s": 0.03, "queue_s": 0.0, "prefill_s": 0.03})
                    for c, t in (("text", 0.0381), ("bench", 0.0402)))  # fmt: skip
    parts = pairs.split([ours, theirs], clients_s=0.5)
    assert parts.clients == pytest.approx(-0.0021)
    assert parts.rest == pytest.approx(0.0, abs=1e-9)
