"""Which code, packages and machine made a result."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

COMMIT_VARIABLE = "MAMBASEG_COMMIT"
PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
RECORDED_PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "triton",
    "albumentations",
    "numpy",
    "scipy",
    "nibabel",
    "h5py",
    "einops",
    "safetensors",
    "jsonargparse",
    "wandb",
)


@dataclass(frozen=True)
class CodeVersion:
    """The state of the source tree.

    Attributes:
        version: Version of the mambaseg package.
        git_sha: The commit, or None outside a repository.
        git_dirty: Whether files differ from that commit, or None outside a repository.
    """

    version: str
    git_sha: str | None
    git_dirty: bool | None

    def __str__(self) -> str:
        commit = "no commit known" if self.git_sha is None else f"commit {self.git_sha}"
        return f"mambaseg {self.version}, {commit}" + (" with uncommitted changes" if self.git_dirty else "")

    @property
    def short(self) -> str:
        """Seven digits of the commit, and a plus where files differ from it."""
        return (self.git_sha or "unknown")[:7] + ("+" if self.git_dirty else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return asdict(self)


@cache
def code_version() -> CodeVersion:
    """Return the version of the code as it was when first asked for: later edits are not what runs.

    Where the code was copied without its repository, into a container say, ``$MAMBASEG_COMMIT`` names the commit.
    """
    from mambaseg.version import __version__

    # A wheel inside the virtual environment of another repository must not be given that repository's commit.
    tracked = _git("ls-files", "--error-unmatch", "version.py") is not None
    if not tracked:
        return CodeVersion(__version__, os.environ.get(COMMIT_VARIABLE) or None, None)
    sha = _git("rev-parse", "HEAD")
    changes = None if sha is None else _git("status", "--porcelain")
    return CodeVersion(__version__, sha, None if changes is None else bool(changes))


def package_versions() -> dict[str, str]:
    """Return the version of Python and of every recorded package that is installed."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None where there is no git, no repository or no such thing in it."""
    command = ["git", "-C", str(PACKAGE_FOLDER), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
