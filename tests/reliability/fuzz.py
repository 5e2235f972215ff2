"""Fuzzing of everything that reads data: `python -m tests.reliability.fuzz N [SEED [FIRST]]` tries N damaged files.

A child process does the work, so that a crash of a C library, or a hang, ends neither the count nor the report; it goes
on with the next input. Prints how each kind of file fared, and ends with status 1 when an input was answered with
anything but the right arrays or an `InputError`. One input again: N = 1, with its SEED and number.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HANG_S = 20.0
POLL_S = 0.2
WELCOME = ("refused", "equal", "as stored", "accepted")


def work(log, seed, first, end):
    """Try the inputs of these numbers; write a line for each."""
    from mambaseg.errors import InputError
    from tests.reliability.fuzz_targets import TARGETS

    log.with_suffix(".ready").touch()
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder, log.open("a", buffering=1) as lines:
        targets = {}
        for number in range(first, end):
            name = list(TARGETS)[number % len(TARGETS)]
            if name not in targets:
                targets[name] = TARGETS[name](Path(folder) / name.replace(" ", "_"))
            try:
                outcome, remark = targets[name].run(random.Random(f"{seed}:{number}")), ""
            except InputError as error:
                outcome, remark = "refused", str(error)
            except BaseException as error:  # noqa: BLE001  what escapes is the finding
                outcome, remark = type(error).__name__, traceback.format_exc()
            if outcome == "refused" and len(remark) < 20:
                outcome = "refused without a word"
            remark = "" if outcome in WELCOME else remark
            lines.write(json.dumps({"number": number, "target": name, "outcome": outcome, "remark": remark}) + "\n")


def fuzz(count, seed=0, first=0):
    """Try ``count`` inputs; return a record of each."""
    with tempfile.TemporaryDirectory(prefix="fuzzlog") as folder:
        log, end = Path(folder) / "log", first + count
        log.touch()
        while (done := first + len(log.read_text().splitlines())) < end:
            words = [sys.executable, "-m", "tests.reliability.fuzz", "--work", str(log), str(seed), str(done), str(end)]
            log.with_suffix(".ready").unlink(missing_ok=True)
            ended = _watch(subprocess.Popen(words), log)
            reached = first + len(log.read_text().splitlines())
            if reached < end:
                from tests.reliability.fuzz_targets import TARGETS

                name = list(TARGETS)[reached % len(TARGETS)]
                with log.open("a") as lines:
                    record = {"number": reached, "target": name, "outcome": ended, "remark": ""}
                    lines.write(json.dumps(record) + "\n")
        return [json.loads(line) for line in log.read_text().splitlines()]


def _watch(child, log):
    """Wait for the child, and end it when it writes nothing for too long once it is ready; say how it ended."""
    ready = log.with_suffix(".ready")
    size, since = -1, time.monotonic()
    while child.poll() is None:
        time.sleep(POLL_S)
        now = log.stat().st_size
        if now != size or not ready.exists():
            size, since = now, time.monotonic()
        elif time.monotonic() - since > HANG_S:
            child.kill()
            child.wait()
            return "hang"
    return f"crash with status {child.returncode}"


def main(count, seed=0, first=0):
    started = time.monotonic()
    records = fuzz(count, seed, first)
    by_target = {}
    for record in records:
        by_target.setdefault(record["target"], Counter())[record["outcome"]] += 1
    for target, outcomes in by_target.items():
        print(f"{target:33}", ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))  # noqa: T201
    bad = [record for record in records if record["outcome"] not in WELCOME]
    for record in bad:
        print(f"\nseed {seed}, number {record['number']}, {record['target']}: {record['outcome']}")  # noqa: T201
        print(record["remark"])  # noqa: T201
    print(f"\n{len(records)} inputs, {len(bad)} bad, {time.monotonic() - started:.0f} s")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
