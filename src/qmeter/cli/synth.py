"""``qmeter synth``: a checkpoint of random weights in a method's real format."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qmeter import catalog
from qmeter.errors import SourceError
from qmeter.sources.synth.checkpoint import Recipe, write_checkpoint, write_frame
from qmeter.sources.synth.prepare import SEED, checkpoint_kind


def synth(
    model: Annotated[str, typer.Argument(help="Catalog model whose shape it gets (see 'qmeter models').")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must be new or empty.")],
    method: Annotated[str, typer.Option("--method", help="Method whose format it gets.")] = "bf16",
    engine: Annotated[str, typer.Option("--engine", help="Engine that will read it.")] = "vllm",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Same seed, same weights (on the same kind of device).")
    ] = SEED,
    device: Annotated[
        str | None, typer.Option("--device", help="cuda or cpu; default: the GPU where there is one.")
    ] = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Only config and tokenizer: the engine fills the weights in place.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a checkpoint of random weights, truly quantized into a method's format.

    Speed and power depend on the data, so the weights are Gaussian, not zeros. Quality cannot be measured on them.
    """
    if out.exists() and any(out.iterdir()):
        raise SourceError(f"{out} is not empty", hint="name a new folder with --out")
    recipe = Recipe(shape=catalog.model(model), kind=checkpoint_kind(catalog.method(method), engine), seed=seed)
    started_s = time.monotonic()
    size = 0
    if no_weights:
        write_frame(out, recipe)
    else:
        size = write_checkpoint(out, recipe, device)
    took_s = time.monotonic() - started_s
    if as_json:
        print(
            json.dumps({"out": str(out), "kind": recipe.kind, "bytes": size, "took_s": took_s, "digest": recipe.digest})
        )
        return
    what = "config and tokenizer" if no_weights else f"{size / 1e9:.2f} GB of weights"
    Console().print(f"{out}: {model} as {recipe.kind}, {what}, in {took_s:.1f} s", highlight=False)
