"""Weights & Biases as an extra: it may be absent, offline or die, and training goes on."""

import logging
import netrc
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mambaseg.callbacks.provenance import code_version
from mambaseg.io.atomic import write_text

log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
RUN_ID_FILE = "wandb_run_id"
INIT_TIMEOUT_S = 30.0
"""How long an unreachable server may hold up the start of a training."""


class WandbTracker(WandbLogger):
    """Lightning's W&B logger, offline unless a login is there, and never in the way.

    It never asks for a login. Only rank 0 starts a run. The run's id is kept in the run folder, so that a resumed
    training continues the same W&B run. When W&B fails, one warning is given and nothing more is sent to it; the JSONL
    record has everything.

    Args:
        project: The W&B project.
        save_dir: The run folder; W&B makes its ``wandb`` folder in it, from where ``wandb sync`` uploads.
        name: Name of the run; W&B invents one when not given.
        mode: ``auto`` follows ``WANDB_MODE``, else is ``online`` where a login is found and ``offline`` elsewhere.
        entity: The W&B team or user.
        group: Runs of a group are shown together, such as the seeds of one experiment.
        tags: Labels to filter by.
    """

    def __init__(
        self,
        project: str = "mambaseg",
        save_dir: str | Path = ".",
        name: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        self.failed = False
        self.mode = resolve_mode(mode)
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        run_id = _kept_run_id(Path(save_dir))
        super().__init__(
            project=project,
            save_dir=save_dir,
            name=name,
            id=run_id,
            mode=self.mode,
            entity=entity,
            group=group,
            tags=tags,
        )

        # Lightning passes it on, W&B warns that it has no effect.
        del self._wandb_init["anonymous"]

    @property
    def experiment(self) -> Any:
        """The W&B run; on other ranks, and once W&B has failed, a stand-in that ignores everything."""
        if self.failed or getattr(rank_zero_only, "rank", 0) != 0:
            return _DummyExperiment()
        if self._experiment is None:
            self._attempt("start", self._start)
        return _DummyExperiment() if self._experiment is None else self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Store the settings in the run's config.

        Args:
            params: Settings by name, possibly nested.
        """
        self._send("store the config", super().log_hyperparams, params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one row.

        Args:
            metrics: Numbers, or W&B media, by name.
            step: The training step they belong to.
        """
        self._send("log", super().log_metrics, metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do what Lightning does at the end of a run.

        Args:
            status: ``success`` or how the run ended instead.
        """
        self._send("finish", super().finalize, status)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Do nothing: checkpoints stay in the run folder."""

    def _start(self) -> None:
        from wandb.errors import CommError

        try:
            self._start_run()
        except CommError as error:
            if self._wandb_init["mode"] != "online":
                raise
            log.warning("W&B cannot be reached (%s). It records offline; upload later with `wandb sync`.", error)
            self._wandb_init["mode"] = self.mode = "offline"
            self._start_run()

    def _start_run(self) -> None:
        import wandb

        silent = self.mode != "online" or bool(os.environ.get("WANDB_SILENT"))
        # With its capture of the console on, a dead service would add an error to every line that is printed.
        self._wandb_init["settings"] = wandb.Settings(silent=silent, init_timeout=INIT_TIMEOUT_S, console="off")
        run = super().experiment
        run.config.update({"code": code_version().as_dict()}, allow_val_change=True)
        if self.mode != "disabled":
            write_text(Path(str(self._save_dir)) / RUN_ID_FILE, f"{run.id}\n")

    def _send(self, purpose: str, action: Callable[..., Any], *arguments: Any) -> None:
        if not isinstance(self.experiment, _DummyExperiment):
            self._attempt(purpose, action, *arguments)

    def _attempt(self, purpose: str, action: Callable[..., Any], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001  W&B, its service and the network fail in many ways; none may end a training
            self.failed = True
            self._experiment = None
            log.warning(
                "W&B could not %s (%s: %s). Training goes on without it; metrics.jsonl has every row. "
                "Set mode: disabled, or WANDB_MODE=disabled, to do without W&B.",
                purpose,
                type(error).__name__,
                error,
            )


def resolve_mode(wanted: Literal["auto", "online", "offline", "disabled"]) -> Mode:
    """Return the mode to run W&B in: what is wanted, but never online without a login, since W&B would ask for one.

    Args:
        wanted: As in the configuration; ``auto`` gives way to ``WANDB_MODE``.
    """
    modes: dict[str, Mode] = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    asked = os.environ.get("WANDB_MODE", "online") if wanted == "auto" else wanted
    mode = modes.get(asked, "offline")
    if mode == "online" and not has_login():
        if wanted == "online":
            log.warning("W&B is asked to be online but there is no login; it records offline. Run `wandb login` first.")
        return "offline"
    return mode


def has_login() -> bool:
    """Tell whether W&B would find a key: in ``WANDB_API_KEY`` or in the netrc file where ``wandb login`` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    given = os.environ.get("NETRC")
    candidates = [Path(given)] if given else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    return any(_has_entry(path, host) for path in candidates if path.is_file())


def _has_entry(path: Path, host: str) -> bool:
    try:
        return host in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError) as error:
        log.warning("%s cannot be read (%s); W&B is taken to have no login there.", path, error)
        return False


def _kept_run_id(folder: Path) -> str | None:
    path = folder / RUN_ID_FILE
    return path.read_text(encoding="utf-8").strip() or None if path.exists() else None
