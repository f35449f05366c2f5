"""Logs and pages as vLLM 0.25.1 writes them; recorded ones replace them as they come from the GPU host."""

from __future__ import annotations

CONFIG = (
    "(EngineCore pid=411) INFO 11-23 17:29:16 [core.py:115] Initializing a V1 LLM engine (v0.25.1) with config: "
    "model='/c/synth/llama', speculative_config=None, tokenizer='/c/synth/llama', skip_tokenizer_init=False, "
    "tokenizer_mode=auto, revision=None, tokenizer_revision=None, trust_remote_code=False, dtype=torch.bfloat16, "
    "max_seq_len=4096, download_dir=None, load_format=qmeter_synth, tensor_parallel_size={tp}, "
    "pipeline_parallel_size=1, data_parallel_size=1, decode_context_parallel_size=1, dcp_comm_backend=ag_rs, "
    "disable_custom_all_reduce=False, quantization={quantization}, quantization_config=None, enforce_eager=False, "
    "enable_return_routed_experts=False, kv_cache_dtype={kv}, device_config=cuda, seed=0, served_model_name=m, "
    "enable_prefix_caching=False, enable_chunked_prefill=True, pooler_config=None\n"
)


def make_log(
    quantization: str = "None", kv: str = "auto", kernel: str = "", gib: tuple[str, ...] = ("14.99",), tp: int = 1
) -> str:
    """A whole successful start."""
    lines = [
        "(APIServer pid=300) INFO 11-23 17:29:08 [scheduler.py:252] Chunked prefill is enabled with "
        "max_num_batched_tokens=8192.",
        "(APIServer pid=300) INFO 11-23 17:29:08 [vllm.py:1042] Asynchronous scheduling is enabled.",
        CONFIG.format(quantization=quantization, kv=kv, tp=tp).rstrip(),
        "(EngineCore pid=411) INFO 11-23 17:29:18 [cuda.py:476] Using FLASH_ATTN attention backend out of potential "
        "backends: ['FLASH_ATTN', 'TRITON_ATTN', 'FLEX_ATTENTION'].",
        "(EngineCore pid=411) INFO 11-23 17:29:18 [flash_attn.py:718] Using FlashAttention version 3",
        *([f"(EngineCore pid=411) INFO 11-23 17:29:18 [x.py:1] {kernel}"] if kernel else []),
        *(
            f"(Worker_TP{i} pid=42{i}) INFO 11-23 17:29:21 [model_runner.py:303] Model loading took {g} GiB and "
            "2.412345 seconds"
            for i, g in enumerate(gib)
        ),
        "(EngineCore pid=411) INFO 11-23 17:29:39 [monitor.py:48] torch.compile took 14.21 s in total",
        "(EngineCore pid=411) INFO 11-23 17:29:41 [gpu_worker.py:538] Available KV cache memory: 104.21 GiB",
        "(EngineCore pid=411) INFO 11-23 17:29:41 [kv_cache_utils.py:2146] GPU KV cache size: 853,696 tokens",
        "(EngineCore pid=411) INFO 11-23 17:29:44 [model_runner.py:723] Graph capturing finished in 3 secs, "
        "took 0.41 GiB",
        "(EngineCore pid=411) INFO 11-23 17:29:44 [core.py:338] init engine (profile, create kv cache, warmup model) "
        "took 22.90 s (compilation: 14.21 s)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def make_page(cache_dtype: str = "auto", blocks: str = "53356") -> str:
    """A metrics page, cut to what qMeter reads."""
    return (
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0",model_name="m"} 12.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 3.0\n'
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.125\n'
        'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 4096.0\n'
        'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 0.0\n'
        'vllm:num_preemptions_total{engine="0",model_name="m"} 0.0\n'
        'vllm:prompt_tokens_total{engine="0",model_name="m"} 51200.0\n'
        'vllm:generation_tokens_total{engine="0",model_name="m"} 12800.0\n'
        f'vllm:cache_config_info{{block_size="16",cache_dtype="{cache_dtype}",enable_prefix_caching="False",'
        f'engine="0",gpu_memory_utilization="0.9",num_gpu_blocks="{blocks}",sliding_window="None"}} 1.0\n'
    )
