"""A run that is killed, or asked to stop, and resumed ends bit-equal to one that nobody disturbed.

The long form: `MAMBASEG_KILLS=20 make test ARGS=tests/reliability/test_kills.py`.
"""

import json
import os
import subprocess
import sys

import pytest

KILLS = int(os.environ.get("MAMBASEG_KILLS", "3"))
SEED = int(os.environ.get("MAMBASEG_KILL_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(120 + 60 * KILLS)
def test_kills_and_signals_change_nothing(tmp_path, repository):
    command = [sys.executable, "-m", "tests.reliability.runs", str(tmp_path), str(KILLS), str(SEED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MAMBASEG_RUN_DIR": ""}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["wrong"] == [], result
    assert len(result["killed"]) == KILLS
    # 128 + the signal; of a job under SLURM, SIGUSR1 also asks for the queue.
    assert result["stopped"] == {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "requeued": "requeue 7"}
