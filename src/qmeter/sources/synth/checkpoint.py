"""Writing a synthetic checkpoint, or only what the engine needs to fill its weights in place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from qmeter.catalog.shape import ModelShape
from qmeter.errors import MissingExtra, SourceError
from qmeter.sources.synth.config import model_config, write_tokenizer
from qmeter.sources.synth.formats import Format, checkpoint_format
from qmeter.sources.synth.packing import Tensor
from qmeter.sources.synth.weights import check_shape, tensors

RECIPE = "qmeter_synth.json"
"""Beside config.json: all that makes the weights again."""
SHARD_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a synthetic checkpoint is made of; same recipe and device type, same bytes."""

    shape: ModelShape
    kind: str
    seed: int

    @property
    def digest(self) -> str:
        """sha256 over the recipe, which stands for the content where no file is written."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """As stored in :data:`RECIPE`."""
        return json.dumps({"synth": 1, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """The recipe in ``folder``.

        Raises:
            SourceError: there is none, or it is not one.
        """
        try:
            data = json.loads((folder / RECIPE).read_text())
            return cls(shape=ModelShape(**data["shape"]), kind=data["kind"], seed=data["seed"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{folder} is no synthetic model: {error}",
                hint="make one with `qmeter synth MODEL --method M --out DIR`",
            ) from error


def write_frame(folder: Path, recipe: Recipe) -> Format:
    """config.json, tokenizer and recipe, no weights: what an engine that fills them in place needs.

    Raises:
        SourceError: the kind cannot be synthesised.
        MethodUnsupported: the shape does not fit the format.
    """
    form = checkpoint_format(recipe.kind)
    check_shape(recipe.shape, form)
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(recipe.shape, form.config(recipe.shape))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder, recipe.shape.vocab)
    (folder / RECIPE).write_text(recipe.to_json())
    return form


def write_checkpoint(folder: Path, recipe: Recipe, device: str | None = None) -> int:
    """The whole checkpoint as sharded safetensors, made on ``device`` (the GPU where there is one).

    Returns:
        Bytes of tensors written.

    Raises:
        MissingExtra: torch or safetensors is not installed.
        SourceError: the disk is too small.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtra("synth", "writing a synthetic checkpoint") from error
    form = write_frame(folder, recipe)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    index: dict[str, str] = {}
    total = 0
    with torch.inference_mode():
        for number, shard in enumerate(_shards(tensors(recipe.shape, form, recipe.seed, where))):
            name = f"model-{number:05d}.safetensors"
            size = sum(t.numel() * t.element_size() for t in shard.values())
            _need(folder, size)
            save_file(shard, folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, name))
            total += size
    listing = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))
    return total


def _shards(stream: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in stream:
        here = tensor.cpu().contiguous()
        shard[name] = here
        size += here.numel() * here.element_size()
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _need(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes * 1.02:
        raise SourceError(
            f"{folder} has {free / 1e9:.1f} GB free and the next shard takes {size_bytes / 1e9:.1f} GB",
            hint="write to a larger disk, or let the engine fill the weights in place (source: synth:MODEL)",
        )
