"""The few scalar fields of a GGUF's header that serving needs, read without loading token lists.

Layout: the GGUF specification (magic, version, tensor count, key count, then key-value pairs).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def read_scalars(path: Path) -> dict[str, int | float | bool | str]:
    """Every scalar and string field of the header; arrays are skipped.

    Raises:
        ValueError: not a GGUF, or cut off.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path.name} is not a GGUF (its first four bytes are not 'GGUF')")
        try:
            version, _tensors, keys = struct.unpack("<IQQ", file.read(20))
            if version not in (2, 3):
                raise ValueError(f"{path.name} has GGUF version {version}; 2 and 3 are read")
            fields = {}
            for _ in range(keys):
                key = _text(file)
                value = _value(file, _unpack(file, "<I"))
                if value is not None:
                    fields[key] = value
        except struct.error as error:
            raise ValueError(f"{path.name} is cut off inside its header") from error
    return fields


def read_context_tokens(path: Path) -> int | None:
    """The longest sequence that the model was made for, ``None`` where the file does not say."""
    fields = read_scalars(path)
    value = fields.get(f"{fields.get('general.architecture')}.context_length")
    return int(value) if isinstance(value, int) else None


def _unpack(file: BinaryIO, form: str) -> int:
    value: int = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value


def _text(file: BinaryIO) -> str:
    return file.read(_unpack(file, "<Q")).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> int | float | bool | str | None:
    if kind in _SCALARS:
        return _unpack(file, _SCALARS[kind])
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        raise ValueError(f"unknown GGUF field type {kind}")
    element, count = _unpack(file, "<I"), _unpack(file, "<Q")
    if element in _SCALARS:
        file.seek(struct.calcsize(_SCALARS[element]) * count, 1)
    else:
        for _ in range(count):
            if element == _STRING:
                file.seek(_unpack(file, "<Q"), 1)
            else:
                _value(file, element)
    return None
