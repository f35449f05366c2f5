"""``qmeter simulate``: predict latency, goodput and energy of a calibrated deployment at a load of one's choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from qmeter.errors import AnalysisError, SpecError
from qmeter.record import Quantity
from qmeter.report.numbers import share, shown
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.predict import DRAWS, LEAST_DRAWS
from qmeter.simulate.sources import calibrations_of
from qmeter.simulate.sweep import Answer, Question, Refusal, sweep
from qmeter.spec.workload import WorkloadSpec

SHOWN = ("ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "tpot_p99_s", "e2e_p50_s", "throughput_tok_s", "goodput_hz",
         "slo_attainment", "j_per_output_token", "power_mean_w")  # fmt: skip


def simulate(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Calibration file, study folder, or profile.")],
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Only this method.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Only this engine.")] = None,
    rate: Annotated[list[str] | None, typer.Option("--rate", help="Poisson arrivals, as in 4/s; repeatable.")] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option("--concurrency", min=1, help="Closed loop with that many in flight; repeatable.")
    ] = None,
    trace: Annotated[Path | None, typer.Option("--trace", help="Azure CSV or Mooncake JSONL to replay.")] = None,
    prompt_tokens: Annotated[str, typer.Option("--prompt-tokens", help="As 512, or 128-1024 (uniform).")] = "512",
    output_tokens: Annotated[str, typer.Option("--output-tokens", help="As 128, or 16-256 (uniform).")] = "128",
    window: Annotated[str, typer.Option("--window", help="How long the load counts.")] = "60s",
    warmup: Annotated[str, typer.Option("--warmup", help="How long it runs before.")] = "10s",
    ttft: Annotated[str | None, typer.Option("--ttft", help="SLO on the time to first token, as 500ms.")] = None,
    tpot: Annotated[str | None, typer.Option("--tpot", help="SLO on the mean time per output token, as 50ms.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of arrivals, lengths and noise.")] = 1,
    draws: Annotated[int, typer.Option("--draws", min=0, max=1000, help="Runs behind each interval; 0: none.")] = DRAWS,
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Answer beyond the calibration too.")] = False,
    as_device: Annotated[str | None, typer.Option("--as-device", help="Carry to this device by the physics.")] = None,
    as_model: Annotated[str | None, typer.Option("--as-model", help="Carry to this catalog model.")] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="With --as-...: tensor-parallel degree.")] = 1,
    spread: Annotated[
        str, typer.Option("--spread", help="Predictions one by one (here), over cores, or ray.")
    ] = "here",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a prediction.")] = False,
) -> None:
    """Predict latencies, goodput, energy and power with 90% intervals; refuse what the calibration does not cover.

    Exit codes: 0 at least one prediction; 3 none could be made.
    """
    calibrations = calibrations_of(source, model=model, method=method, engine=engine)
    if as_device or as_model or devices > 1:
        calibrations = [_carried(source, c, as_device, as_model, devices) for c in calibrations]
    slo = {k: v for k, v in (("ttft", ttft), ("tpot", tpot)) if v}
    common: dict[str, Any] = {"warmup": warmup, "window": window, "drain": "600s", "slo": slo or None}
    lengths = {"prompt_tokens": _lengths(prompt_tokens), "output_tokens": _lengths(output_tokens)}
    workloads = [
        _workload(a, common | (carried or lengths)) for a, carried in _arrivals(rate or [], concurrency or [], trace)
    ]
    console = Console(stderr=as_json)
    questions = [Question(c, w, seed, draws, extrapolate) for c in calibrations for w in workloads]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"simulating {len(questions)} predictions", total=len(questions))
        found = sweep(questions, spread, on_answer=lambda *_: progress.advance(task))
    refused = [p for p in found if isinstance(p, Refusal)]
    if as_json:
        for p in found:
            typer.echo(json.dumps(_refused_data(p) if isinstance(p, Refusal) else _data(p)))
    if len(refused) == len(found):
        first, many = refused[0], f"none of {len(found)} questions can be answered; the first: "
        raise AnalysisError(f"{many if len(found) > 1 else ''}{first.message}", hint=first.hint)
    if as_json:
        return
    answers = [p for p in found if isinstance(p, Answer)]
    for workload in workloads:
        if own := [p for p in answers if p.workload == workload]:
            console.print(_table(workload, own, draws))
    for kind, text in dict.fromkeys([*_remarks(calibrations, answers), *map(_refused, refused)]):
        console.print(f"[yellow]{escape(kind)}[/] {escape(text)}", soft_wrap=True, highlight=False)


def _remarks(calibrations: list[Calibration], answers: list[Answer]) -> list[tuple[str, str]]:
    """What to know of the answers beside their numbers: ``(kind, text)``."""
    out = [("extrapolated" if c.extrapolated else "another host", f"{c.label}: {c.moved}")
           for c in calibrations if c.moved]  # fmt: skip
    out += [("near the edge", f"{p.calibration.label}: {n}") for p in answers for n in p.notes]
    for p in answers:
        for w in p.warnings:
            hint = f" ({w.hint})" if w.hint else ""
            out.append((w.kind.replace("_", " "), f"{p.calibration.label}, {p.workload.name}: {w.message}{hint}"))
    return out


def _refused(p: Refusal) -> tuple[str, str]:
    return "not answered", f"{p.workload.name}: {p.message}" + (f"; next: {p.hint}" if p.hint else "")


def _carried(source: str, near: Calibration, device: str | None, model: str | None, devices: int) -> Calibration:
    """The calibration moved to another device, model or parallelism."""
    from qmeter.simulate.carry import Target, carry, load_physics

    if not Path(source).is_file():
        raise SpecError("--as-device, --as-model and --devices need a calibration file",
                        hint=f"first: qmeter calibrate-model {source} -o calibrations.json")  # fmt: skip
    d = near.deployment
    target = Target(model or d["shape"], d["method"], device or d["device"], d["engine"], devices)
    return carry(load_physics(Path(source)), near, target)


def _lengths(text: str) -> dict[str, Any]:
    low, _, high = text.partition("-")
    try:
        return (
            {"kind": "uniform", "low": int(low), "high": int(high)} if high else {"kind": "fixed", "tokens": int(low)}
        )
    except ValueError as error:
        raise SpecError(f"a length is 512 or 128-1024, not {text!r}", faults=[("lengths", text)]) from error


def _arrivals(
    rates: list[str], concurrencies: list[int], trace: Path | None
) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Arrivals, and the lengths that come with them where they are a trace."""
    out: list[tuple[dict[str, Any], dict[str, Any] | None]] = [({"kind": "poisson", "rate": r}, None) for r in rates]
    out += [({"kind": "closed", "concurrency": n}, None) for n in concurrencies]
    if trace is not None:
        kind = "mooncake" if trace.suffix == ".jsonl" else "azure"
        carried = {"prompt_tokens": {"kind": "trace"}, "output_tokens": {"kind": "trace"}}
        out.append(({"kind": "trace", "path": str(trace), "format": kind}, carried))
    if not out:
        raise SpecError("no load was given", hint="add --rate 4/s, --concurrency 16 or --trace FILE")
    return out


def _workload(arrivals: dict[str, Any], rest: dict[str, Any]) -> WorkloadSpec:
    from pydantic import ValidationError

    size = arrivals.get("rate") or arrivals.get("concurrency") or Path(arrivals.get("path", "")).stem
    try:
        return WorkloadSpec.model_validate({"name": f"{arrivals['kind']}@{size}", "arrivals": arrivals} | rest)
    except ValidationError as error:
        faults = [(".".join(str(p) for p in e["loc"]), e["msg"]) for e in error.errors()]
        raise SpecError("the load is not valid", faults=faults) from error


def _data(p: Answer) -> dict[str, Any]:
    numbers = {**p.metrics, **p.energy}
    return _asked("simulated", p) | {
        "metrics": {k: q.model_dump(mode="json", exclude_none=True) for k, q in numbers.items()},
        "notes": list(p.notes),
        "warnings": [w.model_dump(mode="json", exclude_none=True) for w in p.warnings],
    }


def _refused_data(p: Refusal) -> dict[str, Any]:
    return _asked("refused", p) | {"message": p.message, "hint": p.hint}


def _asked(kind: str, p: Answer | Refusal) -> dict[str, Any]:
    return {
        "kind": kind,
        "calibration": p.calibration.id,
        "deployment": p.calibration.label,
        "moved": p.calibration.moved,
        "workload": p.workload.model_dump(mode="json"),
    }


def _table(workload: WorkloadSpec, found: list[Answer], draws: int) -> Table:
    enough = draws >= LEAST_DRAWS
    what = "90% intervals" if enough else f"no intervals (they take {LEAST_DRAWS} draws, these are {draws})"
    table = Table("metric", *(p.calibration.label for p in found), title=f"{workload.name}: simulated, {what}")
    numbers = [{**p.metrics, **p.energy} for p in found]
    for name in SHOWN:
        if any(n.get(name) is not None for n in numbers):
            table.add_row(name, *(_shown(n.get(name)) for n in numbers))
    return table


def _shown(q: Quantity | None) -> str:
    if q is None:
        return ""
    if q.value is None:
        return "unknown"
    text = share(q) if q.unit == "1" else shown(q)
    value = text.value if q.unit == "1" else f"{text.value} {text.unit}".strip()
    return f"{value}\n[dim]{escape(text.interval)}[/]" if text.interval else value
