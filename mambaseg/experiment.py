"""Experiment files: YAML that builds on other YAML, merged before the command line checks it."""

import copy
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mambaseg.errors import InputError
from mambaseg.io.atomic import write_text
from mambaseg.registry import unknown_name

BASES = "bases"
FOLDER_VARIABLE = "MAMBASEG_EXPERIMENTS"

Config = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that ``1e-4`` is a number as everyone expects, not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def experiment_folder() -> Path:
    """Return the folder that experiments are found in by name: ``$MAMBASEG_EXPERIMENTS`` or ``./experiments``."""
    return Path(os.environ.get(FOLDER_VARIABLE, "experiments"))


def find_experiment(name: str) -> Path:
    """Return the file of an experiment, given its name or a path.

    Raises:
        InputError: There is none; the message lists those that exist.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path
    folder = experiment_folder()
    candidate = folder / f"{name}.yaml"
    if candidate.is_file():
        return candidate
    known = [p.stem for p in sorted(folder.glob("*.yaml"))]
    raise InputError(f"{unknown_name('experiment', name, known)} (looked in {folder.resolve()})")


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read an experiment with everything it builds on.

    ``bases: [_base/acdc, _base/semi]`` names files beside it (or, failing that, in the experiments folder), merged in
    order; later values win, mappings merge key by key, lists and scalars are replaced.

    Args:
        path: The YAML file.
        overrides: ``dotted.key=value`` settings that win over the file; values are YAML.

    Returns:
        One merged mapping without ``bases``.

    Raises:
        InputError: A file is missing, is not valid YAML, does not hold a mapping, or builds on itself.
    """
    config = _load(path, seen=())
    for override in overrides:
        config = merge(config, _parse_override(override))
    return config


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Config:
    """Return ``base`` with ``over`` laid over it, key by key; neither is changed."""
    merged: Config = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def without_weights(config: Mapping[str, Any]) -> Config:
    """Return a run's configuration without the files that its students' weights came from.

    A run that has a checkpoint needs them no more, and they may be gone.
    """
    changed: Config = copy.deepcopy(dict(config))
    for student in students_of(changed).values():
        if isinstance(student, dict) and isinstance(student.get("options"), dict):
            student["options"].pop("weights", None)
    return changed


def students_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``students`` of an experiment's method, a part of ``config``; empty where there are none."""
    section: Any = config
    for key in ("model", "init_args", "students"):
        section = section.get(key) if isinstance(section, Mapping) else None
    return section if isinstance(section, dict) else {}


def _load(path: Path, seen: tuple[Path, ...]) -> Config:
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise InputError(f"{path}: field 'bases' goes in a circle ({chain}). Remove one of the links.")
    own = read_mapping(path)
    bases = own.pop(BASES, [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: field 'bases' is {bases!r}; it must be a list of names such as [_base/acdc].")
    merged: Config = {}
    for base in bases:
        merged = merge(merged, _load(_find_base(path, base), (*seen, path)))
    return merge(merged, own)


def _find_base(path: Path, base: str) -> Path:
    places = [folder / f"{base}.yaml" for folder in (path.parent, experiment_folder())]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"{path}: field 'bases' names {base!r}, but there is no {' or '.join(map(str, places))}.")


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says; numbers such as ``1e-4`` are floats."""
    return yaml.load(text, Loader=_Loader)


def read_mapping(path: Path) -> Config:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: It cannot be read, is not YAML, or holds something else.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds {type(content).__name__}; an experiment is a mapping with model, data, trainer."
        )
    return content


def _parse_override(override: str) -> Config:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"--set {override!r}: write it as dotted.key=value, for example trainer.max_steps=100.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: Config = value
    return nested


def dump_config(config: Config, path: Path) -> None:
    """Write a configuration as YAML, atomically, in the order of its keys."""
    write_text(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
