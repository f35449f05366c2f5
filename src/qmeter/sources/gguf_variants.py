"""GGUF variants: F16, Q8_0 and Q4_0 out of one GGUF, with the ``gguf`` package, the same bytes each time.

Every matrix is dequantized to F32 and quantized once to the variant's type; norms and biases stay F32; metadata,
tokenizer and chat template are copied. As llama-quantize does, Q4_0 keeps the output projection (and a tied embedding)
at Q8_0. openvino-genai 2026.4 reads F16, Q8_0, Q4_0 and Q4_1 matrices (it rounds Q4_1's offset to a 4-bit zero point,
so Q4_1 loses more there than in the file), F32 vectors, and not BF16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.engines.base import Artifact
from qmeter.errors import MissingExtra, SourceError
from qmeter.sources.base import Progress
from qmeter.sources.cache import locked, new_folder, read_json, sha256_of, write_json

CONVERTER = 1
"""Raised when the same source and kind would give other bytes."""

GROUP = 32
"""Weights that share a scale in Q8_0 and Q4_0."""


@dataclass(frozen=True)
class Variant:
    """A kind of GGUF: type of the matrices and of the head, ``general.file_type``, and bits to round to first."""

    matrix: str
    head: str
    file_type: int
    rounded_bits: int | None = None


VARIANTS: Mapping[str, Variant] = {
    "gguf-f16": Variant("F16", "F16", 1),
    "gguf-q8_0": Variant("Q8_0", "Q8_0", 7),
    "gguf-q4_0": Variant("Q4_0", "Q8_0", 2),
    "gguf-broken-w2": Variant("Q4_0", "Q8_0", 2, rounded_bits=2),
}
"""Checkpoint kind → variant. ``gguf-broken-w2`` rounds weights to 2 bits: a quality test must fail it."""


def make_variant(source: Artifact, kind: str, cache: Path, progress: Progress = lambda _: None) -> Artifact:
    """The variant ``kind`` of a GGUF, from the cache where it was made before.

    Raises:
        SourceError: no such kind, or the GGUF cannot be read or written.
        MissingExtra: the ``gguf`` package is not installed.
    """
    if kind not in VARIANTS:
        raise SourceError(f"no GGUF variant {kind!r}", stage="source", hint=f"known: {', '.join(VARIANTS)}")
    gguf = _gguf()
    folder = cache / "variants" / f"{source.sha256[:16]}-{kind}-v{CONVERTER}"
    with locked(cache, str(folder.name)):
        known = read_json(folder / "made.json")
        path = folder / f"model.{kind.removeprefix('gguf-')}.gguf"
        if known is None or not path.exists() or path.stat().st_size != known.get("bytes"):
            _discard(folder)
            progress(f"making {kind} from {source.path.name}")
            with new_folder(folder) as draft:
                known = _make(gguf, source.path, VARIANTS[kind], draft / path.name)
                write_json(draft / "made.json", known)
    notes = tuple(str(n) for n in known["notes"])
    return Artifact(path, "gguf", str(known["sha256"]), int(known["weight_bytes"]), (*source.notes, *notes))


def _discard(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("openvino", "making GGUF variants") from error
    return gguf


def _make(gguf: Any, source: Path, variant: Variant, target: Path) -> dict[str, Any]:
    try:
        reader = gguf.GGUFReader(str(source))
    except (ValueError, IndexError, KeyError) as error:
        raise SourceError(f"{source.name} cannot be read as a GGUF: {error}", stage="source") from error
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(target), architecture)
    _copy_metadata(gguf, reader, writer, variant)
    tied = not any(t.name == "output.weight" for t in reader.tensors)
    size = 0
    for tensor in reader.tensors:
        data, kind = _convert(gguf, tensor, variant, tied)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
        size += data.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"sha256": sha256_of(target), "bytes": target.stat().st_size, "weight_bytes": size,
            "notes": _notes(reader, variant)}  # fmt: skip


def _copy_metadata(gguf: Any, reader: Any, writer: Any, variant: Variant) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=element)
    writer.add_file_type(variant.file_type)


def _convert(gguf: Any, tensor: Any, variant: Variant, tied: bool) -> tuple[NDArray[Any], Any]:
    types = gguf.GGMLQuantizationType
    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    except NotImplementedError as error:
        raise SourceError(
            f"tensor {tensor.name} is {tensor.tensor_type.name}, which the gguf package cannot read", stage="source"
        ) from error
    if len(tensor.shape) < 2:
        return values, types.F32
    is_head = tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight")
    name = variant.head if is_head else variant.matrix
    if variant.rounded_bits is not None and not is_head:
        values = round_to_bits(values, variant.rounded_bits)
    if name == "F16" or values.shape[-1] % GROUP:
        return values.astype(np.float16), types.F16
    return gguf.quantize(values, types[name]), types[name]


def round_to_bits(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Values rounded to nearest on a symmetric grid of ``bits`` bits, a scale for each group of 32."""
    top = float(2 ** (bits - 1))
    groups = values.reshape(-1, GROUP)
    scale = np.abs(groups).max(axis=1, keepdims=True) / top
    steps = np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0)
    rounded: NDArray[np.float32] = (np.clip(np.rint(steps), -top, top - 1) * scale).astype(np.float32)
    return rounded.reshape(values.shape)


def _notes(reader: Any, variant: Variant) -> list[str]:
    """What the source's own types mean for what is made from it."""
    matrices = {t.tensor_type.name for t in reader.tensors if len(t.shape) >= 2}
    lossy = sorted(matrices - {"F16", "BF16", "F32", "F64"})
    notes = []
    if lossy:
        notes.append(f"the source was itself quantized once ({', '.join(lossy)}), so its F16 form is the reference, "
                     "not the model as trained")  # fmt: skip
    if variant.rounded_bits is not None:
        notes.append(f"weights deliberately rounded to {variant.rounded_bits} bits: a sanity check that must fail")
    return notes
