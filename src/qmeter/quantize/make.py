"""From a model and a method to a checkpoint on disk with its manifest: made once, found by content afterwards.

``<cache>/quantized/<method>-<key>/`` holds ``checkpoint/`` and ``manifest.json`` (``exported/`` 16-bit models and
``calibration/`` token ids, both shared by methods); the key is a hash of the model's
content and of everything that decides the weights. A run that was stopped goes on with the stage it lacks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from qmeter.errors import MissingExtra, SourceError
from qmeter.quantize.gguf_export import export_gguf
from qmeter.quantize.recipes import RECIPE_VERSION, Recipe, group_size, recipe

Progress = Callable[[str], None]
_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Options:
    """What decides the weights besides model and method.

    Attributes:
        calibration: text file; ``None``: the model's own sampled text.
        samples, tokens: calibration sequences and their length.
        held_out: sequences kept for measuring the error.
        group: group size; ``None``: the largest of 128, 64, 32 that fits every layer.
        seed: of sampling and of the choice of text.
    """

    calibration: Path | None = None
    samples: int = 32
    tokens: int = 256
    held_out: int = 4
    group: int | None = None
    seed: int = 1


class Manifest(BaseModel):
    """What was made and how good it is. Saved beside the checkpoint.

    Attributes:
        checkpoint: folder to serve (``models[].checkpoints`` of a study takes it).
        size_bytes, reference_bytes: of the weight files, the checkpoint's and the 16-bit model's.
        layer_errors: relative error of each layer's output hidden states on held-out text.
        ppl_ratio, kl, top1_agreement: against the 16-bit model on held-out text, through transformers.
        times_s: stage → seconds.
        versions: of the tools that made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    model_sha256: str
    checkpoint: str
    recipe: dict[str, Any]
    group: int | None
    calibration: str
    samples: int
    tokens: int
    seed: int
    size_bytes: int
    reference_bytes: int
    layer_errors: tuple[float, ...]
    ppl_ratio: float
    kl: float
    top1_agreement: float
    held_out_tokens: int
    times_s: dict[str, float]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


def make_checkpoint(
    model: Path, method: str, cache: Path, *, options: Options | None = None, python: Path | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:  # fmt: skip
    """The checkpoint of ``method`` for ``model``, made in a process of its own unless the cache has it.

    Args:
        model: GGUF file or folder of safetensors, 16-bit.
        method: a catalogued method that needs a checkpoint.
        cache: folder for what is made.
        options: see :class:`Options`.
        python: interpreter that has torch and llm-compressor; ``None``: this one.
        progress: told which stage begins.

    Raises:
        UnknownName, MethodUnsupported: the method is none that a checkpoint is made for.
        MissingExtra: llm-compressor (for LLM.int8(): bitsandbytes) is not installed for ``python``.
        SourceError: the model cannot be read, or quantization failed.
    """
    known, plan = recipe(method)
    chosen, cache = options or Options(), cache.expanduser().absolute()
    began = time.monotonic()
    digest = _content(model)
    folder = _reference(model, digest, cache, progress)
    filled, group = _filled(plan, folder, chosen)
    text = _file_sha256(chosen.calibration) if chosen.calibration else "self"
    said = [RECIPE_VERSION, digest, filled.plain(), text, chosen.samples, chosen.tokens, chosen.held_out, chosen.seed]
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    home = cache / "quantized" / f"{known.name}-{key}"
    with _locked(home):
        if (home / "manifest.json").exists():
            return Manifest.model_validate_json((home / "manifest.json").read_text(encoding="utf-8"))
        versions = _versions(python or Path(sys.executable), plan.algorithm)
        ids = hashlib.sha256(json.dumps([digest, text, *said[4:]]).encode()).hexdigest()[:16]
        job = {
            "work": str(home), "ids": str(cache / "calibration" / f"{ids}.npy"), "model": str(folder),
            "recipe": filled.plain(), "samples": chosen.samples, "tokens": chosen.tokens, "seed": chosen.seed,
            "held_out": chosen.held_out,
            "calibration": str(chosen.calibration.absolute()) if chosen.calibration else None,
        }  # fmt: skip
        _work(python or Path(sys.executable), job, home, progress)
        measured = json.loads((home / "measured.json").read_text())
        times = json.loads((home / "times.json").read_text()) | {"all": time.monotonic() - began}
        manifest = Manifest(
            method=known.name, model_sha256=digest, checkpoint=str(home / "checkpoint"), recipe=filled.plain(),
            group=group, calibration=text, samples=chosen.samples, tokens=chosen.tokens, seed=chosen.seed,
            size_bytes=_weight_bytes(home / "checkpoint"), reference_bytes=_weight_bytes(folder),
            times_s=times, versions=versions, notes=tuple(filter(None, [plan.note])), **measured,
        )  # fmt: skip
        _replace(home / "manifest.json", manifest.model_dump_json(indent=1))
    return manifest


def reference_folder(model: Path, cache: Path) -> Path:
    """The 16-bit folder that ``model``'s checkpoints are made from (of a GGUF: its values as BF16, in ``cache``).

    Raises:
        SourceError: as :func:`make_checkpoint`.
    """
    return _reference(model, _content(model), cache.expanduser().absolute(), lambda _: None)


def _reference(model: Path, digest: str, cache: Path, progress: Progress) -> Path:
    """The 16-bit folder to start from: the model's own, or the GGUF's values written as BF16."""
    if model.is_dir():
        if "quantization_config" in json.loads((model / "config.json").read_text(encoding="utf-8")):
            raise SourceError(f"{model} is quantized already", stage="quantize", hint="start from the 16-bit model")
        return model.absolute()
    folder = cache / "exported" / f"{digest[:16]}-bf16"
    with _locked(folder):
        if not (folder / "config.json").exists():
            progress("export")
        return export_gguf(model, folder)


def _filled(plan: Recipe, folder: Path, options: Options) -> tuple[Recipe, int | None]:
    """The recipe with its group size, checked against the layers' input widths."""
    if plan.weights["strategy"] != "group":
        return plan, None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or config["hidden_size"] // heads)
    size = group_size([int(config["hidden_size"]), int(config["intermediate_size"]), heads * head], options.group)
    weights = {**plan.weights, "group_size": size}
    return Recipe(plan.algorithm, weights, plan.activations, plan.transform, plan.calibrated, plan.note), size


def _work(python: Path, job: dict[str, Any], home: Path, progress: Progress) -> None:
    """Run the worker, passing on which stage it is in; its full output is kept in ``log.txt``."""
    home.mkdir(parents=True, exist_ok=True)
    _replace(home / "job.json", json.dumps(job, indent=1))
    with (home / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [str(python), str(_WORKER), str(home / "job.json")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                if line.startswith("qmeter-stage "):
                    progress(line.split()[1])
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        lines = (home / "log.txt").read_text(encoding="utf-8").strip().splitlines()
        raise SourceError(
            f"quantization failed (exit {code}): {lines[-1][:300] if lines else 'no output'}", stage="quantize",
            hint=f"its whole output is in {home / 'log.txt'}; running again goes on where it stopped",
        )  # fmt: skip


def _versions(python: Path, algorithm: str) -> dict[str, str]:
    """Versions of the tools that ``algorithm`` needs, as ``python`` sees them.

    Raises:
        MissingExtra: they are not all there.
    """
    by = {"bitsandbytes": ("bitsandbytes", "accelerate")}
    names = ("torch", "transformers", *by.get(algorithm, ("llmcompressor", "compressed-tensors", "datasets")))
    code = f"import json,importlib.metadata as m;print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        raise MissingExtra("quantize", "making a quantized checkpoint") from None
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _content(model: Path) -> str:
    """SHA-256 of a GGUF file, or of a folder's configuration and weight files."""
    if not model.exists():
        raise SourceError(f"{model} does not exist", stage="quantize", hint="give a GGUF file or a model folder")
    if model.is_file():
        return _file_sha256(model)
    files = sorted([*model.glob("*.safetensors"), model / "config.json"])
    if len(files) < 2 or not files[-1].exists() or not (model / "config.json").exists():
        raise SourceError(
            f"{model} holds no config.json with safetensors", stage="quantize", hint="give a Hugging Face model folder"
        )
    return hashlib.sha256("".join(f"{f.name}:{_file_sha256(f)}\n" for f in files).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", stage="quantize") from None


def _weight_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process makes a checkpoint; others that want the same wait and then find it."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f".{home.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
