"""Caching, resuming and failing of :func:`make_checkpoint`, with a worker that writes what the real one would."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("gguf")

import tiny_gguf

from qmeter import catalog
from qmeter.errors import MethodUnsupported, MissingExtra, SourceError, UnknownName
from qmeter.quantize import make
from qmeter.quantize.bundle import write_bundle
from qmeter.quantize.make import Options, make_checkpoint, reference_folder
from qmeter.quantize.recipes import RECIPES, group_size, recipe

WORKER = """
import json, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[1]).read_text()); work = pathlib.Path(job["work"])
log = work.parent.parent / "runs.txt"; log.write_text((log.read_text() if log.exists() else "") + "run\\n")
print("qmeter-stage compress", flush=True)
if (work.parent.parent / "fail").exists():
    print("RuntimeError: no memory"); sys.exit(3)
(work / "checkpoint").mkdir(exist_ok=True)
(work / "checkpoint" / "model.safetensors").write_bytes(bytes(1000))
(work / "measured.json").write_text(json.dumps({"layer_errors": [0.1, 0.2], "ppl_ratio": 1.1, "kl": 0.05,
    "top1_agreement": 0.9, "held_out_tokens": 100}))
(work / "times.json").write_text(json.dumps({"compress": 1.0}))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worker = tmp_path / "fake_worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(make, "_WORKER", worker)
    monkeypatch.setattr(make, "_versions", lambda python, algorithm: {"torch": "0"})
    return tiny_gguf.write(tmp_path / "m.gguf")


def runs(cache: Path) -> int:
    return len((cache / "runs.txt").read_text().split())


def test_made_once_then_found_by_content(model: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    first = make_checkpoint(model, "gptq-w4a16", tmp_path / "c", progress=stages.append)
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(model.read_bytes())
    assert make_checkpoint(copy, "gptq-w4a16", tmp_path / "c") == first and runs(tmp_path / "c") == 1
    assert stages == ["export", "compress"]
    assert first.group == 64 and first.size_bytes == 1000 and first.reference_bytes > 100_000
    assert first.recipe["weights"]["group_size"] == 64
    assert json.loads((Path(first.checkpoint).parent / "manifest.json").read_text())["method"] == "gptq-w4a16"


@pytest.mark.parametrize(
    "change", [{"method": "rtn-w4a16"}, {"options": Options(seed=2)}, {"options": Options(group=32)},
               {"options": Options(samples=8)}, {"calibration": "some text"}, {"seed": 5}]
)  # fmt: skip
def test_anything_that_decides_the_weights_makes_another(model: Path, tmp_path: Path, change: dict) -> None:
    first = make_checkpoint(model, "gptq-w4a16", tmp_path / "c")
    options = change.get("options", Options())
    if "calibration" in change:
        (tmp_path / "t.txt").write_text(change["calibration"])
        options = Options(calibration=tmp_path / "t.txt")
    other = tiny_gguf.write(tmp_path / "m2.gguf", seed=change["seed"]) if "seed" in change else model
    second = make_checkpoint(other, change.get("method", "gptq-w4a16"), tmp_path / "c", options=options)
    assert second.checkpoint != first.checkpoint and runs(tmp_path / "c") == 2


def test_a_bundle_carries_reference_and_checkpoints_in_one_file_the_same_each_time(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    made = [make_checkpoint(model, name, cache) for name in ("gptq-w4a16", "fp8")]
    out = write_bundle(reference_folder(model, cache), made, tmp_path / "smol.tar")
    with tarfile.open(out) as tar:
        names = tar.getnames()
        manifest = json.loads(tar.extractfile("smol/manifests/fp8.json").read())
        weights = tar.extractfile("smol/checkpoints/gptq-w4a16/model.safetensors").read()
    assert {"smol/reference/config.json", "smol/reference/model.safetensors"} <= set(names)
    assert manifest["checkpoint"] == "checkpoints/fp8" and weights == bytes(1000)
    assert write_bundle(reference_folder(model, cache), made, tmp_path / "again" / "smol.tar").read_bytes() == (
        out.read_bytes()
    )
    with pytest.raises(SourceError, match="cannot write"):
        write_bundle(reference_folder(model, cache), made, out / "x.tar")


def test_a_failed_run_names_the_log_and_goes_on_next_time(model: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "fail").touch()
    with pytest.raises(SourceError, match=r"exit 3.*no memory") as caught:
        make_checkpoint(model, "fp8", tmp_path / "c")
    log = Path(caught.value.hint.split()[5].rstrip(";"))
    assert "no memory" in log.read_text() and not (log.parent / "manifest.json").exists()
    (tmp_path / "c" / "fail").unlink()
    assert make_checkpoint(model, "fp8", tmp_path / "c").group is None


def test_a_missing_tool_is_a_missing_extra(tmp_path: Path) -> None:
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\nexit 1\n")
    empty.chmod(0o755)
    with pytest.raises(MissingExtra, match="quantize"):
        make_checkpoint(tiny_gguf.write(tmp_path / "m.gguf"), "fp8", tmp_path / "c", python=empty)


def test_methods_without_a_checkpoint_say_what_to_do_instead() -> None:
    with pytest.raises(MethodUnsupported) as caught:
        recipe("w4a16")
    assert "GGUF variants" in caught.value.hint
    with pytest.raises(MethodUnsupported):
        recipe("kv-fp8")
    with pytest.raises(UnknownName):
        recipe("gptq-w3a16")


def test_llm_int8_is_made_by_bitsandbytes_and_nf4_by_vllm_while_loading() -> None:
    assert recipe("llm-int8")[1].algorithm == "bitsandbytes"
    with pytest.raises(MethodUnsupported) as caught:
        recipe("nf4")
    assert "while loading" in caught.value.hint


def test_every_recipe_is_catalogued_and_has_the_methods_bits() -> None:
    for name, plan in RECIPES.items():
        known = catalog.method(name)
        assert plan.weights["num_bits"] == known.weight_bits, name
        assert (plan.activations or {"num_bits": 16})["num_bits"] == known.activation_bits, name
        assert plan.weights["symmetric"] == known.symmetric, name


def test_group_sizes_fit_every_width_or_are_refused() -> None:
    assert group_size([4096, 14336], None) == 128 and group_size([576, 1536], None) == 64
    with pytest.raises(MethodUnsupported, match="divides"):
        group_size([576], 128)
    with pytest.raises(MethodUnsupported, match="divides"):
        group_size([100], None)


@pytest.mark.parametrize("text", ["{}", '{"quantization_config": {}}'])
def test_a_folder_must_be_a_16_bit_model(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(text)
    if "quant" in text:
        (tmp_path / "m" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"quantized already|no config.json with safetensors"):
        make_checkpoint(tmp_path / "m", "fp8", tmp_path / "c")


@pytest.mark.engine
def test_the_real_tools_quantize_a_tiny_model(tmp_path: Path) -> None:
    """Needs an interpreter with the quantize extra: this one, or the one in QMETER_QUANTIZE_PYTHON."""
    import os

    python = Path(os.environ.get("QMETER_QUANTIZE_PYTHON", sys.executable))
    if subprocess.run([python, "-c", "import llmcompressor"], capture_output=True).returncode:
        pytest.skip("no llm-compressor here")
    options = Options(samples=4, tokens=16, held_out=2)
    source = tiny_gguf.write(tmp_path / "m.gguf")
    made = make_checkpoint(source, "rtn-w4a16", tmp_path / "c", options=options, python=python)
    assert len(made.layer_errors) == 2 and 0 < made.layer_errors[0] < 1
    config = json.loads((Path(made.checkpoint) / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
