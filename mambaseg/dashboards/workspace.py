"""The dashboard as a saved view of a Weights & Biases project, written as code.

wandb-workspaces is optional and imported here alone. Composing the view needs no account; saving it does.
"""

import re
from collections.abc import Sequence
from typing import Any

from mambaseg.dashboards.sections import SECTIONS
from mambaseg.errors import InputError

EXTRA = "workspaces"
PICTURES = "panels"
"""Under which name ``PredictionOverlays`` logs the pictures of a case."""


def wandb_workspaces() -> tuple[Any, Any]:
    """Return the modules of wandb-workspaces: panels and workspaces.

    Raises:
        InputError: It is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise InputError(
            f"--wandb needs the extra {EXTRA!r}: pip install 'mambaseg[{EXTRA}]'. Without --wandb the dashboard is in "
            "the terminal and needs neither it nor a login."
        ) from error
    return wr, ws


def compose(entity: str, project: str, runs: Sequence[str], logged: Sequence[str], cases: Sequence[str]) -> Any:
    """Return the view, a ``Workspace``: a section for each group of metrics, a chart for each of them, and predictions.

    Args:
        entity: The W&B team or user.
        project: The project that the runs were recorded in.
        runs: W&B names of the runs to show.
        logged: Names of the metrics that the runs have.
        cases: Validation cases that the runs have pictures of.

    Raises:
        InputError: wandb-workspaces is not installed.
    """
    wr, ws = wandb_workspaces()
    sections = []
    for section in SECTIONS:
        charts = section.metrics(logged).items()
        panels = [wr.LinePlot(title=label, y=[name], log_y=section.log_scale) for name, label in charts]
        if panels:
            sections.append(ws.Section(name=section.title, panels=panels, is_open=True))
    if cases:
        pictures = wr.MediaBrowser(title="Predictions", media_keys=[f"{PICTURES}/{case}" for case in cases])
        sections.append(ws.Section(name="Predictions", panels=[pictures], is_open=True))
    query = "|".join(f"^{re.escape(name)}$" for name in runs)
    return ws.Workspace(
        entity=entity,
        project=project,
        name="mambaseg",
        sections=sections,
        runset_settings=ws.RunsetSettings(query=query, regex_query=True),
    )
