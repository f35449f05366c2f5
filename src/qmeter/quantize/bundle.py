"""A model's 16-bit reference and its checkpoints as one file to carry: for hosts with a GPU and no network."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from qmeter.errors import SourceError
from qmeter.quantize.make import Manifest


def write_bundle(reference: Path, manifests: Sequence[Manifest], out: Path) -> Path:
    """Write ``out``, a tar file of one folder of its name: ``reference/``, ``checkpoints/<method>/``, ``manifests/``.

    A study that lies beside the unpacked folder names ``./<name>/reference`` as its model's source and
    ``./<name>/checkpoints/<method>`` in ``checkpoints``. The same files give the same bytes.

    Raises:
        SourceError: it cannot be written.
    """
    root = out.name.removesuffix(".tar")
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            _add_folder(tar, reference, f"{root}/reference")
            for made in manifests:
                _add_folder(tar, Path(made.checkpoint), f"{root}/checkpoints/{made.method}")
                moved = made.model_copy(update={"checkpoint": f"checkpoints/{made.method}"})
                _add_text(tar, f"{root}/manifests/{made.method}.json", moved.model_dump_json(indent=1))
        temporary.replace(out)
    except OSError as error:
        raise SourceError(f"cannot write {out}: {error.strerror or error}", stage="quantize") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return out


def _add_folder(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        info = tarfile.TarInfo(f"{name}/{path.relative_to(folder)}")
        info.size = path.stat().st_size
        with path.open("rb") as file:
            tar.addfile(info, file)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
