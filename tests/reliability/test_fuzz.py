"""Damaged files of every kind: right arrays or a clear message, never a hang, a crash, or a wrong array.

The long form: `python -m tests.reliability.fuzz 10000`.
"""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambaseg.errors import InputError
from tests.reliability.fuzz import fuzz, main
from tests.reliability.fuzz_mutations import TOKENS, places
from tests.reliability.fuzz_targets import TARGETS, ManifestTarget, SplitTarget, WrongArrayError

COUNT = int(os.environ.get("MAMBASEG_FUZZ", "300"))
SEED = int(os.environ.get("MAMBASEG_FUZZ_SEED", "0"))

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("patient001_frame01")
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.timeout(60 + COUNT)
def test_damaged_files(repository):
    command = [sys.executable, "-m", "tests.reliability.fuzz", str(COUNT), str(SEED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{COUNT} inputs, 0 bad" in done.stdout
    assert all(name in done.stdout for name in TARGETS)
    assert "refused" in done.stdout


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return ManifestTarget(tmp_path_factory.mktemp("manifest"))


@quick
@given(data=st.data())
def test_any_value_anywhere_in_a_manifest(manifest, data):
    (path,) = manifest.files
    document = json.loads(path.read_text())
    holder, key = data.draw(st.sampled_from(list(places(document))))
    holder[key] = data.draw(values)
    try:
        outcome = manifest.attempt(path, json.dumps(document).encode())
    except InputError as error:
        outcome = str(error)
    assert outcome == "equal" or str(manifest.out) in outcome


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return SplitTarget(tmp_path_factory.mktemp("split"))


@quick
@given(content=st.binary(max_size=80) | (st.text(max_size=80) | st.sampled_from(TOKENS)).map(str.encode))
def test_any_bytes_in_a_split_file(split, content):
    with pytest.raises(InputError, match=r"split\.json"):
        split.attempt(split.file, content)


def test_a_crash_a_hang_and_a_wrong_array_are_told(tmp_path, monkeypatch, repository):
    """The harness itself can fail: each kind of bad end is counted, and the work goes on behind it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "import tests.reliability.fuzz as fuzz, tests.reliability.fuzz_targets as targets\n"
        "def wrong(self, draw):\n"
        "    raise targets.WrongArrayError('planted')\n"
        "targets.TARGETS['HDF5 volumes'].run = wrong\n"
        "targets.TARGETS['HDF5 slices'].run = lambda self, draw: os._exit(9)\n"
        "targets.TARGETS['challenge NIfTI'].run = lambda self, draw: time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(repository)]))
    monkeypatch.setattr("tests.reliability.fuzz.HANG_S", 2.0)
    monkeypatch.chdir(repository)
    outcomes = {record["target"]: record["outcome"] for record in fuzz(len(TARGETS))}
    assert outcomes["HDF5 volumes"] == WrongArrayError.__name__
    assert outcomes["HDF5 slices"] == "crash with status 9"
    assert outcomes["challenge NIfTI"] == "hang"
    assert outcomes["split file"] in ("refused", "accepted")
    assert len(outcomes) == len(TARGETS)
    assert main(1) == 1
