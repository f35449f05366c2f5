"""How every file is read: safe YAML, one schema, every fault with its path and line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from qmeter.errors import SpecError
from qmeter.spec.document import Document, Fault, read_document
from qmeter.spec.explain import explain, stray_booleans

Root = TypeVar("Root", bound=BaseModel)


def read_file(path: Path, root: type[Root], rules: Callable[[Root], Iterable[Fault]] = lambda _: ()) -> Root:
    """The file's content as a ``root``, if the schema and ``rules`` find nothing wrong with it.

    Raises:
        SpecError: with every fault of the file: its path, the value found, what is valid, the line.
    """
    return read_text(text_of(path), path.name, root, rules)


def text_of(path: Path) -> str:
    """The file's text.

    Raises:
        SpecError: it is not there, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"no file at {path}", hint="check the path") from None
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not text in UTF-8 (byte {error.start})", hint="save it as UTF-8") from None


def beside(text: str, folder: Path) -> str:
    """A path as a file in ``folder`` names it, absolute where it exists there; else as it was written."""
    there = folder / Path(text).expanduser()
    return str(there.resolve()) if there.exists() else text


def read_text(text: str, name: str, root: type[Root], rules: Callable[[Root], Iterable[Fault]] = lambda _: ()) -> Root:
    """As :func:`read_file`, from text.

    Raises:
        SpecError: with every fault.
    """
    document = read_document(text, name)
    found = list(document.faults)
    made: Root | None = None
    if isinstance(document.data, dict):
        made, wrong = validated(document.data, root)
        found += [fault for fault in wrong if fault.path not in {known.path for known in document.faults}]
        if made is not None and not found:
            found += list(rules(made))
    if made is None or found:
        raise faulty(document, found)
    return made


def validated(data: object, root: type[Root]) -> tuple[Root | None, list[Fault]]:
    """``data`` as a ``root``, or ``None``, and what the schema says against it. Lines are not known here."""
    made, found = None, []
    try:
        made = root.model_validate(data)
    except ValidationError as error:
        found = explain(error, root, data)
    known = {fault.path for fault in found}
    return made, [*found, *(fault for fault in stray_booleans(root, data) if fault.path not in known)]


def faulty(document: Document, found: Iterable[Fault]) -> SpecError:
    """The error that carries ``found``, in the file's order."""
    lined = [fault if fault.line else Fault(fault.path, fault.message, document.line(fault.path)) for fault in found]
    ordered = sorted(lined, key=lambda f: (f.line, [str(p) for p in f.path]))
    count = f"{len(ordered)} faults" if len(ordered) > 1 else "1 fault"
    return SpecError(
        f"{document.name}: {count}; nothing was started",
        faults=[f.as_pair() for f in ordered],
        hint="correct the lines named and run the command again",
    )
