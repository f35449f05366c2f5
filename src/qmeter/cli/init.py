"""``qmeter init``: a commented study to start from."""

from __future__ import annotations

from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from qmeter.errors import SpecError


class Template(StrEnum):
    """The engines that there is a commented study for."""

    OPENVINO = "openvino"
    VLLM = "vllm"
    ENDPOINT = "endpoint"


def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="Study file to write.")] = Path("study.yaml"),
    engine: Annotated[Template, typer.Option("--engine", "-e", help="Engine to write it for.")] = Template.OPENVINO,
) -> None:
    """Write a commented, valid study file; a file that exists is left alone.

    Exit codes: 0 written; 2 the path exists or cannot be written.
    """
    write_template(path, engine)
    typer.echo(f"wrote {path}\nnext: edit it, then: qmeter run {path} --dry-run")


def write_template(path: Path, engine: Template) -> None:
    """Write the engine's template to ``path``.

    Raises:
        SpecError: the file exists (it is not touched) or cannot be written.
    """
    text = (files("qmeter.study") / "templates" / f"{engine.value}.yaml").read_text(encoding="utf-8")
    text = text.replace("THIS_FILE", path.as_posix())
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(f"{path} exists and is left as it is", hint="name another file: qmeter init PATH") from None
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror}", hint="name another place") from None
