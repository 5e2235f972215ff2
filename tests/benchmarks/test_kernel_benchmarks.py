"""The kernels' benchmarks on a CPU: rows, exit status, the floors they are drawn over, and the drawing."""

import csv
import subprocess
import sys

import pytest


@pytest.fixture
def folder(repository):
    return repository / "benchmarks" / "kernels"


@pytest.fixture
def floors(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    import floors

    return floors


def run(script, *arguments):
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_floors_of_the_scan_are_those_of_the_design(floors):
    machine = floors.Machine(4.25e12)
    shape = "(24, 4*192, 56*56), N=16"
    fp32, bf16 = (
        machine.floors_ms(floors.work("selective_scan", "forward", dtype, shape)) for dtype in ("fp32", "bf16")
    )
    assert fp32["exponentials"] * 16 / 17 == pytest.approx(0.22, abs=0.005)  # the softplus is the seventeenth
    assert (fp32["bytes"], bf16["bytes"]) == (pytest.approx(0.17, abs=0.005), pytest.approx(0.085, abs=0.005))
    training = floors.work("selective_scan", "training", "fp32", shape)
    passes = [floors.work("selective_scan", name, "fp32", shape) for name in ("forward_saving", "backward")]
    assert training == passes[0] + passes[1]
    assert passes[0].moved - floors.work("selective_scan", "forward", "fp32", shape).moved == 24 * 49 * 768 * 16 * 4


@pytest.mark.parametrize(
    ("kernel", "mode", "bytes_per_element"),
    [
        ("norm_gate 4", "forward_saving", 14),
        ("norm_gate 1", "forward_saving", 6),
        ("norm_gate 4", "backward", 10),
        ("merge_norm 4", "forward", 10),
        ("layer_norm float32", "forward", 6),
        ("layer_norm float32", "backward", 10),
        ("causal_conv1d time last", "backward", 6),
    ],
)
def test_bytes_of_the_operators_around_the_scan(floors, kernel, mode, bytes_per_element):
    assert floors.work(kernel, mode, "bf16", "(2, 49, 32)").moved == bytes_per_element * 2 * 49 * 32


def test_bytes_of_the_losses_sums(floors):
    shape = "(16, 4, 224, 224)"
    passes = [floors.work("softmax_sums channels last", mode, "fp32", shape) for mode in ("forward_saving", "backward")]
    assert [work.moved for work in passes] == [16 * 224 * 224 * (16 + 8), 16 * 224 * 224 * (32 + 8)]


def test_bytes_of_the_heads_scores(floors):
    passes = [
        floors.work("rms_scores", mode, "bf16", "(16, 56, 56, 16, 96), K=4") for mode in ("forward_saving", "backward")
    ]
    assert [work.moved for work in passes] == [16 * 224 * 224 * (2 * 104 + 4), 16 * 224 * 224 * (2 * 204 + 4)]


def test_bytes_of_the_doubling(floors):
    shape, pixels = "(16, 112, 112, 16), S=16", 16 * 112 * 112
    passes = [floors.work("bilinear_doubling", mode, "bf16", shape) for mode in ("forward_saving", "backward")]
    assert [work.moved for work in passes] == [2 * pixels * 16 * (1 + 4 + 8), 2 * pixels * 16 * 5]


def test_bytes_of_batch_norm(floors):
    passes = [
        floors.work("batch_norm_act", mode, "bf16", "(16, 224, 224, 16)") for mode in ("forward_saving", "backward")
    ]
    assert [work.moved for work in passes] == [16 * 224 * 224 * 16 * 2 * count for count in (2, 3)]


def test_bench_appends_rows_and_says_what_it_did_not_reach(folder, tmp_path):
    output = tmp_path / "rows.csv"
    shared = (folder / "bench.py", "--device", "cpu", "--dtypes", "fp32", "--repeats", 2, "--output", output)
    done = run(*shared, "--kernels", "layer_norm", "ss2d")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(output.open(newline="")))
    assert {row["kernel"] for row in rows} == {"copy", "layer_norm float32", "ss2d"}
    ours = [row for row in rows if row["kernel"] == "ss2d" and row["provider"] == "cpu"]
    assert len(ours) == 2
    for row in ours:
        assert float(row["error"]) < 1e-5
        assert float(row["held_share"]) < 0.4
        assert float(row["speedup"]) > 0
    late = run(*shared, "--kernels", "layer_norm", "--seconds", 0)
    assert late.returncode == 1
    assert "0 of 1 cases measured" in late.stdout
    assert "not reached in time" in late.stdout


def test_a_wrong_result_is_not_timed_and_leaves_the_other_cases_alone(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    import bench
    from case import Case, Provider

    def draw(sizes, kind, device):
        return [bench.torch.randn(*sizes, dtype=kind, device=device)]

    def case(operator):
        return Case("twice", "(3)", "fp32", (3,), (2,), draw, {"ours": Provider(operator)}, lambda x: 2 * x)

    report = bench.Report(None, "cpu")
    failed = bench.measure_all([case(lambda x: 3 * x), case(lambda x: x + x)], report, "cpu", 2, float("inf"))
    assert len(failed) == 1
    assert "relative RMS error" in failed[0]
    assert [row["mode"] for row in report.rows[1:]] == ["forward", "forward_saving", "backward"]


def test_every_figure_shows_sizes_that_are_counted_and_stands_in_its_readme(folder, floors, repository):
    import roofline

    for name, columns in roofline.FIGURES.items():
        assert "](roofline.svg)" in (repository / "kernels" / name / "README.md").read_text()
        assert (repository / "kernels" / name / "roofline.svg").is_file()
        for column in columns:
            assert all(floors.work(column.kernel, column.mode, "bf16", shape).moved > 0 for shape in column.shapes)


def test_roofline_draws_the_newest_run_alike_every_time(folder, tmp_path):
    rows = tmp_path / "rows.csv"
    lines = ["kernel,provider,mode,dtype,shape,timing,ms_p50,gpu,commit,date"]
    lines += ["copy,torch,forward,fp32,4000000000 bytes,launched,1.0,NVIDIA H200,,2026-01-01"]
    for commit, times in (("aaaaaaa", (0.91, 0.92)), ("bbbbbbb", (0.571, 0.311))):
        for shape, ms in zip(("(24, 4*192, 56*56), N=16", "(24, 4*384, 28*28), N=16"), times, strict=True):
            row = f'selective_scan,triton,forward,fp32,"{shape}",replayed,{ms},NVIDIA H200,{commit},2026-01-02'
            lines.append(row)
    rows.write_text("\n".join(lines) + "\n")
    drawings = []
    for name in ("one", "other"):
        done = run(folder / "roofline.py", rows, "--figures", "selective_scan", "--folder", tmp_path / name)
        assert done.returncode == 0, done.stderr
        drawings.append((tmp_path / name / "selective_scan" / "roofline.svg").read_text())
    assert drawings[0] == drawings[1]
    for text in (">0.57<", ">0.31<", "H200, 4.00 TB/s copied; 2026-01-02, bbbbbbb", "floor: instructions"):
        assert text in drawings[0]
    assert ">0.91<" not in drawings[0]
