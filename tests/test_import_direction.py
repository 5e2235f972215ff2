"""Imports run one way: kernels <- networks <- methods <- cli, and data knows neither networks nor methods."""

import ast
from pathlib import Path

import pytest

FORBIDDEN = {
    "kernels": ("mambaseg.networks", "mambaseg.methods", "mambaseg.datamodules", "mambaseg.callbacks", "lightning"),
    "datamodules": ("mambaseg.networks", "mambaseg.methods", "mambaseg.callbacks", "mambaseg.kernels"),
    "mambaseg/losses": ("mambaseg.networks", "mambaseg.methods", "mambaseg.datamodules", "lightning"),
    "mambaseg/networks": ("mambaseg.methods", "mambaseg.datamodules", "mambaseg.callbacks", "lightning"),
    "mambaseg/metrics": ("mambaseg.networks", "mambaseg.methods", "lightning"),
    "mambaseg/methods": ("mambaseg.callbacks", "mambaseg.commands", "mambaseg.cli", "mambaseg.lightning_cli"),
}
EVERYWHERE = ("pytorch_lightning", "kernels", "datamodules")


def imported(path: Path) -> set[str]:
    """All modules that a file names in import statements, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_import_against_the_direction(repository, folder):
    files = sorted((repository / folder).rglob("*.py"))
    assert files
    wrong = {(f.name, name) for f in files for name in imported(f) if within(name, FORBIDDEN[folder])}
    assert not wrong


def test_nobody_imports_what_is_banned(repository):
    files = [f for folder in ("mambaseg", "tests", "benchmarks") for f in (repository / folder).rglob("*.py")]
    assert len(files) > 100
    assert not {(f.name, name) for f in files for name in imported(f) if within(name, EVERYWHERE)}


def test_kernels_and_networks_import_without_triton_and_lightning(repository):
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['triton'] = None; sys.modules['lightning'] = None\n"
        "import mambaseg.networks as n; print(*n.list_networks())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    assert {"unet", "mamba_unet"} <= set(done.stdout.split())
