"""``qmeter init``: a commented study to start from."""

from __future__ import annotations

from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from qmeter.errors import SpecError
from qmeter.quality.tasks import TASKS
from qmeter.spec.workload import GammaArrivals, PoissonArrivals

ITEMS = 120
"""Items that a written task workload asks for, about."""


class Template(StrEnum):
    """The engines that there is a commented study for."""

    OPENVINO = "openvino"
    VLLM = "vllm"
    ENDPOINT = "endpoint"


def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="Study file to write.")] = Path("study.yaml"),
    engine: Annotated[Template, typer.Option("--engine", "-e", help="Engine to write it for.")] = Template.OPENVINO,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Graded tasks by comma: a workload each, by its own profile.")
    ] = None,
) -> None:
    """Write a commented, valid study file; a file that exists is left alone.

    Exit codes: 0 written; 2 the path exists or cannot be written.
    """
    write_template(path, engine, tuple(t.strip() for t in (tasks or "").split(",") if t.strip()))
    typer.echo(f"wrote {path}\nnext: edit it, then: qmeter run {path} --dry-run")


def write_template(path: Path, engine: Template, tasks: tuple[str, ...] = ()) -> None:
    """Write the engine's template to ``path``; with ``tasks``, their workloads stand instead of its own.

    Raises:
        SpecError: the file exists (it is not touched) or cannot be written.
        UnknownName: no such task.
    """
    text = (files("qmeter.study") / "templates" / f"{engine.value}.yaml").read_text(encoding="utf-8")
    text = text.replace("THIS_FILE", path.as_posix())
    if tasks:
        head, rest = text.split("workloads:\n", 1)
        promise = rest[rest.index("# The promise") :]
        text = f"{head}{_workloads(tasks)}\n{promise}"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(f"{path} exists and is left as it is", hint="name another file: qmeter init PATH") from None
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror}", hint="name another place") from None


def _workloads(tasks: tuple[str, ...]) -> str:
    """The ``workloads`` block: one application a task, with the arrivals, lengths and SLO of the task's profile."""
    out = ["workloads:                      # each task's own load; its answers are graded from the load run itself"]
    for name in tasks:
        profile = TASKS.create(name).profile
        law = profile.arrivals
        assert isinstance(law, PoissonArrivals | GammaArrivals)
        more = f", burstiness: {law.burstiness:g}" if isinstance(law, GammaArrivals) else ""
        low, high = profile.prompt_tokens
        limits = [(k, getattr(profile.slo, k)) for k in ("ttft", "tpot", "e2e")]
        slo = ", ".join(f"{k}: {1000 * v:g}ms" for k, v in limits if v is not None)
        out += [
            f"  - name: {name}",
            f"    # about {low} to {high} tokens in, at most {profile.output_tokens} out ({profile.slo_class.value})",
            f"    arrivals: {{kind: {law.kind}, rate: {60 * law.rate:g}/min{more}}}",
            f"    prompts: {{kind: tasks, tasks: [{name}], alone: 20}}",
            f"    slo: {{{slo}, percentile: {profile.slo.percentile:g}}}",
            "    warmup: 2s",
            f"    window: {ITEMS / law.rate:g}s                # about {ITEMS} items",
            "    drain: 60s",
            "    ignore_eos: false           # answers end where the model ends them",
        ]
    return "\n".join(out) + "\n"
