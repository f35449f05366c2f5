from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workload_points import VOCABULARY, workload

from qmeter.errors import SpecError
from qmeter.workload import build, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def _azure(tmp_path: Path, *rows: str, header: str = HEADER) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows))
    return path


def test_azure_stamps_are_exact_to_the_100_ns_they_have(tmp_path: Path) -> None:
    path = _azure(tmp_path, "2023-11-16 23:59:59.9799600,374,44", "2023-11-17 00:00:00.0319601,396,109")
    trace = read_trace(path, "azure")
    assert trace.time_ns.tolist() == [0, 52_000_100]
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([374, 396], [44, 109])
    assert trace.hash_ids is None


def test_azure_2024_stamps_other_column_orders_and_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"\xef\xbb\xbfGeneratedTokens,TIMESTAMP,Extra,ContextTokens\r\n5,2024-05-10 00:00:00.009930+00:00,x,7\r\n"
        b"\r\n6,2024-05-10T02:00:01+02:00,x,8\r\n"
    )
    trace = read_trace(path, "azure")
    assert trace.time_ns.tolist() == [0, 990_070_000]
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([7, 8], [5, 6])


def test_offset_and_length_cut_a_stretch_and_reading_stops_after_it(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:00:{s:02d}.5,1,{s + 1}" for s in range(30)]
    path = _azure(tmp_path, *rows, "garbage after the stretch")
    trace = read_trace(path, "azure", offset_s=10, length_s=5)
    assert trace.output_tokens.tolist() == [11, 12, 13, 14, 15]
    assert trace.time_ns.tolist() == [0, 10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9]
    assert trace.covered_s >= 5
    with pytest.raises(SpecError, match="line 32"):
        read_trace(path, "azure")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2023-11-16 18:00:01.0,1", "2 columns where 3 are needed"),
        ("yesterday,1,1", "TIMESTAMP 'yesterday'"),
        ("2023-02-30 18:00:01.0,1,1", "day"),
        ("2023-11-16 25:00:01.0,1,1", "hour"),
        ("2023-11-16 18:00:01.0,-5,1", "ContextTokens '-5'"),
        ("2023-11-16 18:00:01.0,5,0", "GeneratedTokens '0'"),
        ("2023-11-16 18:00:01.0,5.5,1", "ContextTokens '5.5'"),
        ("2023-11-16 18:00:01.0,99999999999999999999,1", "ContextTokens"),
        ("2023-11-16 17:59:59.0,5,1", "before the line above"),
        ("2023-11-16 18:00:01.0,\u0665,1", "ContextTokens"),
    ],
)
def test_a_malformed_azure_line_is_named(row: str, reason: str, tmp_path: Path) -> None:
    path = _azure(tmp_path, "2023-11-16 18:00:00.0,1,1", row)
    with pytest.raises(SpecError, match="line 3") as caught:
        read_trace(path, "azure")
    assert reason in caught.value.message


GOOD = '{"timestamp": 5, "input_length": 513, "output_length": 9, "hash_ids": [1, 2]}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"timestamp": 5}', "lacks input_length, output_length, hash_ids"),
        (GOOD.replace("[1, 2]", "[1]"), "1 hash_ids where 513 tokens make 2 blocks of 512"),
        (GOOD.replace("[1, 2]", "[1, -2]"), "hash_ids is not a list of whole numbers"),
        (GOOD.replace("[1, 2]", '"1"'), "hash_ids is not a list"),
        (GOOD.replace("513", "0"), "input_length 0"),
        (GOOD.replace("513", "true"), "input_length True"),
        (GOOD.replace("9,", "9.5,"), "output_length 9.5"),
        (GOOD.replace('": 5,', '": NaN,'), "timestamp nan"),
        (GOOD.replace('": 5,', '": -1,'), "timestamp -1"),
        (GOOD.replace('": 5,', '": 3,'), "before the line above"),
    ],
)
def test_a_malformed_mooncake_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    earlier = GOOD.replace('": 5,', '": 4,')
    path.write_text(f"{earlier}\n\n{line}\n")
    with pytest.raises(SpecError, match="line 3") as caught:
        read_trace(path, "mooncake")
    assert reason in caught.value.message


@given(data=st.binary(max_size=200), format=st.sampled_from(["azure", "mooncake"]), headed=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_trace_or_a_spec_error(data: bytes, format: str, headed: bool, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.trace"
    path.write_bytes((HEADER.encode() if headed else b"") + data)
    try:
        trace = read_trace(path, format)
    except SpecError as error:
        assert error.hint
    else:
        assert (np.diff(trace.time_ns) >= 0).all()


def test_an_empty_trace_a_missing_one_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no requests"):
        read_trace(_azure(tmp_path), "azure")
    with pytest.raises(SpecError, match="header lacks GeneratedTokens"):
        read_trace(_azure(tmp_path, header="TIMESTAMP,ContextTokens\n"), "azure")
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SpecError, match="cannot read"):
            read_trace(path, "mooncake")


def test_replay_is_scaled_shifted_and_carries_the_rows_lengths(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:00:{s:02d}.0,{100 + s},{s + 1}" for s in range(60)]
    path = _azure(tmp_path, *rows)
    law = {"kind": "trace", "path": str(path), "format": "azure", "time_scale": 4.0, "offset": "9.5s"}
    lengths = {"prompt_tokens": {"kind": "trace", "high": 120}, "output_tokens": {"kind": "trace"}}
    schedule = build(workload(law, **lengths), 1, VOCABULARY)
    assert schedule.send_s.tolist() == [0.125 + i / 4 for i in range(48)]
    assert [r.prompt_tokens for r in schedule.requests] == [min(110 + i, 120) for i in range(48)]
    assert [r.output_tokens for r in schedule.requests] == [11 + i for i in range(48)]
    assert schedule.law == ("trace", {"rate_hz": 4.0})


def test_a_trace_that_ends_inside_the_window_is_refused_rather_than_leaving_it_without_load(tmp_path: Path) -> None:
    path = _azure(tmp_path, "2023-11-16 18:00:00.0,1,1", "2023-11-16 18:00:11.0,1,1")
    with pytest.raises(SpecError, match="ends at 11 s; offset, warm-up and window at time_scale 1 need it up to 12 s"):
        build(workload({"kind": "trace", "path": str(path), "format": "azure"}), 1, VOCABULARY)
