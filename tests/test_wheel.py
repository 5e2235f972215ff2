"""What a user gets from a wheel: every package behind the symlinks, the data files, and nothing else."""

import shutil
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def names(tmp_path_factory, repository):
    copy = tmp_path_factory.mktemp("source") / "mambaseg"
    keep = ("mambaseg", "kernels", "datamodules", "pyproject.toml", "README.md", "LICENSE")
    for name in keep:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(copy / "dist"),
        str(copy),
    ]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_is_inside(names, repository):
    expected = {
        f"mambaseg/{path.relative_to(repository / 'mambaseg')}"
        for folder in ("mambaseg", "mambaseg/kernels", "mambaseg/datamodules")
        for path in (repository / folder).rglob("*.py")
    }
    assert len(expected) > 90
    assert expected <= names


def test_splits_licence_and_typing_marker_are_inside(names):
    assert "mambaseg/datamodules/splits/acdc_70_10_20.json" in names
    assert "mambaseg/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_nothing_else_is_inside(names):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mambaseg"}
