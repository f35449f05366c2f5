"""GIVEN a deployment, WHEN the vLLM adapter launches it, THEN the command says exactly what was asked."""

from __future__ import annotations

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from vllm_pages import make_log, make_page

from qmeter.engines.base import Artifact, Launch
from qmeter.engines.table import ENGINES
from qmeter.engines.vllm import VllmEngine, adapter, steplog
from qmeter.errors import EngineUnavailable, MethodUnsupported, OutOfMemory, SpecError
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism
from qmeter.telemetry.prometheus import parse_page


@pytest.fixture(autouse=True)
def vllm_is_installed(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        adapter.importlib.util, "find_spec", lambda name, *a: object() if name == "vllm" else real(name, *a)
    )


def deployment(method: str = "bf16", tp: int = 1, pp: int = 1, dp: int = 1, **engine) -> Deployment:
    return Deployment(
        model=ModelRef(name="llama", source="synth:llama-3.1-8b", shape="llama-3.1-8b"),
        engine=EngineRef(name="vllm", **engine), method=method, device="h200",
        parallelism=Parallelism(tp=tp, pp=pp, dp=dp),
    )  # fmt: skip


def launch(
    tmp_path: Path, method: str = "bf16", form: str = "safetensors", config: dict | None = None, **kwargs
) -> Launch:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    return VllmEngine().launch_command(deployment(method, **kwargs), Artifact(folder, form, ""), 8111, tmp_path / "w")


def following(argv, flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_table_row_is_this_adapter():
    assert isinstance(ENGINES.create("vllm"), VllmEngine)


def test_the_server_is_on_loopback_under_the_models_name(tmp_path):
    made = launch(tmp_path)
    assert made.argv[1:4] == ("-m", "vllm.entrypoints.cli.main", "serve")
    assert following(made.argv, "--host") == "127.0.0.1"
    assert following(made.argv, "--port") == "8111"
    assert following(made.argv, "--served-model-name") == made.served_model == "llama"
    assert made.base_url == "http://127.0.0.1:8111"


def test_knobs_become_vllm_flags(tmp_path):
    options = {
        "max_sequences": 64, "token_budget": 2048, "max_model_tokens": 4096, "gpu_memory_fraction": 0.85,
        "kv_cache_gib": 1.5, "prefix_cache": False, "cuda_graph_sizes": "1,2, 4", "eager": True, "seed": 7,
        "env.VLLM_X": "1", "enable_expert_parallel": True,
    }  # fmt: skip
    made = launch(tmp_path, options=options, args=("--foo", "bar"))
    text = " ".join(made.argv)
    parts = (
        "--max-num-seqs 64", "--max-num-batched-tokens 2048", "--max-model-len 4096", "--gpu-memory-utilization 0.85",
        "--kv-cache-memory-bytes 1610612736", "--no-enable-prefix-caching", "--cudagraph-capture-sizes 1 2 4",
        "--enforce-eager", "--seed 7", "--enable-expert-parallel",
    )  # fmt: skip
    for part in parts:
        assert part in text
    assert text.endswith("--foo bar")
    assert made.env["VLLM_X"] == "1"


def test_only_vllms_own_variables_can_be_set_from_a_study(tmp_path):
    with pytest.raises(SpecError, match="HF_TOKEN"):
        launch(tmp_path, options={"env.HF_TOKEN": "secret"})


@pytest.mark.parametrize(
    ("shape", "flags"),
    [
        ({"tp": 2}, "--tensor-parallel-size 2"),
        ({"pp": 4}, "--pipeline-parallel-size 4"),
        ({"dp": 2}, "--data-parallel-size 2 --api-server-count 1"),
    ],
)
def test_parallelism_for_any_number_of_gpus(tmp_path, shape, flags):
    assert flags in " ".join(launch(tmp_path, **shape).argv)


def test_a_16_bit_checkpoint_is_quantized_on_load_and_a_quantized_one_is_not(tmp_path):
    assert "--quantization" in launch(tmp_path, "fp8").argv
    assert "--quantization" not in launch(tmp_path, "fp8", config={"quantization_config": {"quant_method": "fp8"}}).argv


def test_kv_and_kernel_flags_come_from_the_catalog(tmp_path):
    made = launch(tmp_path, "w4a8kv4")
    assert following(made.argv, "--kv-cache-dtype") == "int4_per_token_head"
    assert following(made.argv, "--linear-backend") == "marlin"
    assert made.env["VLLM_MARLIN_INPUT_DTYPE"] == "int8"


def test_in_place_weights_name_the_loader_and_need_qmeters_own_python(tmp_path):
    made = launch(tmp_path, form="synth")
    assert following(made.argv, "--load-format") == "qmeter_synth"
    assert following(made.argv, "--worker-extension-cls") == "qmeter.sources.synth.inplace.SynthWorker"
    with pytest.raises(EngineUnavailable, match="in-place"):
        launch(tmp_path, form="synth", binary="/opt/other/vllm")


def test_the_step_log_can_be_turned_off_and_is_off_for_another_program(tmp_path):
    made = launch(tmp_path)
    assert following(made.argv, "--scheduler-cls") == steplog.QUALNAME
    assert made.env[steplog.PATH_ENV] == str(tmp_path / "w")
    assert "--scheduler-cls" not in launch(tmp_path, options={"step_log": False}).argv
    other = launch(tmp_path, binary="/opt/other/vllm")
    assert other.argv[:2] == ("/opt/other/vllm", "serve")
    assert "--scheduler-cls" not in other.argv
    assert other.standby is None


def test_a_method_without_vllm_flags_is_refused(tmp_path):
    with pytest.raises(MethodUnsupported, match="gguf-q4_0"):
        launch(tmp_path, "gguf-q4_0")


def test_no_vllm_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter.importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(EngineUnavailable) as caught:
        launch(tmp_path)
    assert "pip install vllm" in caught.value.hint


class Server:
    """A stand-in for vLLM's HTTP side: /health and /metrics as told."""

    def __init__(self):
        outer = self
        self.healthy, self.page = False, make_page()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                known = {"/health": "", "/metrics": outer.page} if outer.healthy else {}
                body = known.get(self.path)
                self.send_response(503 if body is None else 200)
                self.send_header("Content-Length", str(len(body or "")))
                self.end_headers()
                self.wfile.write((body or "").encode())

            def log_message(self, *args):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def launch(self, log_path: Path) -> Launch:
        return Launch(("x",), f"http://127.0.0.1:{self.http.server_address[1]}", "m", log_path)


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()


def test_not_ready_then_ready_with_what_the_log_and_the_page_say(server, tmp_path):
    made = server.launch(tmp_path / "server.log")
    engine = VllmEngine()
    assert engine.effective(made) is None
    made.log_path.write_text(make_log())
    assert engine.effective(made) is None
    server.healthy = True
    found = engine.effective(made)
    assert found.weight_bytes == int(14.99 * 2**30)
    assert found.kv_blocks == 53356
    assert found.properties["log.flash_attention"] == "3"


def test_a_start_that_runs_out_of_memory_is_that_error(server, tmp_path):
    made = server.launch(tmp_path / "server.log")
    made.log_path.write_text("(EngineCore pid=1) ERROR [x] torch.OutOfMemoryError: CUDA out of memory. Tried\n")
    with pytest.raises(OutOfMemory, match="does not fit"):
        VllmEngine().effective(made)


def test_every_mapped_metric_is_on_a_real_page():
    mapping = VllmEngine().metrics_map()
    found = parse_page(make_page(), {s.metric for s in mapping.sources})
    assert set(found) == {s.metric for s in mapping.sources}
    assert found["vllm:num_requests_waiting"] == 3.0
