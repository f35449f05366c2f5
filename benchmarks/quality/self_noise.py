"""The reference against itself on one embedded engine: the same batches, other batches, and no batching.

    python benchmarks/quality/self_noise.py [--method f16] [--prompts 24] [--tokens 48]

Bars: KL below 1e-3 and top-1 agreement above 99.5%. Where they are missed it is the engine's own nondeterminism, and
this names its size: at 8 requests in flight the continuations are made and scored, then scored again at 8, 3 and 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from qmeter import catalog, sources
from qmeter.engines.openvino import OpenVinoEngine
from qmeter.engines.server import serve
from qmeter.load.target import Target
from qmeter.quality.fidelity import builtin_prompts, compare, make_reference, score
from qmeter.spec.load import load_study_text
from qmeter.spec.study import Deployment, Parallelism
from qmeter.study.runner import default_cache

SHOWN = ("ppl_ratio", "kl_sampled", "kl_topk", "top1_agreement", "greedy_agreement", "changed_share")


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="f16")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    study = load_study_text((files("qmeter.study") / "quickstart.yaml").read_text(encoding="utf-8"))
    model, kept = study.models[0], True
    artifact = sources.prepare(model, catalog.method(options.method), "openvino", default_cache())
    deployment = Deployment(
        model=model, engine=study.engines[0], method=options.method, device="cpu", parallelism=Parallelism()
    )
    with tempfile.TemporaryDirectory() as folder, serve(OpenVinoEngine(), deployment, artifact, Path(folder)) as server:
        target = Target(server.launch.base_url, server.launch.served_model, timeout_s=600.0)
        reference = make_reference(target, builtin_prompts(options.prompts), options.tokens, top_k=20)
        base = score(target, reference)
        for at_once in (8, 3, 1):
            found = compare(base, score(target, reference, concurrency=at_once), reference=reference)
            print(f"{options.method} at 8 in flight against itself at {at_once}:")
            for name in SHOWN:
                q = found[name]
                print(f"  {name:20} {q.value:.6g} [{q.low:.6g}, {q.high:.6g}] n = {q.n}")
            kl, agree = (found[n].value or 0.0 for n in ("kl_sampled", "top1_agreement"))
            kept = kept and kl < 1e-3 and agree > 0.995
    print("bars (KL < 1e-3, agreement > 99.5%):", "met at every batching" if kept else "missed at some batching")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
