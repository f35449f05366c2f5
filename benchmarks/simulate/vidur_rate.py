"""Scheduler iterations a second of Vidur: run by ``side_by_side.py`` inside Vidur's own environment and folder.

    python vidur_rate.py OUT.json TRACE.csv REQUESTS

Only the event loop is timed, with metrics and plots off; training the execution-time model is not counted. Where
Vidur's attention profile is missing (a large file of its repository), one is made by formula: Vidur looks predictions
up in a dictionary, so its speed does not depend on their values.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import pandas as pd
from vidur.config import SimulationConfig
from vidur.entities.batch import Batch
from vidur.simulator import Simulator

MODEL = "meta-llama/Llama-2-7b-hf"


def attention_profile() -> None:
    path = Path(f"data/profiling/compute/a100/{MODEL}/attention.csv")
    if path.is_file():
        return
    rows = [(0, b, k) for b, k in itertools.product((1, 8, 32, 128), range(64, 4097, 256))]
    rows += [(c, 1, k) for c, k in itertools.product((64, 256, 1024, 2048, 4096), (0, 64, 512, 2048))]
    data = [
        {"n_embd": 4096, "n_q_head": 32, "n_kv_head": 32, "block_size": 16, "num_tensor_parallel_workers": 1,
         "prefill_chunk_size": c, "batch_size": b, "kv_cache_size": k,
         "time_stats.attn_kv_cache_save.median": 0.005,
         "time_stats.attn_prefill.median": 0.01 + c * (k + c / 2) * 1e-7 if c else 0.0,
         "time_stats.attn_decode.median": 0.01 + b * k * 1.2e-7 if not c else 0.0}
        for c, b, k in rows
    ]  # fmt: skip
    pd.DataFrame(data).to_csv(path, index=False)


def main() -> None:
    out, trace, requests = sys.argv[1], sys.argv[2], sys.argv[3]
    attention_profile()
    sys.argv = [
        "vidur", "--replica_config_model_name", MODEL, "--replica_config_device", "a100",
        "--replica_config_network_device", "a100_dgx",
        "--cluster_config_num_replicas", "1",
        "--replica_scheduler_config_type", "vllm", "--vllm_scheduler_config_batch_size_cap", "128",
        "--vllm_scheduler_config_max_tokens_in_batch", "4096",
        "--request_generator_config_type", "trace_replay", "--trace_request_generator_config_trace_file", trace,
        "--trace_request_generator_config_max_tokens", "4096",
        "--execution_time_predictor_config_type", "random_forrest",
        "--random_forrest_execution_time_predictor_config_num_estimators", "10",
        "--random_forrest_execution_time_predictor_config_max_depth", "8",
        "--random_forrest_execution_time_predictor_config_min_samples_split", "2",
        "--random_forrest_execution_time_predictor_config_k_fold_cv_splits", "2",
        "--random_forrest_execution_time_predictor_config_kv_cache_prediction_granularity", "512",
        "--no-metrics_config_write_metrics", "--no-metrics_config_write_json_trace",
        "--no-metrics_config_enable_chrome_trace", "--no-metrics_config_store_plots",
        "--no-metrics_config_store_operation_metrics", "--no-metrics_config_store_token_completion_metrics",
        "--no-metrics_config_store_request_metrics", "--no-metrics_config_store_batch_metrics",
        "--no-metrics_config_store_utilization_metrics",
    ]  # fmt: skip
    simulator = Simulator(SimulationConfig.create_from_cli_args())
    batches = [0]
    begin = Batch.__init__

    def counted(self: Batch, *args: object, **kwargs: object) -> None:
        batches[0] += 1
        begin(self, *args, **kwargs)

    Batch.__init__ = counted
    wall, cpu = time.perf_counter(), time.process_time()
    simulator.run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    Path(out).write_text(json.dumps({"iterations": batches[0], "requests": int(requests), "wall_s": wall, "cpu_s": cpu,
                                     "simulated_s": simulator._time}))  # fmt: skip
    import os

    os._exit(0)


if __name__ == "__main__":
    main()
