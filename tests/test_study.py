"""Studies: the comparison that they end with."""

import io
from pathlib import Path

from rich.console import Console

from mambaseg.study import Job, Outcome, comparison_markdown, comparison_table


def outcomes():
    for seed, dice in ((1, 0.5), (2, 0.7)):
        for arm, gain in (("plain", 0.0), ("semi", 0.1)):
            for predictor, offset in (("a", -0.1), ("b", -0.2), ("ensemble", 0.0)):
                yield Outcome(Job(arm, seed, Path("x")), predictor, dice + gain + offset)


def test_the_comparison_says_which_row_is_the_headline():
    rows = list(outcomes())
    text = comparison_markdown("demo", rows, ["plain", "semi"])
    assert "| ensemble | 0.600 ± 0.141 | 0.700 ± 0.141 | +0.100 (+0.100 to +0.100) |" in text
    assert text.endswith("headline, val/dice: ensemble.\n")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table("demo", rows, ["plain", "semi"]))
    assert "headline, val/dice: ensemble" in console.export_text()
