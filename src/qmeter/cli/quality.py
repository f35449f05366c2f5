"""``qmeter quality``: quality of a deployment that is served already."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qmeter.errors import QualityError
from qmeter.load.target import Target
from qmeter.quality import fidelity
from qmeter.quality.answering import answer_tasks, changed_answers
from qmeter.quality.lm_eval import run_lm_eval
from qmeter.quality.paired import compare_methods
from qmeter.quality.tasks import Grades
from qmeter.quality.tasks.grading import accuracies
from qmeter.record import Quantity


def quality(
    url: Annotated[str, typer.Argument(help="Base URL of an OpenAI-compatible server, as http://127.0.0.1:8000")],
    model: Annotated[str | None, typer.Option("--model", help="Served name; default: the only one it lists.")] = None,
    tasks: Annotated[str | None, typer.Option("--tasks", help="Graded tasks, by comma (facts,arithmetic,…).")] = None,
    items: Annotated[int, typer.Option("--items", min=1, help="Items a task.")] = 200,
    grades: Annotated[
        Path | None, typer.Option("--grades", help="Write every graded answer here (JSON lines).")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Grades of the reference deployment: compare item by item.")
    ] = None,
    make_reference: Annotated[
        Path | None, typer.Option("--make-reference", help="This is the reference: write its continuations here.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Score the continuations of this file (fidelity).")
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Continuations of a new reference.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Their length.")] = 48,
    top_k: Annotated[int, typer.Option("--top-k", min=0, max=20, help="Alternatives a token.")] = 5,
    lm_eval: Annotated[str | None, typer.Option("--lm-eval", help="Tasks of the lm-evaluation-harness.")] = None,
    include: Annotated[Path | None, typer.Option("--include", help="Folder with the harness's local tasks.")] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="For the harness's log-likelihoods.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Items a harness task.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests in flight.")] = 8,
    alone: Annotated[
        bool, typer.Option("--alone", help="Ask the tasks once more one by one: does batching change answers?")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Name of the environment variable with the key.")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let the task 'code' run generated programs in the sandbox.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print quantities as JSON.")] = False,
) -> None:
    """Measure quality on a served endpoint: graded tasks, fidelity to a reference, or the lm-evaluation-harness."""
    if not (tasks or make_reference or reference or lm_eval):
        raise QualityError("nothing to measure", hint="give --tasks, --make-reference, --reference or --lm-eval")
    target = _target(url, model, api_key_env)
    found: dict[str, Quantity] = {}
    said: list[str] = []
    if make_reference or reference:
        found |= _fidelity(target, make_reference, reference, prompts, tokens, top_k, seed, concurrency)
    if tasks:
        names = [t.strip() for t in tasks.split(",") if t.strip()]

        def ask(at_once: int) -> Grades:
            return answer_tasks(
                target, names, seed=seed, items=items, concurrency=at_once, allow_code=allow_code or None
            )  # fmt: skip

        graded = ask(concurrency)
        found |= accuracies(graded)
        if alone:
            found |= changed_answers(ask(1), graded)
        if grades:
            graded.save(grades)
        if against:
            said += [c.sentence() for c in compare_methods(Grades.load(against), {target.model: graded})]
    if lm_eval:
        names = [t.strip() for t in lm_eval.split(",") if t.strip()]
        found |= run_lm_eval(
            target, names, include=include, tokenizer=tokenizer, limit=limit, concurrency=concurrency
        )  # fmt: skip
    _print(found, said, as_json)


def _fidelity(
    target: Target, make: Path | None, use: Path | None, prompts: int, tokens: int, top_k: int, seed: int,
    concurrency: int,
) -> dict[str, Quantity]:  # fmt: skip
    """Make the reference and its scores (``NAME.scores.npz`` beside it), or score against them."""
    if make:
        texts = fidelity.builtin_prompts(prompts, seed=seed)
        made = fidelity.make_reference(target, texts, tokens, top_k=top_k, seed=seed, concurrency=concurrency)
        made.save(make)
        fidelity.score(target, made, concurrency=concurrency).save(_beside(make))
    path = use or make
    assert path is not None
    known = fidelity.Reference.load(path)
    base = fidelity.Scores.load(_beside(path))
    scores = fidelity.score(target, known, concurrency=concurrency)
    return fidelity.compare(base, scores, reference=known, seed=seed)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.scores.npz")


def _target(url: str, model: str | None, api_key_env: str | None) -> Target:
    headers = {}
    if api_key_env:
        key = os.environ.get(api_key_env)
        if not key:
            raise QualityError(f"the environment has no {api_key_env}", hint="export it, or leave --api-key-env out")
        headers["Authorization"] = f"Bearer {key}"
    base = url.rstrip("/").removesuffix("/v1")
    return Target(base, model or _only_model(base, headers), headers=headers, ignore_eos=False)


def _only_model(base: str, headers: dict[str, str]) -> str:
    if not base.startswith(("http://", "https://")):
        raise QualityError(f"{base!r} is no URL", hint="as in http://127.0.0.1:8000")
    try:
        request = urllib.request.Request(f"{base}/v1/models", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            names = [str(m["id"]) for m in json.load(answer)["data"]]
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError) as error:
        raise QualityError(f"{base}/v1/models gave no list of models: {error}", hint="is the server up?") from None
    if len(names) != 1:
        raise QualityError(f"the server lists {len(names)} models: {', '.join(names[:8])}", hint="name one by --model")
    return names[0]


def _print(found: dict[str, Quantity], said: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"quantities": {k: v.model_dump() for k, v in found.items()}, "verdicts": said}, indent=1))
        return
    table = Table("quantity", "value", "95% interval", "n", "")
    for name, q in found.items():
        value = "unknown" if q.value is None else f"{q.value:.5g} {q.unit if q.unit != '1' else ''}"
        interval = f"{q.low:.5g} … {q.high:.5g}" if q.low is not None and q.high is not None else ""
        table.add_row(name, value, interval, str(q.n or ""), q.why or "")
    console = Console(highlight=False)
    console.print(table)
    for sentence in said:
        console.print(sentence)
