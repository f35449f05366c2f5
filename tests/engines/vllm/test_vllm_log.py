"""GIVEN what vLLM 0.25.1 logs, WHEN it is read, THEN the effective configuration or the cause of a failure is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_pages import make_log, make_page

from qmeter import catalog
from qmeter.engines.base import Artifact, Launch
from qmeter.engines.verify import verify
from qmeter.engines.vllm import log
from qmeter.engines.vllm.adapter import VllmEngine, cache_info, effective_config
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism
from qmeter.telemetry.prometheus import EngineSampler

GIB = 2**30
SEEN = [
    # method, quantization, kernel line, GiB, KV dtype
    ("bf16", "None", "", "14.99", "auto"),
    ("gptq-w4a16", "auto_gptq", "Using MacheteLinearKernel for AutoGPTQLinearMethod", "5.31", "auto"),
    ("awq-w4a16", "auto_awq", "Using MacheteLinearKernel for AutoAWQMarlinLinearMethod", "5.34", "auto"),
    ("smoothquant-w8a8", "compressed-tensors", "Selected CutlassInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8",
     "8.49", "auto"),
    ("fp8", "compressed-tensors", "Selected CutlassFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8", "8.49",
     "auto"),
    ("fp8-kv8", "compressed-tensors", "Selected CutlassFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8", "8.49",
     "fp8"),
    ("w4a8-fp8", "compressed-tensors", "Using CutlassW4A8LinearKernel for CompressedTensorsW4A8Fp8", "5.61", "auto"),
    ("kv-fp8", "None", "", "14.99", "fp8"),
]  # fmt: skip


def deployment(method: str, **parallelism: int) -> Deployment:
    return Deployment(
        model=ModelRef(name="m", source="synth:llama-3.1-8b", shape="llama-3.1-8b"), engine=EngineRef(name="vllm"),
        method=method, device="h200", parallelism=Parallelism(**parallelism),
    )  # fmt: skip


def verified(method: str, text: str, page: str):
    effective = effective_config(text, page)
    shape = catalog.model("llama-3.1-8b")
    artifact = Artifact(None, "synth", "")  # type: ignore[arg-type]
    return effective, verify(deployment(method), catalog.method(method), shape, artifact, effective)


@pytest.mark.parametrize(("method", "quantization", "kernel", "gib", "kv"), SEEN)
def test_a_method_in_effect_is_verified_by_its_log(method, quantization, kernel, gib, kv):
    text = make_log(quantization, kv, kernel, (gib,))
    effective, found = verified(method, text, make_page(cache_dtype=kv))
    assert found.failed == ()
    assert found.verified
    assert effective.kv_blocks == 53356
    assert effective.kv_block_tokens == 16
    assert effective.token_budget == 8192
    assert effective.max_model_tokens == 4096
    assert effective.engine_version == "0.25.1"


def test_gptq_that_silently_runs_in_bf16_fails_verification():
    # the trap: quantization=auto_gptq, but no quantized kernel was chosen and 16-bit weights were loaded
    _, found = verified("gptq-w4a16", make_log("auto_gptq", gib=("14.99",)), make_page())
    assert {check.name for check in found.failed} >= {"weight_bytes", "weight_type"}


def test_a_16_bit_cache_under_a_kv_method_fails_verification():
    _, found = verified("kv-fp8", make_log(), make_page())
    assert [check.name for check in found.failed] == ["kv_type"]


def test_the_weights_of_all_workers_are_added():
    facts = log.parse(make_log(gib=("7.51", "7.49"), tp=2))
    assert facts.weight_bytes == int(15.0 * GIB)


def test_a_worker_whose_line_is_missing_counts_as_the_others():
    facts = log.parse(make_log(gib=("7.50",), tp=2))
    assert facts.weight_bytes == int(15.0 * GIB)


def test_an_empty_log_and_page_say_nothing():
    effective = effective_config("", "")
    assert effective.weight_bytes is None
    assert effective.kv_blocks is None
    assert effective.weight_type is None
    assert effective.sources == {}


def test_blocks_come_from_the_log_where_the_page_has_none():
    assert effective_config(make_log(), make_page(blocks="None")).kv_blocks == 853_696 // 16


def test_label_values_with_commas_and_quotes_are_whole():
    info = cache_info('vllm:cache_config_info{a="x,y",b="[1, 2]",block_size="32"} 1.0\n')
    assert info == {"a": "x,y", "b": "[1, 2]", "block_size": "32"}


FAILURES = [
    ("OutOfMemory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total"),
    ("OutOfMemory", "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
    ("OutOfMemory", "ValueError: To serve at least one request with the models's max seq len (8192), (2.5 GiB KV "
     "cache is needed, which is larger than the available KV cache memory (1.1 GiB)."),
    ("OutOfMemory", "ValueError: Free memory on device cuda:0 (80.1/139.8 GiB) on startup is less than desired GPU "
     "memory utilization (0.9, 125.8 GiB)."),
    ("MethodUnsupported", "ValueError: Failed to find a kernel that can implement the WNA16 linear layer. Reasons: "),
    ("MethodUnsupported", "NotImplementedError: No compressed-tensors compatible scheme was found for layer_name='x'"),
    ("MethodUnsupported", "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig("),
    ("MethodUnsupported", "ValueError: Weight input_size_per_partition = 11008 is not divisible by min_thread_k"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "line"), FAILURES)
def test_a_named_cause_is_reported_with_its_line(kind, line):
    text = make_log() + f"(EngineCore pid=411) ERROR 11-23 17:30:01 [core.py:900] {line}\n"
    found = log.failure(text)
    assert found is not None
    assert found.kind == kind
    assert line[:60] in found.message
    assert found.hint


def test_a_model_that_does_not_fit_its_gpu_is_told_in_the_gpus_words():
    """GIVEN what vLLM wrote when Llama-3.1-70B in BF16 was to fit one H100 THEN the cause is memory, with figures."""
    text = (Path(__file__).parent / "fixtures" / "llama-3.1-70b-bf16-does-not-fit.log").read_text()
    found = log.failure(text)
    assert found is not None and found.kind == "OutOfMemory"
    assert found.message.startswith("the model does not fit") and "79.18 GiB" in found.message
    assert "parallelism" in (found.hint or "")


def test_memory_that_another_process_holds_is_not_called_a_model_that_does_not_fit():
    line = (
        "ValueError: Free memory on device cuda:0 (68.69/139.8 GiB) on startup is less than desired GPU memory "
        "utilization (0.5, 69.9 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    found = log.failure(make_log() + f"(EngineCore pid=411) ERROR 11-23 17:30:01 [core.py:900] {line}\n")
    assert found is not None and found.kind == "OutOfMemory"
    assert found.message.startswith("another process holds the device's memory")
    assert "nvidia-smi" in (found.hint or "") and "fewer bits" not in (found.hint or "")


def test_any_other_exception_counts_only_once_the_engine_gave_up():
    text = make_log() + "(EngineCore pid=411) ERROR 11-23 17:30:01 [core.py:900] KeyError: 'layers.0'\n"
    assert log.failure(text) is None
    died = text + "(APIServer pid=300) RuntimeError: Engine core initialization failed. See root cause above.\n"
    found = log.failure(died)
    assert found is not None
    assert found.kind == "EngineCrashed"
    assert "KeyError" in found.message


def test_a_wrong_flag_is_named():
    found = log.failure("usage: vllm serve\nvllm serve: error: unrecognized arguments: --no-such-flag\n")
    assert found is not None
    assert "--no-such-flag" in found.message


def test_warnings_about_support_and_memory_are_no_failure():
    text = make_log() + (
        "(EngineCore pid=411) WARNING 11-23 17:29:18 [x.py:1] fp8 KV scales are not supported here, using 1.0\n"
        "(EngineCore pid=411) INFO 11-23 17:29:18 [x.py:1] CUDA graphs may run out of memory\n"
    )
    assert log.failure(text) is None


def test_types_that_the_kernel_was_configured_with_count_more_than_its_name():
    text = make_log("auto_gptq", kernel="Using MarlinLinearKernel for AutoGPTQLinearMethod", gib=("5.31",)) + (
        "(EngineCore pid=411) INFO 11-23 17:29:20 [inplace.py:56] MarlinLinearKernel configured with weights uint4b8 "
        "and activations torch.int8\n"
    )
    effective, found = verified("w4a8-int8", text, make_page())
    assert (effective.weight_type, effective.activation_type) == ("int4", "int8")
    assert found.verified
    _, wrong = verified("gptq-w4a16", text, make_page())
    assert "activation_type" in {check.name for check in wrong.failed}


def dp_log(ranks: int = 2, tp: int = 1, kv_tokens: tuple[str, ...] = ("853,696", "851,200")) -> str:
    """A start with data-parallel ranks of a dense model, as vLLM 0.25.1 writes it (v1/engine/core.py: each rank is an
    engine core of its own, and reports ``data_parallel_size=1``)."""
    text = ""
    for rank in range(ranks):
        one = make_log(gib=("14.99",) * tp if tp == 1 else ("7.5",) * tp, tp=tp)
        text += one.replace("EngineCore pid", f"EngineCore_DP{rank} pid").replace("853,696", kv_tokens[rank])
    return text


def dp_page(blocks: str = "106556", ranks: int = 2) -> str:
    """Its page: gauges a rank; cache_config_info under each rank's label, with the sum over ranks in it."""
    page = make_page(blocks=blocks)
    return page + "".join(page.replace('engine="0"', f'engine="{r}"') for r in range(1, ranks))


@pytest.mark.parametrize("tp", [1, 2])
def test_every_data_parallel_replica_holds_all_the_weights(tp):
    facts = log.parse(dp_log(tp=tp))
    assert facts.replicas == 2
    assert facts.weight_bytes == pytest.approx(2 * 15 * GIB, rel=0.01)
    effective = effective_config(dp_log(tp=tp), dp_page())
    shape = catalog.model("llama-3.1-8b")
    method = catalog.method("bf16")
    found = verify(deployment("bf16", tp=tp, dp=2), method, shape, Artifact(Path("x"), "synth", ""), effective)
    assert found.verified, found.failed
    wrong = verify(deployment("bf16", tp=tp), method, shape, Artifact(Path("x"), "synth", ""), effective)
    assert [c.name for c in wrong.failed] == ["weight_bytes"]


def test_ranks_that_write_into_one_line_or_out_of_order_are_told_apart():
    size = "INFO 11-26 00:31:30 [kv_cache_utils.py:2146] GPU KV cache size:"
    text = (
        f"(EngineCore_DP1 pid=9938) {size} 449,968 tokens\n"
        f"(EngineCore_DP1 pid=9938) (EngineCore_DP0 pid=9935) {size} 451,840 tokens\n"
        "(Worker pid=9948) INFO 11-26 00:31:08 [m.py:302] Model loading took 14.0 GiB and 1.5 s\n"
        "(Worker pid=9947) (Worker pid=9948) INFO 11-26 00:31:09 [m.py:302] Model loading took 15.0 GiB and 1.5 s\n"
        "(Worker pid=9947) INFO 11-26 00:31:09 [m.py:302] Model loading took 15.0 GiB and 1.5 s\n"
    )
    facts = log.parse(text)
    assert facts.replicas == 2
    assert facts.replica_kv_tokens == (451_840, 449_968)
    assert facts.worker_gib == (15.0, 15.0)  # a worker that loads again counts once, as it loaded last


def test_more_workers_than_asked_for_all_count():
    line = "INFO 11-26 00:31:08 [m.py:302] Model loading took 15.0 GiB and 1.5 seconds\n"
    text = make_log(gib=()) + f"(Worker pid=1) {line}" + f"(Worker pid=2) {line}"
    assert log.parse(text).weight_bytes == 30 * GIB


def test_kv_blocks_are_one_replicas_the_smallest_where_the_page_gives_the_sum():
    assert effective_config(dp_log(), dp_page()).kv_blocks == 851_200 // 16
    silent = dp_log().replace("GPU KV cache size", "no such line")
    assert effective_config(silent, dp_page()).kv_blocks == 106556 // 2
    assert effective_config(make_log(), make_page()).kv_blocks == 53356
    assert effective_config(dp_log(), dp_page()).properties["replicas"] == "2"


def test_counts_of_the_ranks_add_up_and_their_cache_use_does_not():
    page = dp_page()
    sampler = EngineSampler(Launch(None, "http://127.0.0.1:1", "m", Path("x")), VllmEngine().metrics_map())
    sampler._get = lambda path: page
    values = sampler.read()
    assert values["engine.running"] == 24.0
    assert values["engine.generated_tokens"] == 25600.0
    assert values["engine.kv_use"] == 0.125
