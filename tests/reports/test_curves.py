"""Charts: which are drawn, and that they can stand in a page."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mambaseg.reports.curves import MAX_POINTS, Chart, Curve, chart_svg, learning_curves, thin_out
from mambaseg.reports.run_record import RunRecord, Series, read_run


def record(name, **series):
    return RunRecord(name, Path(name), series, 0, {}, "", {}, [])


def line(*values):
    return Series(tuple(range(len(values))), values)


def test_charts_of_one_run(finished_run):
    charts = {
        chart.title: [curve.label for curve in chart.curves] for chart in learning_curves([read_run(finished_run)])
    }
    assert charts["Loss"] == ["loss", "unet", "mamba_unet"]
    assert charts["Validation Dice, mean of the foreground"] == ["unet", "mamba_unet", "ensemble"]
    assert charts["Validation Dice of ensemble, by class"] == ["RV", "Myo"]
    assert charts["Pseudo-labels"] == ["agreement"]
    assert charts["Speed"] == ["steps_per_s", "images_per_s"]


def test_compared_runs_share_charts_with_a_colour_each():
    logged = {"loss": line(2.0, 1.0), "loss/ce": line(1.0, 0.5), "val/unet/dice": line(0.5, 0.6)}
    runs = [record(name, **logged) for name in "ab"]
    loss, dice = learning_curves(runs)
    assert [curve.label for curve in loss.curves] == ["a: loss", "b: loss"]
    assert [curve.label for curve in dice.curves] == ["a: unet", "b: unet"]
    assert loss.curves[0].colour != loss.curves[1].colour
    assert loss.curves[0].colour == dice.curves[0].colour


def test_what_was_logged_once_is_no_curve():
    run = record("a", **{"loss": line(2.0, 1.0), "val/unet/dice": line(0.5), "speed/data_wait": line(0.1)})
    assert [chart.title for chart in learning_curves([run])] == ["Loss"]


def test_svg_is_well_formed_and_holds_no_address():
    hostile = "_<b>$x$&\"' http"
    svg = chart_svg(Chart("A <title> & more", (Curve(hostile, line(1.0, 0.5, 0.7), "#0072b2"),), log_scale=True))
    assert svg.startswith("<svg role=")
    assert "://" not in svg
    tree = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    texts = [element.text for element in tree.iter() if element.tag == "text"]
    assert any("<b>$x$" in (text or "").replace("\\", "") for text in texts)


def test_two_charts_do_not_share_ids():
    def ids(title):
        svg = chart_svg(Chart(title, (Curve("loss", line(1.0, 2.0), "#0072b2"),)))
        return {e.get("id") for e in ElementTree.fromstring(svg.replace("xlink:href", "href")).iter("clipPath")}

    assert ids("one")
    assert not ids("one") & ids("two")
    assert ids("one") == ids("one"), "the same run gives the same report"


@pytest.mark.parametrize("length", [1, MAX_POINTS, MAX_POINTS + 1, 5 * MAX_POINTS + 3])
def test_long_lines_are_thinned_without_losing_their_ends(length):
    steps, values = thin_out(line(*map(float, range(length))))
    assert len(steps) == len(values) <= MAX_POINTS
    assert steps == values
    assert steps[0] <= 3
    assert steps[-1] >= length - 4
