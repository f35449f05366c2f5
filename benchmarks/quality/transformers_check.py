"""Perplexity through the served endpoint against `transformers` on the same weights: they must agree within 1%.

    python benchmarks/quality/transformers_check.py --python TORCH_VENV/bin/python [--text FILE…] [--method f16]

Serves the quickstart's F16 GGUF on the embedded engine and scores windows of text there; writes the same GGUF as
safetensors (``quantize.gguf_export``), reads it with `transformers` in float32 in the other interpreter, which needs
torch and transformers, and scores the very same token ids. Also compares the two tokenizers on the text. Prints both
perplexities with their ratio and its bootstrap interval over windows; exits 1 beyond 1%.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 0.01


def served(method: str, texts: list[str], window: int, count: int) -> dict[str, Any]:
    """Token ids (shape (windows, window)) and their log-probabilities as the endpoint gives them."""
    from qmeter import catalog, sources
    from qmeter.engines.openvino import OpenVinoEngine
    from qmeter.engines.server import serve
    from qmeter.load.target import Target
    from qmeter.quality.client import Completions, each
    from qmeter.spec.load import load_study_text
    from qmeter.spec.study import Deployment, Parallelism
    from qmeter.study.runner import default_cache

    study = load_study_text((files("qmeter.study") / "quickstart.yaml").read_text(encoding="utf-8"))
    model = study.models[0]
    artifact = sources.prepare(model, catalog.method(method), "openvino", default_cache())
    deployment = Deployment(
        model=model, engine=study.engines[0], method=method, device="cpu", parallelism=Parallelism()
    )
    with tempfile.TemporaryDirectory() as folder, serve(OpenVinoEngine(), deployment, artifact, Path(folder)) as server:
        client = Completions(Target(server.launch.base_url, server.launch.served_model, timeout_s=600.0))
        pieces = [text[at : at + 1500] for text in texts for at in range(0, len(text), 1500)]
        ids = [client.generate(piece, 1).prompt_ids or () for piece in pieces]
        rows = [list(i[:window]) for i in ids if len(i) >= window][:count]
        scores = each(lambda row: client.score(row).logprobs[1:], rows, 4)
        precision = str(server.effective.properties.get("INFERENCE_PRECISION_HINT", "unknown"))
    return {"ids": rows, "logprobs": [list(s) for s in scores], "pieces": pieces, "piece_ids": [list(i) for i in ids],
            "gguf": str(artifact.path), "precision": precision}  # fmt: skip


def transformed(job: str) -> None:
    """In the interpreter with torch: log-probabilities of the same ids, and how its tokenizer splits the text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = json.loads(Path(job).read_text())
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    same = [tokenizer(p)["input_ids"] == i for p, i in zip(asked["pieces"], asked["piece_ids"], strict=True)]
    rows = []
    with torch.no_grad():
        for row in asked["ids"]:
            ids = torch.tensor([row])
            logp = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
            rows.append(logp.gather(-1, ids[0, 1:, None])[:, 0].tolist())
    Path(asked["out"]).write_text(json.dumps({"logprobs": rows, "same_ids": sum(same), "pieces": len(same)}))


def main() -> None:
    """Score both ways and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter with torch and transformers")
    parser.add_argument("--method", default="f16", help="f16, or another that is served from the F16 GGUF (kv8, kv4)")
    parser.add_argument("--text", nargs="*", type=Path, default=[ROOT / "LICENSE", ROOT / "docs" / "measurement.md"])
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16)
    options = parser.parse_args()

    import numpy as np

    from qmeter.quality.statistics import bootstrap_ratio
    from qmeter.quantize.gguf_export import export_gguf

    texts = [path.read_text(encoding="utf-8") for path in options.text]
    mine = served(options.method, texts, options.window, options.windows)
    with tempfile.TemporaryDirectory() as scratch:
        model = export_gguf(Path(mine["gguf"]), Path(scratch) / "model", dtype="f16")
        job, out = Path(scratch) / "job.json", Path(scratch) / "out.json"
        job.write_text(json.dumps({"model": str(model), "out": str(out), **mine}))
        subprocess.run([options.python, __file__, "--child", str(job)], check=True)
        other = json.loads(out.read_text())
    a, b = np.array(mine["logprobs"]), np.array(other["logprobs"])
    gaps = (b - a).sum(axis=1)
    counts = np.full(len(gaps), float(a.shape[1]))
    interval = bootstrap_ratio(gaps, counts, link=np.exp)
    ratio = math.exp(gaps.sum() / counts.sum())
    span = f" [{interval.low:.5f}, {interval.high:.5f}]" if interval else ""
    print(f"{a.size} tokens in {len(a)} windows of {options.window}; same token ids from both tokenizers for "
          f"{other['same_ids']} of {other['pieces']} pieces of text")  # fmt: skip
    print(f"served ({options.method}, engine executes in {mine['precision']}): perplexity {math.exp(-a.mean()):.4f}")
    print(f"transformers (float32):                        perplexity {math.exp(-b.mean()):.4f}")
    print(f"ratio {ratio:.5f}{span}; largest difference of one token's log-probability {np.abs(a - b).max():.3f} nat")
    sys.exit(abs(ratio - 1) > LIMIT or other["same_ids"] < other["pieces"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        transformed(sys.argv[2])
    else:
        main()
