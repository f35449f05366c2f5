"""Runs in a process with torch and llm-compressor or bitsandbytes (and without qMeter): ``python worker.py JOB.json``.

Stages, each written whole before the next and left alone where it is there already: the token ids to calibrate on,
``checkpoint/`` (what vLLM loads), ``measured.json`` (errors of the checkpoint as read back from disk).
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PR_SET_PDEATHSIG = 1


def main(job_path: str) -> None:
    """Run the job's missing stages; end when the parent ends, whose lock keeps others off the same folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    work = Path(job["work"])
    times: dict[str, float] = {}
    made = (calibrate, Path(job["ids"])), (compress, work / "checkpoint"), (measure, work / "measured.json")
    for stage, out in made:
        if out.exists():
            continue
        say(stage.__name__)
        began = time.monotonic()
        stage(job, work, out)
        times[stage.__name__] = time.monotonic() - began
        known = work / "times.json"
        merged = {**(json.loads(known.read_text()) if known.exists() else {}), **times}
        replace_text(known, json.dumps(merged))


def say(stage: str) -> None:
    """Tell the parent which stage begins."""
    print(f"qmeter-stage {stage}", flush=True)


def replace_text(path: Path, text: str) -> None:
    """Write under another name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def load(folder: str, dtype: str = "auto") -> Any:
    """The model, for evaluation."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def calibrate(job: dict[str, Any], work: Path, out: Path) -> None:
    """Token ids, shape (samples + held out, tokens): out of the given text, or written by the model itself."""
    count = job["samples"] + job["held_out"]
    if job["calibration"]:
        from transformers import AutoTokenizer

        text = Path(job["calibration"]).read_text(encoding="utf-8")
        ids = AutoTokenizer.from_pretrained(job["model"])(text)["input_ids"]
        rows = len(ids) // job["tokens"]
        if rows < count:
            sys.exit(f"the calibration text has {rows} stretches of {job['tokens']} tokens, {count} are needed")
        picked = np.random.default_rng(job["seed"]).choice(rows, size=count, replace=False)
        table = np.array(ids[: rows * job["tokens"]], np.int64).reshape(rows, -1)[picked]
    else:
        table = generate(job, count)
    temporary = out.with_name(out.stem + ".tmp.npy")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(temporary, table, allow_pickle=False)
    temporary.replace(out)


def generate(job: dict[str, Any], count: int) -> np.ndarray:
    """The model's own text from single random tokens, sampled at temperature 1 after 3 greedy ones.

    As in LLM-QAT (Liu et al. 2023): data-free, and of the distribution that the model will be used on.
    """
    import torch

    model, rng = load(job["model"], "float32"), np.random.default_rng(job["seed"])
    torch.manual_seed(job["seed"])
    special = {v for v in vars(model.generation_config).values() if isinstance(v, int) and not isinstance(v, bool)}
    first = [int(i) for i in rng.permutation(model.config.vocab_size) if int(i) not in special][:count]
    with torch.no_grad():
        ids = torch.tensor(first)[:, None]
        begun = model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        made = model.generate(
            begun, max_new_tokens=job["tokens"] - 4, min_new_tokens=job["tokens"] - 4, do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, pad_token_id=0,
        )  # fmt: skip
    table: np.ndarray = made.numpy().astype(np.int64)
    return table


def compress(job: dict[str, Any], work: Path, out: Path) -> None:
    """Quantize with llm-compressor or bitsandbytes and save in the layout that vLLM loads."""
    import shutil

    from transformers import AutoTokenizer

    temporary = out.with_name("checkpoint.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if job["recipe"]["algorithm"] == "bitsandbytes":
        load_int8(job).save_pretrained(temporary)
    else:
        packed = {"quantization_format": "pack-quantized"} if job["recipe"]["weights"]["num_bits"] == 4 else {}
        by_llmcompressor(job).save_pretrained(temporary, save_compressed=True, **packed)
    AutoTokenizer.from_pretrained(job["model"]).save_pretrained(temporary)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        source = Path(job["model"]) / name
        if source.exists():
            shutil.copyfile(source, temporary / name)
    temporary.rename(out)


def load_int8(job: dict[str, Any]) -> Any:
    """The model with linear layers in LLM.int8(), which bitsandbytes makes while loading."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    asked = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(job["model"], quantization_config=asked, device_map="cpu")


def by_llmcompressor(job: dict[str, Any]) -> Any:
    """The model, quantized by llm-compressor's modifiers on the calibration ids."""
    from datasets import Dataset
    from llmcompressor import oneshot

    table = np.load(job["ids"], allow_pickle=False)[: job["samples"]]
    rows = {"input_ids": table.tolist(), "attention_mask": np.ones_like(table).tolist()}
    model = load(job["model"])
    _without_pinning()
    oneshot(
        model=model, dataset=Dataset.from_dict(rows), recipe=recipe(job), max_seq_length=job["tokens"],
        num_calibration_samples=job["samples"], shuffle_calibration_samples=False,
    )  # fmt: skip
    return model


def _without_pinning() -> None:
    """llm-compressor 0.14 pins AWQ's cache for a GPU also where there is none, which torch refuses: make it a no-op."""
    import torch

    if not torch.accelerator.is_available():
        tensor: Any = torch.Tensor
        tensor.pin_memory = lambda self, *_, **__: self


def recipe(job: dict[str, Any]) -> list[Any]:
    """llm-compressor's modifiers for the job's recipe."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier, SmoothQuantModifier

    plan = job["recipe"]
    activations = QuantizationArgs(**plan["activations"]) if plan["activations"] else None
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**plan["weights"]), input_activations=activations
    )
    rounding = {"gptq": GPTQModifier, "rtn": QuantizationModifier}[plan["algorithm"]]
    steps = [rounding(config_groups={"group_0": scheme}, ignore=["lm_head"])]
    if plan["transform"] == "smoothquant":
        steps.insert(0, SmoothQuantModifier(smoothing_strength=0.8))
    elif plan["transform"] == "awq":
        steps.insert(0, AWQModifier())
    return steps


def measure(job: dict[str, Any], work: Path, out: Path) -> None:
    """Errors on held-out text of the checkpoint as read back: hidden states a layer, and perplexity.

    The error of a layer is ||h' - h|| / ||h|| over its output hidden states, the errors of earlier layers included.
    """
    import torch

    table = torch.tensor(np.load(job["ids"], allow_pickle=False)[-job["held_out"] :])
    found: list[tuple[Any, Any]] = []
    with torch.no_grad():
        for folder in (job["model"], str(work / "checkpoint")):
            answer = load(folder)(table, output_hidden_states=True)
            log = torch.log_softmax(answer.logits[:, :-1].float(), -1)
            found.append(([h.float() for h in answer.hidden_states[1:]], log))
    (before, log_p), (after, log_q) = found
    errors = [float((b - a).norm() / a.norm()) for a, b in zip(before, after, strict=True)]
    gap = (log_p - log_q).gather(-1, table[:, 1:, None])
    result = {
        "layer_errors": errors,
        "ppl_ratio": float(gap.mean().exp()),
        "kl": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "top1_agreement": float((log_p.argmax(-1) == log_q.argmax(-1)).float().mean()),
        "held_out_tokens": int(gap.numel()),
    }
    replace_text(out, json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
