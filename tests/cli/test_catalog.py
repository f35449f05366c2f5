"""GIVEN the catalog's commands, WHEN they are run, THEN they list, filter, explain, and refuse unknown names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from qmeter.cli.main import build
from qmeter.engines.table import ENGINES
from qmeter.errors import UnknownName

WIDE = {"COLUMNS": "240"}


def run(*words: str) -> str:
    result = CliRunner().invoke(build(list(words)), list(words), env=WIDE)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return str(result.output)


def listed(*words: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads(run(*words, "--json"))
    return data


def test_methods_that_run_on_vllm_and_an_h200_and_why_others_do_not() -> None:
    shown = {m["name"] for m in listed("methods", "--engine", "vllm", "--device", "h200")}
    assert {"bf16", "gptq-w4a16", "awq-w4a16", "smoothquant-w8a8", "fp8", "w4a8-fp8", "kv-fp8"} <= shown
    assert not {"gguf-q4_0", "w8a8"} & shown
    everything = listed("methods", "--engine", "vllm", "--device", "h200", "--all")
    hidden = {m["name"]: m["why_not"] for m in everything if not m["runs"]}
    assert {m["name"] for m in everything} - set(hidden) == shown
    assert hidden["gguf-q4_0"].startswith("vllm has no way to run it")


def test_compute_capability_filters_too() -> None:
    ampere = {m["name"] for m in listed("methods", "--engine", "vllm", "--device", "a100-80g")}
    assert "smoothquant-w8a8" in ampere and not {"fp8", "w4a8-fp8", "kv-fp8"} & ampere
    text = run("methods", "--engine", "vllm", "--device", "a100-80g", "--all")
    assert "needs compute capability 8.9 or more; the device has 8.0" in text


def test_a_named_model_adds_its_bytes() -> None:
    rows = {m["name"]: m for m in listed("methods", "--engine", "vllm", "--model", "llama-3.1-8b")}
    assert rows["bf16"]["weight_bytes"] == 16_060_522_496
    assert rows["kv-fp8"]["kv_bytes_per_token"] == 65_536
    assert "weight_bytes" not in listed("methods")[0]


def test_the_plain_table_tells_how_many_were_left_out() -> None:
    text = run("methods", "--engine", "openvino", "--device", "cpu")
    assert "w4a8kv4" in text and "gptq-w4a16" not in text and "add --all to see why" in text


@pytest.mark.parametrize("command", ["models", "devices", "engines"])
def test_tables_and_json_name_the_same_rows(command: str) -> None:
    text = run(command)
    rows = listed(command)
    assert rows and all(row["name"] in text for row in rows)


def test_a_missing_number_is_null_with_a_reason_never_0() -> None:
    cpu = next(d for d in listed("devices") if d["name"] == "cpu")
    assert cpu["memory_bytes"] is None and cpu["unknown"]["memory_bytes"]
    assert "unknown" in run("devices")


def test_engines_say_whether_they_are_here_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    rows = {row["name"]: row for row in listed("engines")}
    assert list(rows)[:4] == ["openvino", "llamacpp", "vllm", "endpoint"]
    assert rows["endpoint"]["available"] is True
    assert rows["llamacpp"]["available"] is False
    assert "llama-server" in rows["llamacpp"]["why"] and rows["llamacpp"]["advice"]
    assert "gguf-q4_0" in rows["llamacpp"]["methods"]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [(("--engine", "vlm"), "vllm"), (("--device", "h20"), "h200"), (("--model", "llama-3-8b"), "llama-3.1-8b")],
)
def test_an_unknown_name_is_refused_with_the_nearest(words: tuple[str, ...], nearest: str) -> None:
    with pytest.raises(UnknownName) as caught:
        run("methods", *words)
    assert nearest in caught.value.nearest


def test_every_built_in_engine_can_be_created() -> None:
    for name in ("llamacpp", "endpoint"):
        engine = ENGINES.create(name)
        assert callable(engine.launch_command) and callable(engine.effective) and callable(engine.metrics_map)
