"""A study file becomes a :class:`~qmeter.spec.study.Study`, or a list of everything that is wrong with it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from qmeter.errors import SpecError
from qmeter.spec.document import Document, Fault, YamlPath, read_document
from qmeter.spec.points import Points
from qmeter.spec.read import faulty, text_of, validated
from qmeter.spec.rules import broken_rules
from qmeter.spec.study import Study
from qmeter.spec.workload import TraceArrivals

_SCHEME = re.compile(r"^[a-z][a-z0-9+-]*:(?!//)")


@dataclass
class Draft:
    """A study file as far as it could be understood.

    Attributes:
        document: the file's data and lines.
        points: the data with workload points expanded.
        study: the validated study, or ``None`` where the schema refuses it.
        faults: everything wrong so far, in the file's paths, with lines.
    """

    document: Document
    points: Points
    study: Study | None
    faults: list[Fault]

    def add(self, path: YamlPath, message: str) -> None:
        """Note a fault at ``path`` of the expanded study.

        The same fault of several points of one list counts once; what follows from unreadable YAML does not count.
        """
        back = self.points.in_file(path)
        fault = Fault(back, message, self.document.line(back))
        if fault not in self.faults and all(back != known.path for known in self.document.faults):
            self.faults.append(fault)

    def valid(self) -> Study:
        """The study, if nothing is wrong.

        Raises:
            SpecError: with all faults together, in the file's order.
        """
        if self.study is not None and not self.faults:
            return self.study
        raise faulty(self.document, self.faults)


def load_study(path: Path) -> Study:
    """Read and validate a study file; lists under ``arrivals`` become workload points.

    Relative paths (models, traces) count from the study file's folder, then from the working directory; each trace's
    sha256 is filled in.

    Raises:
        SpecError: with every fault of the file: its YAML path, the value found, what is valid, the line.
    """
    return draft_study(path).valid()


def load_study_text(text: str, name: str = "study") -> Study:
    """As :func:`load_study`, from text; relative paths count from the working directory."""
    return draft_text(text, name, Path()).valid()


def draft_study(path: Path) -> Draft:
    """Read a study file and collect its faults without raising them.

    Raises:
        SpecError: the file cannot be read at all.
    """
    if not path.exists():
        raise SpecError(f"no study file at {path}", hint=f"check the path, or write one: qmeter init {path}")
    return draft_text(text_of(path), path.name, path.parent)


def draft_text(text: str, name: str, folder: Path) -> Draft:
    """As :func:`draft_study`, from text; relative paths count from ``folder``."""
    document = read_document(text, name)
    points = Points(document.data)
    draft = Draft(document, points, None, list(document.faults))
    if not isinstance(points.data, dict):
        return draft
    draft.faults += [Fault(fault.path, fault.message, document.line(fault.path)) for fault in points.faults]
    study, found = validated(points.data, Study)
    for fault in found:
        draft.add(fault.path, fault.message)
    if study is None:
        return draft
    draft.study = study
    for fault in broken_rules(study):
        draft.add(fault.path, fault.message)
    draft.study = _with_traces(draft, _with_paths(study, folder), folder)
    return draft


def _with_paths(study: Study, folder: Path) -> Study:
    """The study with the paths of files that exist made absolute; what has a scheme (``hf:``, …) is no path."""

    def absolute(source: str | None) -> str | None:
        if source is None or _SCHEME.match(source):
            return source
        path = _found(source, folder)
        return str(path) if path.exists() else source

    models = tuple(
        model.model_copy(
            update={
                "source": absolute(model.source),
                "tokenizer": absolute(model.tokenizer),
                "checkpoints": {method: absolute(source) for method, source in model.checkpoints.items()},
            }
        )
        for model in study.models
    )
    telemetry = study.telemetry.model_copy(update={"replay": absolute(study.telemetry.replay)})
    return study.model_copy(update={"models": models, "telemetry": telemetry})


def _found(written: str, folder: Path) -> Path:
    """The absolute path of a file as a study names it: from its own folder, or else from the working directory."""
    path = Path(written).expanduser()
    return next((p.resolve() for p in (folder / path, path) if p.exists()), (folder / path).resolve())


def _with_traces(draft: Draft, study: Study, folder: Path) -> Study:
    """The study with trace paths made absolute and their sha256 filled in; a trace that cannot be read is a fault."""
    workloads = []
    for i, workload in enumerate(study.workloads):
        law = workload.arrivals
        if isinstance(law, TraceArrivals):
            path = _found(law.path, folder)
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if law.sha256 not in (None, found):
                    draft.add(
                        ("workloads", i, "arrivals", "sha256"), f"the file's is {found}: another file, or changed"
                    )
                law = law.model_copy(update={"path": str(path), "sha256": found})
            except OSError as error:
                draft.add(
                    ("workloads", i, "arrivals", "path"), f"cannot read the trace {str(path)!r}: {error.strerror}"
                )
        workloads.append(workload.model_copy(update={"arrivals": law}))
    return study.model_copy(update={"workloads": tuple(workloads)})
