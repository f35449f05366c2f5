from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

import tiny_gguf

from qmeter.errors import SourceError
from qmeter.quantize.gguf_export import export_gguf, to_bf16


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    out = {}
    for name, entry in header.items():
        raw = np.frombuffer(data[8 + size :], np.uint16)[entry["data_offsets"][0] // 2 : entry["data_offsets"][1] // 2]
        values = (raw.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else raw.view(np.float16)
        out[name] = values.reshape(entry["shape"])
    return out


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_every_tensor_comes_back_under_its_name_and_in_its_order(tmp_path: Path, dtype: str) -> None:
    folder = export_gguf(tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "hf", dtype=dtype)
    found, expected = read_safetensors(folder / "model.safetensors"), tiny_gguf.weights()
    assert sorted(found) == sorted(f"{n}.weight" for n in expected)
    for name, value in expected.items():
        assert np.array_equal(found[f"{name}.weight"], value), name


def test_configuration_and_tokenizer_say_what_the_gguf_says(tmp_path: Path) -> None:
    folder = export_gguf(tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_key_value_heads"], config["rms_norm_eps"]) == (64, 2, 1e-5)
    assert config["tie_word_embeddings"] is True and config["eos_token_id"] == 0
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"]["Ġa"] == 5 and tokenizer["model"]["merges"][1] == ["Ġ", "a"]
    assert tokenizer["added_tokens"][0]["content"] == "<|end|>" and tokenizer["added_tokens"][0]["special"]


def test_the_written_tokenizer_splits_as_its_merges_say(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = export_gguf(tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "hf")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("ab a<|end|>").ids == [3, 5, 0] and tokenizer.decode([3, 5]) == "ab a"


def test_a_whole_export_is_left_alone_and_a_torn_one_is_made_again(tmp_path: Path) -> None:
    source, folder = tiny_gguf.write(tmp_path / "m.gguf"), tmp_path / "hf"
    export_gguf(source, folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"torn")
    export_gguf(source, folder)
    assert len(read_safetensors(folder / "model.safetensors")) == 20
    before = (folder / "model.safetensors").stat().st_mtime_ns
    export_gguf(source, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("kind", "message"), [({"architecture": "mamba"}, "only llama"), ({"pre": "tekken"}, "gpt2/tekken")]
)
def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path, kind: dict[str, str], message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        export_gguf(tiny_gguf.write(tmp_path / "m.gguf", **kind), tmp_path / "hf")
    assert caught.value.hint and not (tmp_path / "hf" / "config.json").exists()


def test_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model at all, but long enough to be read as a header")
    with pytest.raises(SourceError, match="is no GGUF"):
        export_gguf(tmp_path / "x.gguf", tmp_path / "hf")


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -2.0, 3.14159274], np.float32)
    back = (to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    assert back.tolist() == [1.0, 1.0, 1.015625, -2.0, 3.140625]
