"""The frame of the terminal dashboard."""

import pytest
from rich.console import Console

from mambaseg.dashboards.live_run import LiveRun
from mambaseg.dashboards.terminal import Scale, frame, sparkline
from mambaseg.reports.run_record import Series


def a_run(name="r", steps=50, seconds_per_step=1.0, **series):
    curves = {
        key.replace("__", "/"): Series(tuple(range(len(values))), tuple(values)) for key, values in series.items()
    }
    return LiveRun(name, curves, steps, 100, seconds_per_step, 1000.0)


def drawn(*runs, width=100, now=1000.0):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  the console keeps it
    console.print(frame(runs, width, now))
    return console.export_text().rstrip("\n").splitlines()


def line_of(lines, label):
    return next(line for line in lines if line.startswith(label))


def test_one_run():
    lines = drawn(
        a_run(val__unet__dice=[0.2, 0.8, 0.6], loss=[1.0, 0.1, 0.01], memory__peak_gib=[3.5], lr__unet=[1e-3])
    )
    text = "\n".join(lines)
    assert "50/100 ━" in text
    assert "0:00:50 left, last row 0:00:00 ago" in text
    assert line_of(lines, "unet").split() == ["unet", "0.6", "▁█▆", "0.800"]
    assert line_of(lines, "loss").split() == ["loss", "0.01", "█▅▁"], "losses are drawn by their magnitude"
    assert line_of(lines, "peak_gib").split() == ["peak_gib", "3.5", "▁"]
    assert "lr" not in text
    assert text.index("Validation Dice") < text.index("Loss") < text.index("Memory")


def test_runs_side_by_side_share_the_scale_of_a_metric():
    lines = drawn(a_run("a", val__x__dice=[0.0, 0.5]), a_run("b", val__x__dice=[0.5, 1.0]), width=120)
    assert lines[0].split() == ["a", "b"]
    assert line_of(lines, "x").split() == ["x", "0.5", "▁▅", "0.500", "1", "▅█", "1.000"]


def test_a_metric_that_a_run_lacks_is_a_dash():
    lines = drawn(a_run("a", loss=[1.0]), a_run("b", val__x__dice=[0.5]), width=120)
    assert line_of(lines, "loss").split() == ["loss", "1", "▁", "–"]


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_no_run_is_lost(width):
    runs = [a_run(f"experiment/{'n' * 50}{index}", loss=[float(i + 1) for i in range(500)]) for index in range(4)]
    lines = drawn(*runs, width=width)
    assert max(map(len, lines)) <= width
    assert all(any(f"n{index}" in line for line in lines) for index in range(4))


def test_states():
    assert "done" in "\n".join(drawn(a_run(steps=100)))
    assert "last row 0:10:00 ago" in "\n".join(drawn(a_run(), now=1600.0))
    assert "nothing is written yet" in "\n".join(drawn(LiveRun("new", {}, 0, None, None, None)))


def test_sparklines_average_what_has_no_room():
    scale = Scale(0.0, 1.0, is_log=False)
    assert sparkline([0.0, 1.0, 1.0], 10, scale) == "▁██"
    assert sparkline([0.0, 1.0] * 50 + [1.0] * 100, 2, scale) == "▅█"
    assert sparkline([0.3] * 5, 3, Scale.of([[0.3] * 5], is_log=True)) == "▁▁▁"


def test_a_scale_is_logarithmic_only_where_all_is_positive():
    assert Scale.of([[0.01, 1.0]], is_log=True).level(0.1) == pytest.approx(0.5)
    assert Scale.of([[0.0, 1.0]], is_log=True).level(0.1) == pytest.approx(0.1)
