"""Tiny trainings that are killed and resumed, in forked processes: importing torch once is most of a run's time.

Run as a program, `python -m tests.reliability.runs FOLDER KILLS SEED`, because a test process has threads already and
must not fork. It writes FOLDER/result.json: what was done, and what differs from the run that nobody disturbed.
"""

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import torch
import yaml

import mambaseg.io.checkpoint_file as checkpoint_file
from mambaseg.cli import main
from mambaseg.runs import CHECKPOINTS, LAST
from tests.methods.test_training import experiment

STEPS = 16
LENGTH_S = 60.0


def write_experiment(folder, steps=STEPS, **changes):
    """Write an experiment with an EMA teacher, a ramp-up, dropout and validation into ``folder``; return its name."""
    config = experiment(steps)
    config["trainer"]["val_check_interval"] = 5
    config["tracking"]["checkpoint_every"] = 2
    arguments = config["model"]["init_args"]
    arguments["cross"] = {"teacher": "ema", "trust": 2.0, "ramp": {"weight": 1.0, "steps": 9}}
    for name, settings in changes.items():
        config[name] |= settings
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "tiny.yaml")


def fork(action):
    """Run ``action`` in a child with quiet output; return its process id."""
    child = os.fork()
    if child:
        return child
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    if not os.environ.get("RELIABILITY_VERBOSE"):
        os.dup2(silent, 2)
    try:
        status = action()
    except BaseException:  # noqa: BLE001  the parent reads the status
        import traceback

        traceback.print_exc()
        status = 99
    os._exit(status)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fit(config, root, words=()):
    def action():
        os.environ["MAMBASEG_RUNS"] = str(root)
        return main(["fit", "--config", config, "--resume", "auto", *words])

    return action


def dying_in_write(action, number, place):
    """Let the process kill itself within its write of that number, at one of the places of ``atomic_path``."""

    def fatal():
        seen = 0
        names = {"before": "open", "fsync": "fsync", "keep": "link"}
        real = {"open": Path.open, "fsync": os.fsync, "link": os.link}

        def count(name, call):
            def counted(*words, **options):
                nonlocal seen
                if name == names[place] and (name != "open" or str(words[0]).endswith(f".{LAST}")):
                    seen += 1
                    if seen >= number:
                        os.kill(os.getpid(), signal.SIGKILL)
                return call(*words, **options)

            return counted

        Path.open = count("open", real["open"])
        checkpoint_file.os.fsync = count("fsync", real["fsync"])
        checkpoint_file.os.link = count("link", real["link"])
        return action()

    return fatal


def differences(a, b, path=""):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            # Lightning counts an epoch's start once more when it resumes at its very end; nothing reads that count.
            if path.endswith(("epoch_progress.total", "epoch_progress.current")) and key in ("ready", "started"):
                continue
            if key not in a or key not in b:
                yield f"{path}.{key} is missing"
            else:
                yield from differences(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{number}]")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a, b):
            yield f"{path}: tensors differ"
    elif a != b:
        yield f"{path}: {a!r} != {b!r}"


def contents(run):
    """Everything that a run leaves and that must not depend on its being killed."""
    from safetensors.torch import load_file

    from mambaseg.reports.run_record import read_run

    found = {path.name: load_file(path) for path in run.glob("best_*.safetensors")}
    for name in (LAST, "best.ckpt"):
        saved = torch.load(run / CHECKPOINTS / name, weights_only=True)
        found[name] = json_paths(saved)
    series = read_run(run).series
    found["history"] = {
        key: [list(own.steps), list(own.values)]
        for key, own in series.items()
        if not key.startswith(("speed/", "memory/"))
    }
    found["scores"] = (run / "scores_val" / "scores.csv").read_text()
    found["overlays"] = sorted(path.name for path in (run / "overlays").glob("*.png"))
    return found


def json_paths(value):
    """Leave out in paths the run's folder, which differs between two runs."""
    if isinstance(value, dict):
        return {json_paths(str(key)): json_paths(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [json_paths(own) for own in value]
    return re.sub(r"^/.*/(?=checkpoints)", "", value) if isinstance(value, str) else value


def only_run(root):
    (run,) = (path.parent for path in (root / "tiny").glob("*/config.yaml"))
    return run


def kill_and_resume(folder, config, length, kills, seed):
    """Kill runs again and again, four times each, at random moments and within writes; return what was done."""
    draw = random.Random(seed)
    moments = []
    for number in range(kills):
        action = fit(config, folder / f"killed{number // 4}")
        if number % 2:
            place, count = draw.choice(["before", "fsync", "keep"]), draw.randint(1, 5)
            status = wait(fork(dying_in_write(action, count, place)))
            moments.append(f"{place} of write {count}: status {status}")
        else:
            delay = draw.uniform(0.1, 0.9) * length
            child = fork(action)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            moments.append(f"after {delay:.2f} s: status {wait(child)}")
    return moments


def stop_and_resume(folder, config):
    """Ask one run to stop in three ways, each after some steps; return the statuses."""
    statuses = {}
    root = folder / "stopped"
    tools = folder / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ > {folder}/requeued\n")
    (tools / "scontrol").chmod(0o755)
    os.environ |= {"SLURM_JOB_ID": "7", "PATH": f"{tools}:{os.environ['PATH']}"}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        before = rows(root)
        child = fork(fit(config, root))
        end = time.monotonic() + LENGTH_S
        while rows(root) < before + 4 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(child, number)
        statuses[number.name] = wait(child)
    return statuses | {"requeued": (folder / "requeued").read_text().strip()}


def rows(root):
    return sum(len(path.read_text().splitlines()) for path in root.glob("tiny/*/metrics.jsonl"))


def compare(folder, kills, seed):
    config = write_experiment(folder)
    started = time.monotonic()
    assert wait(fork(fit(config, folder / "whole"))) == 0
    length = time.monotonic() - started
    result = {"killed": kill_and_resume(folder, config, length, kills, seed)}
    result["stopped"] = stop_and_resume(folder, config)
    whole, wrong = contents(only_run(folder / "whole")), []
    for root in [*folder.glob("killed*"), folder / "stopped"]:
        assert wait(fork(fit(config, root))) == 0, root
        wrong += [f"{root.name}{line}" for line in differences(whole, contents(only_run(root)))]
        wrong += [f"left over: {path}" for path in root.glob("**/.*.ckpt")]
    return result | {"wrong": wrong}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    (target / "result.json").write_text(json.dumps(compare(target, int(sys.argv[2]), int(sys.argv[3])), indent=1))
