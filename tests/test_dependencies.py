"""The lock: exact, nothing in it that nobody asked for, nothing known to be harmful.

CI has no vulnerability service; where there is one, `pip-audit -r constraints.txt` asks it.
"""

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

BANNED = {
    "albumentationsx": "AGPL, and takes the import name of albumentations",
    "mamba-ssm": "must be compiled at install",
    "causal-conv1d": "must be compiled at install",
    "medpy": "GPL",
    "kernels": "another project's package under a name of ours",
}
HARMFUL = {
    "lightning": {"2.6.2": "GHSA-w37p-236h-pfx3, malware", "2.6.3": "GHSA-w37p-236h-pfx3, malware"},
    "pytorch-lightning": {"2.6.2": "GHSA-w37p-236h-pfx3, malware", "2.6.3": "GHSA-w37p-236h-pfx3, malware"},
}
REPAIRED_IN = {
    "torch": ("2.6.0", "CVE-2025-32434, code execution from a checkpoint read with weights_only"),
    "pillow": ("10.3.0", "CVE-2024-28219, buffer overflow"),
    "jinja2": ("3.1.6", "CVE-2025-27516, way out of the sandbox"),
    "fonttools": ("4.60.2", "CVE-2025-66034, writing outside the folder"),
    "protobuf": ("6.31.1", "CVE-2025-4565, endless recursion"),
    "h11": ("0.16.0", "CVE-2025-43859, request smuggling"),
    "requests": ("2.32.4", "CVE-2024-47081, leak of credentials"),
    "urllib3": ("2.6.0", "CVE-2025-66418, decompression bomb"),
    "idna": ("3.7", "CVE-2024-3651, endless work"),
    "tqdm": ("4.66.3", "CVE-2024-34062, code from arguments"),
}
OF_THE_PLATFORM = ("nvidia-", "cuda-", "triton", "setuptools", "mambaseg")
"""What a CUDA build of torch pins itself, and what the virtual environment brings."""


@pytest.fixture(scope="module")
def pins(repository):
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", line)]
    assert not wrong, f"every line pins one version: {wrong}"
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def asked_for(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], project["optional-dependencies"]["dev"]]
    return [Requirement(text) for group in groups for text in group]


def needed(requirements):
    """Names of everything that these requirements bring, as far as it is installed."""
    found, todo = set(), [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements]
    while todo:
        name, extras = entry = todo.pop()
        if entry in found:
            continue
        found.add(entry)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found}


def test_what_we_ask_for_is_pinned_to_what_we_accept(pins, asked_for):
    wrong = [r for r in asked_for if not r.specifier.contains(pins[canonicalize_name(r.name)], prereleases=True)]
    assert not wrong


def test_the_lock_holds_what_is_needed_and_nothing_else(pins, asked_for):
    names = needed(asked_for)
    assert set(pins) - names == set(), "nobody needs these: remove them from the lock"
    unpinned = {name for name in names - set(pins) if not name.startswith(OF_THE_PLATFORM)}
    assert {name for name in unpinned if _is_installed(name)} == set(), "add these to the lock"


def test_nothing_banned_or_known_to_be_harmful(pins, asked_for):
    assert {name: reason for name, reason in BANNED.items() if name in pins} == {}
    for name, versions in HARMFUL.items():
        assert str(pins[name]) not in versions
    old = {name: reason for name, (first, reason) in REPAIRED_IN.items() if pins[name] < Version(first)}
    assert old == {}
    lightning = next(r for r in asked_for if r.name == "lightning")
    assert not any(lightning.specifier.contains(version) for version in HARMFUL["lightning"])


def _is_installed(name):
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
