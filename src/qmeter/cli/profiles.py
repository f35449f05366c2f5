"""``qmeter profiles``: the measured records that ship with qMeter, and those added on this host."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from qmeter.analysis.keys import device_of, key_of
from qmeter.analysis.points import family_of, load_of
from qmeter.errors import QMeterError, StoreError
from qmeter.record import CellStatus, Record, RecordKind
from qmeter.spec.study import NAME
from qmeter.store import ProfileInfo, StudyStore, list_profiles, open_results, write_profile
from qmeter.store.intake import require_sound
from qmeter.store.profile import Profile, added_root, copy_profile


def profiles(
    action: Annotated[str, typer.Argument(help="list, or: add DIR.")] = "list",
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="For add: a study folder or a profile.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="For add: the profile's name (default: the study's).")
    ] = None,
    with_tokens: Annotated[bool, typer.Option("--with-tokens", help="For add: keep every token's time.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a profile.")] = False,
) -> None:
    """List the reference profiles (measured records to predict and plan from), or add records made elsewhere."""
    if action == "list":
        _list(as_json)
    elif action == "add" and folder is not None:
        _add(folder, name, with_tokens)
    else:
        raise typer.BadParameter("write: qmeter profiles, or: qmeter profiles add DIR")


def _add(folder: Path, name: str | None, with_tokens: bool) -> None:
    """Check the records, tell where they come from, and keep them under the user's data folder."""
    if name is not None and not re.match(NAME, name):
        raise typer.BadParameter("a name has letters, digits, dots, dashes and underscores", param_hint="--name")
    source = open_results(str(folder)) if (folder / "study.json").is_file() else Profile(folder)
    study = source.study
    records = source.records()
    found = require_sound(study, records, str(folder))
    target = added_root() / (name or study.name)
    if isinstance(source, StudyStore):
        write_profile(source, target, with_tokens=with_tokens)
    else:
        copy_profile(source, target)
    typer.echo(f"added: {target}")
    for what, text in found.origin.items():
        typer.echo(f"  {what}: {text}")
    for doubt in found.doubts:
        typer.secho(f"warning: {doubt}", fg="yellow", err=True)
    if other := _comparable(records, target.name):
        typer.echo(f"to compare: qmeter report {other} {target.name}")


def _comparable(records: Sequence[Record], name: str) -> str | None:
    """The profile of another device that measured most of the same points, if one did."""
    devices, mine = {device_of(r) for r in records}, _points(records)
    shared: dict[str, int] = {}
    for info in (p for p in list_profiles() if p.name != name):
        with contextlib.suppress(QMeterError):  # qmeter profiles says of one that cannot be read why
            theirs = [r for r in Profile(info.folder).records() if device_of(r) not in devices]
            shared[info.name] = len(_points(theirs) & mine)
    return max(shared, key=lambda n: shared[n]) if any(shared.values()) else None


def _points(records: Iterable[Record]) -> set[tuple[Any, ...]]:
    """What devices can be compared on: deployment and load of every valid measured cell, whatever its device."""
    found = set()
    for r in records:
        if r.status is CellStatus.OK and r.kind is RecordKind.MEASURED:
            key, load = replace(key_of(r), device="", beside=False), r.cell["workload"]
            found.add((key, load["name"], family_of(load), load_of(load).value))
    return found


def _list(as_json: bool) -> None:
    table = Table(Column("profile", no_wrap=True), "device", "models", "methods", "cells", "from")
    unreadable = []
    for info in list_profiles():
        try:
            facts = _facts(info)
        except QMeterError as error:
            unreadable.append(error)
            continue
        if as_json:
            typer.echo(json.dumps(facts))
        else:
            origin = "qMeter" if info.shipped else "this host"
            table.add_row(info.name, ", ".join(facts["devices"]), ", ".join(facts["models"]),
                          str(len(facts["methods"])), facts["kinds"], origin)  # fmt: skip
    if not as_json:
        Console().print(table)
    if unreadable:
        told = "; ".join(error.message for error in unreadable)
        raise StoreError(f"not listed: {told}", hint=unreadable[0].hint)


def _facts(info: ProfileInfo) -> dict[str, Any]:
    """What the list says of a profile.

    Raises:
        QMeterError: it cannot be read, or its records lack what a measured cell has.
    """
    try:
        return _facts_of(info, Profile(info.folder).records())
    except (LookupError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{info.folder / 'records.parquet'} holds a record that is none of a cell: {type(error).__name__}: {error}",
            hint="remove the profile, or add it again",
        ) from error


def _facts_of(info: ProfileInfo, records: Sequence[Record]) -> dict[str, Any]:
    deployments = [r.cell["deployment"] for r in records]
    kinds = Counter(f"{r.kind.value} {r.status.value}" for r in records)
    return {
        "name": info.name, "folder": str(info.folder), "shipped": info.shipped, "cells": len(records),
        "devices": sorted({_device(r) for r in records}), "models": sorted({d["model"]["name"] for d in deployments}),
        "methods": sorted({d["method"] for d in deployments}),
        "kinds": ", ".join(f"{n} {k}" for k, n in kinds.most_common()),
        "qmeter": sorted({r.provenance.qmeter_version for r in records}),
    }  # fmt: skip


def _device(record: Record) -> str:
    gpus = record.provenance.host.get("gpus") or []
    return str(gpus[0]["name"]) if gpus else str(record.provenance.host.get("cpu", "unknown"))
