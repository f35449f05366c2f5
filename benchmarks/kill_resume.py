"""kill -9 of an embedded study at ten random moments, then resume: is a cell lost or repeated, an engine left?

    python benchmarks/kill_resume.py [--kills 10] [--seed 1] [--longest 20]

Runs the quickstart's model with three methods at two load points. After each kill: the journal still begins with every
byte that it held before, no cell has two records, and no process that the killed run had started is left after 10 s.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.resources import files
from pathlib import Path

import psutil
import yaml

GRACE_S = 10.0


def study() -> str:
    """The quickstart with three of its methods and little quality, so that kills meet every stage."""
    data = yaml.safe_load((files("qmeter.study") / "quickstart.yaml").read_text())
    data |= {"name": "kill-resume", "methods": ["f16", "w8a8", "w4a8kv4"]}
    data["quality"] |= {"prompts": 2, "tokens": 16}
    return yaml.safe_dump(data)


def cells(journal: Path) -> Counter[str]:
    """Records a cell id, of the journal's whole lines."""
    whole = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return Counter(json.loads(line)["cell_id"] for line in whole if line.strip())


def run(command: list[str], after_s: float | None, log: Path) -> tuple[list[psutil.Process], bool]:
    """Run qmeter; after ``after_s`` kill -9. Returns what it had started, and whether it ended by itself."""
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            process.wait(after_s)
            return [], True
        except subprocess.TimeoutExpired:
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return started, False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=20.0, help="kill at a moment up to this many seconds")
    asked = parser.parse_args()
    rng, faults, kills = random.Random(asked.seed), [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.yaml").write_text(study())
        out = folder / "out"
        journal, log = out / "records.jsonl", folder / "log"
        program = [sys.executable, "-m", "qmeter.cli.main"]
        first = [*program, "run", str(folder / "study.yaml"), "--out", str(out), "--no-report"]
        again = [*program, "resume", str(out), "--no-report"]
        ended = False
        while kills < asked.kills and not ended:
            before = journal.read_bytes() if journal.exists() else b""
            after_s = rng.uniform(0.5, asked.longest)
            started, ended = run(again if (out / "study.json").exists() else first, after_s, log)
            kills += not ended
            _, alive = psutil.wait_procs(started, timeout=GRACE_S)
            now = journal.read_bytes() if journal.exists() else b""
            whole = before[: before.rfind(b"\n") + 1]
            faults += [f"kill {kills}: {p} is left" for p in alive]
            faults += [] if now.startswith(whole) else [f"kill {kills}: what the journal held has changed"]
            faults += [f"kill {kills}: cell {c} has {n} records" for c, n in cells(journal).items() if n > 1]
            print(f"kill {kills} after {after_s:.1f} s: {len(cells(journal))} cells kept, {len(started)} processes "
                  f"ended", flush=True)  # fmt: skip
            time.sleep(0.2)
        run(again, None, log)
        statuses = Counter(json.loads(line)["status"] for line in journal.read_text().splitlines())
        faults += [] if sum(statuses.values()) == 6 else [f"{sum(statuses.values())} of 6 cells have a record"]
        faults += [f"cell {c} has {n} records" for c, n in cells(journal).items() if n > 1]
    print(f"{kills} kills, then resume: {dict(statuses)}; {'; '.join(faults) or 'nothing lost, repeated or left'}")
    return 1 if faults or kills < asked.kills else 0


if __name__ == "__main__":
    sys.exit(main())
