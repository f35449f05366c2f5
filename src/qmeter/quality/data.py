"""What fidelity keeps: the reference's continuations and each deployment's scores of them. Plain arrays and JSON.

Both save to one ``.npz`` file that is read back with pickle switched off.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import QualityError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FORMAT = 1
"""Raised when the meaning of a stored array changes; older files are then measured anew."""


@dataclass(frozen=True)
class Continuation:
    """One prompt and what the reference wrote after it.

    Attributes:
        prompt_ids, ids: token ids.
        text: the continuation, for people.
        sampled: drawn at temperature 1 from the whole distribution (else greedy).
        logprobs: the reference's own, as it generated (decode path), nat; NaN where it gave none.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    sampled: bool
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Reference:
    """The reference deployment's continuations: what every deployment is scored on.

    Attributes:
        model: the served name they came from.
        top_k: alternatives to ask for a token (0: none).
        continuations: greedy ones first, then sampled ones.
        notes: what a reader must know of how they were made.
    """

    model: str
    top_k: int
    continuations: tuple[Continuation, ...]
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Hash of prompts and continuations: scores of different ids must not be compared."""
        rows = [[c.prompt_ids, c.ids, c.sampled] for c in self.continuations]
        return hashlib.sha256(json.dumps([self.top_k, rows]).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write as ``.npz`` (to a temporary name, then renamed)."""
        meta = {
            "format": FORMAT, "model": self.model, "top_k": self.top_k, "notes": self.notes,
            "texts": [c.text for c in self.continuations], "sampled": [c.sampled for c in self.continuations],
        }  # fmt: skip
        arrays = {
            "prompt_ids": _flat([c.prompt_ids for c in self.continuations], np.int64),
            "prompt_n": np.array([len(c.prompt_ids) for c in self.continuations], np.int64),
            "ids": _flat([c.ids for c in self.continuations], np.int64),
            "n": np.array([len(c.ids) for c in self.continuations], np.int64),
            "logprobs": _flat([c.logprobs for c in self.continuations], np.float64),
        }
        _write(path, meta, arrays)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what :meth:`save` wrote.

        Raises:
            QualityError: the file is no reference, or of another format.
        """
        meta, data = _read(path, "a fidelity reference", ("prompt_ids", "prompt_n", "ids", "n", "logprobs"))
        prompts, ids, logprobs = (
            _ragged(data[k], data[c]) for k, c in (("prompt_ids", "prompt_n"), ("ids", "n"), ("logprobs", "n"))
        )
        rows = zip(prompts, ids, meta["texts"], meta["sampled"], logprobs, strict=True)
        made = tuple(
            Continuation(tuple(map(int, p)), tuple(map(int, i)), t, s, tuple(map(float, v))) for p, i, t, s, v in rows
        )
        return cls(meta["model"], meta["top_k"], made, tuple(meta["notes"]))


@dataclass(frozen=True)
class Scores:
    """One deployment's scores of a reference, over all its continuation tokens one after another.

    Attributes:
        reference_id: :attr:`Reference.id` scored.
        lengths: tokens a continuation, shape (c,); their sum is t.
        sampled: which continuations were sampled, shape (c,).
        logprobs: of the reference's tokens, given the reference's own prefix (prefill path), nat, shape (t,).
        top_ids, top_logprobs: the deployment's best alternatives, shape (t, w), id -1 and NaN where fewer; w is 0
            where the endpoint gives no alternatives.
        own_ids: the deployment's own greedy tokens after each greedy prompt (decode path), -1 where it stopped
            earlier or the continuation was sampled, shape (t,).
        own_logprobs: log-probabilities of ``own_ids`` as generated, NaN where unknown, shape (t,).
        agrees: whether the deployment's best next token after the reference's prefix is the reference's greedy
            one, 1 or 0; -1 where not asked (sampled continuations, or ``top_ids`` already says it), shape (t,).
        matched: for each continuation the tokens its own greedy text shares with the reference before the first
            difference, -1 where it was not generated, shape (c,).
    """

    reference_id: str
    lengths: I64
    sampled: NDArray[np.bool_]
    logprobs: F64
    top_ids: I64
    top_logprobs: F64
    own_ids: I64
    own_logprobs: F64
    agrees: I64
    matched: I64

    def save(self, path: Path) -> None:
        """Write as ``.npz`` (to a temporary name, then renamed)."""
        names = [n for n in self.__dataclass_fields__ if n != "reference_id"]
        _write(path, {"format": FORMAT, "reference_id": self.reference_id}, {n: getattr(self, n) for n in names})

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what :meth:`save` wrote.

        Raises:
            QualityError: the file is no scores, or of another format.
        """
        names = tuple(n for n in cls.__dataclass_fields__ if n != "reference_id")
        meta, data = _read(path, "fidelity scores", names)
        return cls(meta["reference_id"], **{n: data[n] for n in names})

    @property
    def owner(self) -> I64:
        """Continuation number of each token, shape (t,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def _flat(rows: list[tuple[Any, ...]], dtype: Any) -> NDArray[Any]:
    return np.array([v for row in rows for v in row], dtype=dtype)


def _ragged(flat: NDArray[Any], counts: NDArray[Any]) -> list[NDArray[Any]]:
    return np.split(flat, np.cumsum(counts)[:-1]) if len(counts) else []


def _write(path: Path, meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, meta=text, **arrays)
    temporary.replace(path)


def _read(path: Path, what: str, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(bytes(file["meta"]).decode())
            data = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise QualityError(
            f"{path} is not {what}: {error}", stage="quality", hint="delete it; it is made anew"
        ) from None
    if meta.get("format") != FORMAT:
        raise QualityError(
            f"{path} has format {meta.get('format')}, this qMeter reads {FORMAT}", stage="quality", hint="delete it"
        )
    return meta, data
