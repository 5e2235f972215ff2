"""What a trace says of streams, and how its file is read."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def trace(repository):
    spec = importlib.util.spec_from_file_location("trace_benchmark", repository / "benchmarks" / "trace.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernels(trace):
    """Two steps: a scan of 2 ms under which another stream has two kernels, a gap, and a copy of 0.5 ms."""
    rows = []
    for start in (0, 10_000_000):
        rows += [("scan", start, 2_000_000, 8), ("conv", start + 500_000, 400_000, 7)]
        rows += [("conv", start + 1_800_000, 400_000, 7), ("copy", start + 4_000_000, 500_000, 7)]
    return [trace.Kernel(*row) for row in rows]


def test_what_overlaps_counts_once(trace, kernels):
    assert trace.busy(kernels) == 2 * 2_700_000
    assert trace.busy([]) == 0


def test_a_step_is_summed_by_stream_and_by_kernel(trace, kernels):
    lines = trace.summary(kernels, 2).splitlines()
    assert lines[:3] == [
        "4 kernels a step; the GPU is busy for 2.70 ms",
        "stream 7: 3 kernels, 1.30 ms",
        "stream 8: 1 kernels, 2.00 ms",
    ]
    assert [line.split()[-1] for line in lines[3:]] == ["scan", "conv", "copy"]
    assert lines[4].split()[:3] == ["0.800", "ms", "2.0"]


def test_a_file_is_read_by_time_stream_and_length(kernels, repository, tmp_path):
    with gzip.open(tmp_path / "t.json.gz", "wt") as file:
        json.dump(kernels, file)
    command = [sys.executable, str(repository / "benchmarks" / "trace.py"), "--read", str(tmp_path / "t.json.gz")]
    shown = subprocess.run(
        [*command, "--from", "1", "--until", "12", "--stream", "7", "--least", "450"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [line.split()[-1] for line in shown] == ["copy"]
    assert len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()) == len(kernels)


def test_without_experiment_or_file_it_says_what_it_needs(repository):
    script = str(repository / "benchmarks" / "trace.py")
    refused = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "name an experiment" in refused.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demoo"], "Did you mean"),
        (["demo"], "there is no GPU here"),
        (["--read", "nothing.json.gz"], "nothing.json.gz"),
        (["--read", "no_trace.json.gz"], "no_trace.json.gz holds no trace"),
    ],
)
def test_what_cannot_be_traced_or_read_is_told_in_one_line(repository, tmp_path, words, told):
    (tmp_path / "no_trace.json.gz").write_bytes(b"no")
    words = [str(tmp_path / word) if word.endswith(".gz") else word for word in words]
    command = [sys.executable, str(repository / "benchmarks" / "trace.py"), *words]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository, env=hidden)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1
