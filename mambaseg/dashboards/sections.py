"""What is worth watching, in the order in which it is shown everywhere."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mambaseg.reports.curves import FOREGROUND_DICE, LOSS


@dataclass(frozen=True)
class Section:
    """Metrics that belong together.

    Attributes:
        title: What they are.
        pattern: Matches their names; its group is what to call one.
        higher_is_better: The best value so far is worth knowing.
        log_scale: Show magnitudes, of values that are all positive.
    """

    title: str
    pattern: re.Pattern[str]
    higher_is_better: bool = False
    log_scale: bool = False

    def metrics(self, logged: Iterable[str]) -> dict[str, str]:
        """Return the section's metrics among those that were logged, with what to call each."""
        matches = {name: self.pattern.fullmatch(name) for name in logged}
        return {name: match[1] or name for name, match in matches.items() if match is not None}


SECTIONS = (
    Section("Validation Dice", FOREGROUND_DICE, higher_is_better=True),
    Section("Loss", LOSS, log_scale=True),
    Section("Pseudo-label Dice", re.compile(r"pseudo/(.+)/dice"), higher_is_better=True),
    Section("Speed", re.compile(r"speed/(steps_per_s|images_per_s|data_wait)")),
    Section("Memory", re.compile(r"memory/(.+)")),
)
