"""Whether every deployment of a study can exist: method on engine on device, model source, parallelism, knobs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from qmeter import catalog
from qmeter.catalog import Device, Method
from qmeter.engines.table import TRAITS, Gpus, traits
from qmeter.registry import nearest
from qmeter.sources.base import SOURCES
from qmeter.sources.prepare import split_source
from qmeter.spec.explain import brief, unknown
from qmeter.spec.study import EngineRef, ModelRef, Placement, Study, expand
from qmeter.study.findings import Findings, HostFacts, known
from qmeter.study.placement import plan_groups

KNOBS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "max_sequences": ("a whole number of at least 1", lambda v: _whole(v, 1)),
    "token_budget": ("a whole number of at least 1", lambda v: _whole(v, 1)),
    "max_model_tokens": ("a whole number of at least 1", lambda v: _whole(v, 1)),
    "kv_cache_gib": ("a number above 0", lambda v: _number(v) and float(str(v)) > 0),
    "gpu_memory_fraction": ("a number above 0, at most 1", lambda v: _number(v) and 0 < float(str(v)) <= 1),
    "prefix_cache": ("true or false", lambda v: isinstance(v, bool)),
    "threads": ("a whole number of at least 1", lambda v: _whole(v, 1)),
    "power_cap_w": ("watts above 0", lambda v: _number(v) and float(str(v)) > 0),
}
"""The field's names for engine knobs: what each must be, and its test."""

SOURCE_FORMS = {
    "hf": (re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$"), "hf:org/name@revision"),
    "pypi": (re.compile(r"^[\w.-]+==[\w.!+-]+/.+$"), "pypi:package==version/file"),
    "synth": (re.compile(r"^[\w.-]+(@(inplace|disk))?$"), "synth:<catalog model>, @inplace or @disk after it"),
}
SECRET_OPTION = re.compile(r"(api[_-]?key|secret|password|passwd|[_-]token)(=|$)", re.IGNORECASE)
MAX_CELLS = 100_000


def check(study: Study, host: HostFacts, findings: Findings) -> None:
    """Note everything that makes a deployment of ``study`` impossible or doubtful."""
    lists = (study.models, study.engines, study.methods, study.parallelism, study.workloads)
    cells = math.prod(len(axis) for axis in lists) * study.repeats
    if cells > MAX_CELLS:
        findings.fault(("repeats",), f"the study has {cells} cells with {study.repeats} repeats; at most {MAX_CELLS}")
        return
    device = host.device_of(study)
    for i, model in enumerate(study.models if not _all_attached(study) else ()):
        _source(i, model, findings)
    for i, engine in enumerate(study.engines):
        _engine(i, engine, host, findings)
        _knobs(i, engine, findings)
        _secrets(i, engine, findings)
    _pairs(study, device, findings)
    _parallelism(study, host, findings)
    _side_by_side(study, host, findings)
    _memory(study, device, findings)
    _host(study, host, findings)
    if not expand(study):
        findings.fault(("exclude",), "the rules leave no cell to measure")


def _source(i: int, model: ModelRef, findings: Findings) -> None:
    for path, source in (
        (("models", i, "source"), model.source),
        *((("models", i, "checkpoints", method), source) for method, source in model.checkpoints.items()),
    ):
        scheme, reference = split_source(source)
        pattern, form = SOURCE_FORMS.get(scheme, (None, ""))
        if scheme not in SOURCES.names():
            findings.fault(path, f"{unknown('source', scheme, SOURCES.names())}; found {source!r}")
        elif pattern and not pattern.match(reference):
            findings.fault(path, f"expected {form}, found {source!r}")
        elif scheme == "synth" and known(catalog.model, reference.partition("@")[0]) is None:
            findings.fault(path, unknown("model", reference, [m.name for m in catalog.models()]))
        elif scheme == "path" and not Path(reference).expanduser().exists():
            findings.fault(path, f"there is no file or folder {reference!r} (other sources: hf:, pypi:, synth:)")


def _engine(i: int, engine: EngineRef, host: HostFacts, findings: Findings) -> None:
    traits = TRAITS.get(engine.name)
    if traits is None:
        return
    if traits.attached and engine.url is None:
        findings.fault(("engines", i, "url"), f"{engine.name} attaches to a server: give its url")
    if not traits.attached and engine.url is not None:
        findings.fault(("engines", i, "url"), f"{engine.name} is started by qMeter; only endpoint takes a url")
    if not traits.attached and engine.api_key_env is not None:
        findings.fault(("engines", i, "api_key_env"), f"{engine.name} needs no key; only endpoint takes one")
    if engine.api_key_env is not None and engine.api_key_env not in host.environment:
        findings.fault(("engines", i, "api_key_env"), f"the variable {engine.api_key_env} is not set")
    if not traits.program and engine.binary is not None:
        findings.fault(("engines", i, "binary"), f"{engine.name} has no program of its own to name")
    if engine.binary is not None and traits.program and not Path(engine.binary).expanduser().is_file():
        findings.fault(("engines", i, "binary"), f"there is no file {engine.binary!r}")


def _knobs(i: int, engine: EngineRef, findings: Findings) -> None:
    if traits(engine.name).predicted:
        return  # its options are no engine's: see qmeter.study.simulated
    for name, value in engine.options.items():
        expected, good = KNOBS.get(name, ("", lambda v: True))
        if not good(value):
            findings.fault(("engines", i, "options", name), f"expected {expected}, found {brief(value)}")
        elif name == "power_cap_w":
            findings.warn(
                "power_cap_not_set", f"engines[{i}].options.power_cap_w is only recorded here: no cap is set",
                "qmeter tune --allow-power-cap sets it while it measures; set it on the card yourself",
            )  # fmt: skip
        elif name not in KNOBS and (close := nearest(name, KNOBS, n=1)):
            findings.warn(
                "unusual_option", f"engines[{i}].options.{name} goes to {engine.name} as given",
                f"if you meant {close[0]!r}, write that",
            )  # fmt: skip


def _secrets(i: int, engine: EngineRef, findings: Findings) -> None:
    """Options and arguments are recorded as they stand, so a key must not be among them (nor in this message)."""
    text = "looks like a secret, and would be recorded: give it to the engine in an environment variable"
    for name in engine.options:
        if SECRET_OPTION.search(name):
            findings.fault(("engines", i, "options", name), text)
    for k, argument in enumerate(engine.args):
        if argument.startswith("-") and SECRET_OPTION.search(argument):
            findings.fault(("engines", i, "args", k), text)


def _pairs(study: Study, device: Device | None, findings: Findings) -> None:
    """Every engine and method that meet in a cell: the engine must have flags for the method, the device allow it."""
    meet = {(c.deployment.engine.name, c.deployment.method) for c in expand(study)}
    for j, name in enumerate(study.methods):
        method = known(catalog.method, name)
        for engine in dict.fromkeys(e.name for e in study.engines):
            if method is None or engine not in TRAITS or TRAITS[engine].predicted or (engine, name) not in meet:
                continue
            flags = method.engines.get(engine)
            if flags is None:
                findings.fault(("methods", j), _impossible(study, method, name, engine))
            elif device and (refusal := flags.refuses(device.compute_capability)):
                findings.fault(("methods", j), f"{name} on {engine} with device {device.name}: {refusal}")


def _impossible(study: Study, method: Method, name: str, engine: str) -> str:
    here = [m.name for m in catalog.methods() if engine in m.engines]
    out = f", or exclude the pair: {{engine: {engine}, method: {name}}}" if len(study.engines) > 1 else ""
    return (
        f"{engine} cannot run {name}; engines that can: {', '.join(method.engines)}; "
        f"methods of {engine}: {', '.join(here)}{out}"
    )


def _parallelism(study: Study, host: HostFacts, findings: Findings) -> None:
    for i, parallelism in enumerate(study.parallelism):
        for engine in dict.fromkeys(e.name for e in study.engines if e.name in TRAITS):
            degrees = {"tp": parallelism.tp, "pp": parallelism.pp, "dp": parallelism.dp}
            for axis, degree in degrees.items():
                if degree > 1 and axis not in TRAITS[engine].parallel:
                    can = " and ".join(sorted(TRAITS[engine].parallel)) or "one device only"
                    findings.fault(("parallelism", i, axis), f"{engine} takes {can}, found {axis} {degree}")
        if host.gpus is not None and parallelism.devices > max(host.gpus, 1) and not _all_attached(study):
            text = f"tp × pp × dp asks for {parallelism.devices} devices; this host has {host.gpus} GPUs"
            if min(p.devices for p in study.parallelism) > max(host.gpus, 1):
                findings.fault(("parallelism", i), text)
            else:
                findings.warn("waits_for_gpus", f"parallelism[{i}]: {text}",
                              "its cells wait: resume the study on a host that has them")  # fmt: skip
        for model in study.models:
            shape = known(catalog.model, model.shape)
            if shape and shape.heads % parallelism.tp:
                text = f"tp {parallelism.tp} does not divide the {shape.heads} attention heads of {shape.name}"
                findings.fault(("parallelism", i, "tp"), text)
            if shape and parallelism.pp > shape.layers:
                text = f"pp {parallelism.pp} is more than the {shape.layers} layers of {shape.name}"
                findings.fault(("parallelism", i, "pp"), text)


def _side_by_side(study: Study, host: HostFacts, findings: Findings) -> None:
    """Deployments run side by side only where qMeter can give each its own GPUs, and where others are there."""
    if Placement.SIDE_BY_SIDE not in study.placement:
        return
    here = ("placement", study.placement.index(Placement.SIDE_BY_SIDE))
    cells = [c for c in expand(study) if c.deployment.placement is Placement.SIDE_BY_SIDE]
    for engine in dict.fromkeys(c.deployment.engine.name for c in cells):
        if traits(engine).gpus is not Gpus.AS_MANY_AS_ASKED:
            able = ", ".join(name for name, row in TRAITS.items() if row.gpus is Gpus.AS_MANY_AS_ASKED)
            findings.fault(here, f"{engine} cannot be given GPUs of its own; engines that can: {able}")
    if any(c.deployment.parallelism.dp > 1 for c in cells):
        findings.fault(here, 'replicas of one server need fixed ports: exclude {placement: side_by_side, dp: "…"}')
    if study.quality.fidelity and Placement.ALONE not in study.placement:
        findings.fault(here, "the quality reference is made alone: add alone, or write quality: {fidelity: false}")
    for group in plan_groups(cells, host.gpus) if host.gpus is not None else ():
        if group.waits:
            label = group.members[0].deployment.label
            advice = "its cells wait; exclude it, or add another"
            if host.gpus == 1:
                advice = (
                    "its cells wait for a host with more GPUs; alone on this one: qmeter run STUDY --placement alone"
                )
            findings.warn("waits_for_gpus", f"{label}: {group.waits}", advice)


def _all_attached(study: Study) -> bool:
    """Nothing is started on this host, so it need have neither the model nor the devices."""
    return all(traits(e.name).predicted or traits(e.name).attached for e in study.engines)


def _memory(study: Study, device: Device | None, findings: Findings) -> None:
    """Weights that cannot fit: the cell will be recorded as failed, so this is a warning."""
    if device is None or device.memory_bytes is None:
        return
    for cell in expand(study):
        deployment = cell.deployment
        shape, method = known(catalog.model, deployment.model.shape), known(catalog.method, deployment.method)
        if shape is None or method is None or deployment.engine.name not in method.engines:
            continue
        share = deployment.parallelism.tp * deployment.parallelism.pp
        need = method.expected_weight_bytes(shape, deployment.engine.name) / share
        if need > device.memory_bytes:
            findings.warn(
                "does_not_fit",
                f"{deployment.label}: weights take {need / 2**30:.1f} GiB a device; {device.name} has "
                f"{device.memory_bytes / 2**30:.1f} GiB",
                "its cells will be recorded as failed; raise tp, or take a method of fewer bits",
            )


def _host(study: Study, host: HostFacts, findings: Findings) -> None:
    for i, core in enumerate(study.client.cores):
        if host.cores and core not in host.cores:
            have = ", ".join(map(str, sorted(host.cores)))
            findings.fault(("client", "cores", i), f"core {core} is not one that this process may use: {have}")
    if study.telemetry.replay is not None and not Path(study.telemetry.replay).exists():
        findings.fault(("telemetry", "replay"), f"there is no file {study.telemetry.replay!r}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
