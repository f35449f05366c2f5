"""``qmeter serve-schedule``: start a schedule's deployments and a router before them, and carry the schedule out."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qmeter.errors import SpecError
from qmeter.router.caps import Caps
from qmeter.router.file import ScheduleFile, load_schedule
from qmeter.router.replicas import artifacts
from qmeter.router.run import Served, serve_schedule
from qmeter.spec.units import parse_duration_s
from qmeter.study.runner import default_cache

DAY_S = 86400.0


def serve_schedule_command(
    schedule_file: Annotated[
        Path, typer.Argument(metavar="SCHEDULE", help="Schedule file (YAML).", exists=True, dir_okay=False)
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Loopback port; 0: any free one.")] = 8080,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where logs go (default: runs/NAME-served).")] = None,
    speed: Annotated[
        float, typer.Option("--speed", min=0.001, help="Seconds of the schedule in one second: to try a day quickly.")
    ] = 1.0,
    duration: Annotated[str | None, typer.Option("--for", help="End after that long, as 30min.")] = None,
    at_clock: Annotated[
        bool, typer.Option("--by-clock", help="The schedule began at midnight: start where the clock stands.")
    ] = False,
    allow_power_cap: Annotated[
        bool, typer.Option("--allow-power-cap", help="Let the schedule cap the GPUs' power (restored at the end).")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Check the file and say what it does; start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object an event.")] = False,
) -> None:
    """Serve by a schedule: replicas start ahead of their slot, switch when ready, drain, and are ended with this.

    The router is OpenAI-compatible (/v1/completions, /v1/chat/completions, /v1/models) and has /health, /metrics and
    /qmeter/schedule. A request's class is the one its X-QMeter-Class header or its model names, else the first one.
    The first Ctrl-C ends it when its requests have ended, the second at once.
    """
    schedule = load_schedule(schedule_file)
    console = Console(stderr=as_json)
    if check:
        _describe(schedule, console, as_json)
        return
    for_s = _duration_s(duration)
    caps = Caps(allow=allow_power_cap)
    caps.check(any(slot.power_caps for slot in schedule.slots))
    kinds = {d.name: d for d in schedule.deployments}

    def say(text: str) -> None:
        if as_json:
            print(json.dumps({"event": "said", "text": text.strip()}), flush=True)
        else:
            console.print(text, soft_wrap=True, highlight=False, markup=False)

    def ready(bound: int) -> None:
        if as_json:
            print(json.dumps({"event": "ready", "base_url": f"http://127.0.0.1:{bound}"}), flush=True)
        else:
            say(f"serving on http://127.0.0.1:{bound} (classes: {', '.join(schedule.classes)}); Ctrl-C ends it")

    offset_s = _since_midnight_s() if at_clock else 0.0
    served = _loop()(
        serve_schedule(
            schedule, artifacts(kinds, default_cache(), say), out or Path("runs") / f"{schedule.name}-served",
            port=port, speed=speed, for_s=for_s, offset_s=offset_s, caps=caps, on_ready=ready, say=say,
        )
    )  # fmt: skip
    _summary(served, console, as_json)


def _loop() -> Any:
    """``uvloop.run`` where it is installed (it is, with the serve extra), else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


def _since_midnight_s() -> float:
    now = datetime.now()
    return (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()


def _duration_s(text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration_s(text)
    except ValueError as error:
        raise SpecError(f"--for: {error}", faults=[("--for", str(error))]) from error


def _describe(schedule: ScheduleFile, console: Console, as_json: bool) -> None:
    if as_json:
        print(schedule.model_dump_json())
        return
    console.print(f"{schedule.name}: {len(schedule.slots)} slots, {len(schedule.deployments)} deployments, nothing "
                  "started", highlight=False)  # fmt: skip
    for slot in schedule.slots:
        up = ", ".join(f"{n} x {kind}" for kind, n in slot.up.items() if n)
        shares = "; ".join(
            f"{cls}: " + ", ".join(f"{share:.0%} {kind}" for kind, share in by.items() if share)
            for cls, by in slot.shares.items()
        )
        console.print(f"  {slot.at / 3600:6.2f} h  {up}  ({shares})", soft_wrap=True, highlight=False, markup=False)


def _summary(served: Served, console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "ended", **vars(served)}), flush=True)
        return
    outcomes = ", ".join(f"{n} {name}" for name, n in sorted(served.outcomes.items())) or "no requests"
    counted = f"{served.slots_changed} slot changes, {served.restarts} restarts"
    console.print(f"ended after {served.wall_s:.0f} s: {counted}; {outcomes}", highlight=False)
