"""Which classes a configuration may name: reading one must not run anybody's code."""

import os

from jsonargparse import set_parsing_settings

ALLOWED = ("mambaseg", "lightning", "torch.optim")
VARIABLE = "MAMBASEG_ALLOW_CODE"
"""Further prefixes, separated by commas; an environment variable, so that the other processes of a run have it too."""
_allowed_once: set[str] = set()
"""Prefixes that this process has allowed: jsonargparse adds to its rules and forgets none, so those must be denied."""


def restrict_class_paths() -> None:
    """Refuse every import path in a configuration that begins with none of the allowed prefixes, before it is imported.

    The rule holds for ``class_path`` and for whatever else names an object, such as a callback's function.
    """
    wider = {prefix.strip() for prefix in os.environ.get(VARIABLE, "").split(",") if prefix.strip()}
    _allowed_once.update(wider)
    no_longer = sorted(_allowed_once - wider)
    set_parsing_settings(import_path_denylist=["*", *no_longer], import_path_allowlist=[*ALLOWED, *sorted(wider)])
