"""GIVEN llama-server's answers and log, WHEN they are read, THEN the deployment is what they say, or fails by name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from http_fake import fake_http

from qmeter import catalog
from qmeter.engines.base import Artifact, Launch
from qmeter.engines.llamacpp import LlamaCppEngine, effective_config, failure, tensor_types
from qmeter.engines.verify import verify
from qmeter.errors import EngineCrashed, EngineUnavailable, MethodUnsupported, OutOfMemory
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

LOG = """\
0.00.723.594 I llama_model_loader: - kv  32:                          general.file_type u32              = 2
0.00.723.602 I llama_model_loader: - type  f32:   61 tensors
0.00.723.633 I llama_model_loader: - type q4_0:  210 tensors
0.00.723.641 I llama_model_loader: - type q8_0:    1 tensors
0.00.723.657 I print_info: file type   = Q4_0
0.00.887.425 I load_tensors:   CPU_Mapped model buffer size =    85.77 MiB
0.00.887.432 I load_tensors:   CPU_REPACK model buffer size =    56.95 MiB
0.00.977.998 I llama_kv_cache:        CPU KV buffer size =    23.91 MiB
0.01.030.158 I llama_kv_cache: size =   23.91 MiB (   512 cells,  30 layers,  4/4 seqs), \
K (q8_0):   11.95 MiB, V (q8_0):   11.95 MiB
0.02.568.357 I srv  llama_server: model loaded
"""
PROPS = {
    "default_generation_settings": {"params": {}, "n_ctx": 512},
    "total_slots": 4, "model_alias": "smol", "model_ftype": "Q4_0", "model_path": "/m/q4_0.gguf",
    "build_info": "b1-0c1e570",
}  # fmt: skip
MODELS = {
    "object": "list",
    "data": [{"id": "smol", "aliases": ["smol"], "object": "model", "owned_by": "llamacpp",
              "meta": {"n_vocab": 49152, "n_ctx": 512, "n_params": 134515008, "size": 89941248, "ftype": "Q4_0"}}],
}  # fmt: skip


def deployment(method: str = "gguf-q4_0", device: str = "cpu", dp: int = 1, tp: int = 1, **engine: Any) -> Deployment:
    return Deployment(
        model=ModelRef(name="smol", source="x", shape="smollm2-135m"),
        engine=EngineRef(name="llamacpp", **engine),
        method=method,
        device=device,
        parallelism=Parallelism(dp=dp, tp=tp),
    )


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "llama-server"
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def gguf(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "q4_0.gguf", "gguf", "0" * 64)


def argv(tmp_path: Path, program: str, **more: Any) -> list[str]:
    made = LlamaCppEngine().launch_command(deployment(binary=program, **more), gguf(tmp_path), 8099, tmp_path)
    assert made.argv is not None
    return list(made.argv)


def after(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_the_command_names_the_file_the_port_the_slots_and_the_cells(tmp_path: Path, program: str) -> None:
    made = argv(tmp_path, program, options={"max_sequences": 4, "max_model_tokens": 1024, "threads": 2})
    assert made[0] == program and after(made, "--model") == str(tmp_path / "q4_0.gguf")
    assert (after(made, "--host"), after(made, "--port")) == ("127.0.0.1", "8099")
    assert (after(made, "--parallel"), after(made, "--ctx-size")) == ("4", "4096")
    assert (after(made, "--threads"), after(made, "--threads-batch")) == ("2", "2")
    assert after(made, "--gpu-layers") == "0" and "--metrics" in made


@pytest.mark.parametrize(("method", "kind"), [("f16", "f16"), ("kv8", "q8_0"), ("kv4", "q4_0"), ("gguf-q4_0", "f16")])
def test_the_cache_types_are_the_methods(method: str, kind: str, tmp_path: Path, program: str) -> None:
    made = argv(tmp_path, program, method=method)
    assert (after(made, "--cache-type-k"), after(made, "--cache-type-v")) == (kind, kind)


def test_kv_cache_gib_becomes_cells_of_the_methods_cache_type(tmp_path: Path, program: str) -> None:
    f16 = int(after(argv(tmp_path, program, method="f16", options={"kv_cache_gib": 1}), "--ctx-size"))
    q8 = int(after(argv(tmp_path, program, method="kv8", options={"kv_cache_gib": 1}), "--ctx-size"))
    assert f16 == 2**30 // 23040
    assert q8 / f16 == pytest.approx(16 / 8.5, rel=0.001)


def test_other_options_and_arguments_go_on_as_given(tmp_path: Path, program: str) -> None:
    options = {"token_budget": 512, "ubatch_size": 128, "mlock": True, "swa_full": False, "prefix_cache": False}
    made = argv(tmp_path, program, options=options, args=("--seed", "1"))
    assert after(made, "--batch-size") == "512" and after(made, "--ubatch-size") == "128"
    assert "--mlock" in made and "--swa-full" not in made
    assert "--no-cache-prompt" in made and after(made, "--cache-ram") == "0"
    assert made[-2:] == ["--seed", "1"]


def test_what_cannot_be_run_is_refused_before_a_start(tmp_path: Path, program: str) -> None:
    engine = LlamaCppEngine()
    with pytest.raises(EngineUnavailable, match="is no program"):
        engine.launch_command(deployment(binary="/no/such/llama-server"), gguf(tmp_path), 1, tmp_path)
    with pytest.raises(MethodUnsupported, match="awq-w4a16"):
        engine.launch_command(deployment("awq-w4a16", binary=program), gguf(tmp_path), 1, tmp_path)
    with pytest.raises(MethodUnsupported, match="reads GGUF"):
        folder = Artifact(tmp_path, "safetensors", "0" * 64)
        engine.launch_command(deployment(binary=program), folder, 1, tmp_path)
    with pytest.raises(MethodUnsupported, match="data parallelism"):
        engine.launch_command(deployment(binary=program, dp=2), gguf(tmp_path), 1, tmp_path)


@pytest.mark.parametrize(("told", "given"), [(" - 4: trace (more info)", True), ("no levels", False)])
def test_a_server_with_log_levels_is_asked_for_the_loaders_lines(told: str, given: bool, tmp_path: Path) -> None:
    path = tmp_path / "llama-server"
    path.write_text(f"#!/bin/sh\necho '{told}'\n")
    path.chmod(0o755)
    made = argv(tmp_path, str(path))
    assert ("--verbosity" in made) is given
    assert not given or after(made, "--verbosity") == "4"


def test_llama_server_missing_from_path_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match="llama-server is not on PATH") as caught:
        LlamaCppEngine().launch_command(deployment(), gguf(tmp_path), 1, tmp_path)
    assert "engines[].binary" in str(caught.value.hint)


def served(url: str, tmp_path: Path) -> Launch:
    (tmp_path / "server.log").write_text(LOG)
    return Launch(argv=("x",), base_url=url, served_model="smol", log_path=tmp_path / "server.log")


def test_it_is_ready_when_health_says_so_and_tells_what_it_runs(tmp_path: Path) -> None:
    loading = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
    with fake_http({"/health": (503, loading)}) as server:
        launch = served(server.url, tmp_path)
        assert LlamaCppEngine().effective(launch) is None
        server.answers |= {"/health": (200, {"status": "ok"}), "/props": (200, PROPS), "/v1/models": (200, MODELS)}
        found = LlamaCppEngine().effective(launch)
    assert found is not None
    assert (found.weight_bytes, found.weight_type, found.kv_type) == (89941248, "int4", "int8")
    assert (found.kv_blocks, found.kv_block_tokens, found.max_sequences) == (512 * 4, 1, 4)
    assert found.max_model_tokens == 512 and found.engine_version == "b1-0c1e570"
    assert set(found.sources) >= {"weight_bytes", "weight_type", "kv_type"}
    assert found.activation_type is None and found.kernel is None


def test_a_q4_0_file_verifies_as_q4_0_and_not_as_q8_0(tmp_path: Path) -> None:
    found = effective_config(PROPS, MODELS["data"][0], LOG.replace("(q8_0)", "(f16)"))  # type: ignore[index]
    shape = catalog.model("smollm2-135m")
    right = verify(deployment(), catalog.method("gguf-q4_0"), shape, gguf(tmp_path), found)
    wrong = verify(deployment("gguf-q8_0"), catalog.method("gguf-q8_0"), shape, gguf(tmp_path), found)
    assert right.verified
    assert {c.name for c in wrong.failed} == {"weight_bytes", "weight_type"}


def test_a_silent_server_leaves_everything_unknown() -> None:
    found = effective_config({}, {}, "")
    assert found.model_dump(exclude={"properties", "sources", "weight_excess_bytes"}, exclude_none=True) == {}
    assert found.properties == {} == found.sources


def test_tensor_types_beat_the_type_the_file_claims() -> None:
    log = "0.00.100.001 I llama_model_loader: - type  f16:  211 tensors\nllama_model_loader: - type  f32: 61 tensors\n"
    assert tensor_types(log) == {"f16": 211, "f32": 61}
    assert effective_config({"model_ftype": "Q4_0"}, {}, log).weight_type == "f16"
    assert effective_config({"model_ftype": "(guessed) Q8_0"}, {}, "").weight_type == "int8"
    assert effective_config({"model_ftype": "Q4_K - Medium"}, {}, "").weight_type == "int4"


def test_different_key_and_value_types_are_told_apart() -> None:
    log = LOG.replace("V (q8_0)", "V (f16)")
    assert effective_config({}, {}, log).kv_type == "int8+f16"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", OutOfMemory),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", OutOfMemory),
        ("llama_init_from_model: V cache quantization requires flash_attn", MethodUnsupported),
        ("llama_init_from_model: K cache type q8_0 with block size 32 does not divide n_embd_head_k=80",
         MethodUnsupported),
        ("error: invalid argument: --no-such-flag", EngineCrashed),
        ("gguf_init_from_file_impl: failed to read magic", EngineCrashed),
    ],
)  # fmt: skip
def test_a_failed_start_is_named_by_its_log(line: str, kind: type[Exception], tmp_path: Path) -> None:
    found = failure(f"{LOG}{line}\n")
    assert type(found) is kind and line.split(":")[-1].strip() in str(found) and found.hint
    launch = served("http://127.0.0.1:9", tmp_path)
    launch.log_path.write_text(f"{LOG}{line}\n")
    with pytest.raises(kind):
        LlamaCppEngine().effective(launch)


def test_a_good_log_is_no_failure() -> None:
    assert failure(LOG) is None
    assert failure("") is None
