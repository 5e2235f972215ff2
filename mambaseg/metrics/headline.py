"""The headline: the one score of a run that picks its best checkpoint and stands first wherever a run is described."""

from collections.abc import Sequence

HEADLINE_MEANING = "Dice, mean over cases, then over the foreground classes, of the ensemble or of the only student"


def headline_metric(part: str = "val") -> str:
    """Return the name under which the headline is logged, monitored and plotted: ``val/dice``.

    Args:
        part: ``val`` or ``test``.
    """
    return f"{part}/dice"


def headline_predictor(predictors: Sequence[str]) -> str:
    """Return whose Dice the headline is: the ensemble's, or the only student's.

    Args:
        predictors: The students in order, then the ensemble where there are several.
    """
    return predictors[-1]
