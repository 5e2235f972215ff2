"""What is wrong with a configuration, in one line: the file, the field, its value, and what is allowed there.

jsonargparse knows all of it and says it in an indented tree of two thousand characters, in which every level repeats
the part of the configuration under it. The deepest line of the tree is the cause; the lines above it are the way there.
"""

import difflib
import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from jsonargparse import ArgumentParser

from mambaseg.allowed_code import ALLOWED
from mambaseg.experiment import Config, merge
from mambaseg.tracking import TrackingConfig

KEY = re.compile(r'Parser key "(.+)":')
CLASS = re.compile(r"Problem with given class_path '(.+)':")
DENIED = re.compile(r"(Importing '.*?' is not allowed).*import_path_allowlist", re.DOTALL)
UNKNOWN = re.compile(r"(?:Group '(.+)' does not accept o|O)ption '(.+?)'|unrecognized arguments: --([\w.]+)")
NO_CLASS = re.compile(r"module '(.+)' has no attribute '(.+)'")
MISSING = re.compile(r"the following arguments are required: (.+)")
EXPECTED = re.compile(r"(?:Expected an? |Not a valid subclass of )(.+?)(?:\. Got value: (.*))?")
AROUND = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Subclass types expect", "usage:", "error:")
SECTIONS: dict[str, type] = {"trainer": L.Trainer, "tracking": TrackingConfig}
"""Sections whose class is fixed; those of ``model`` and ``data`` stand in the configuration."""
ROOT = ("seed_everything", "trainer", "model", "data", "tracking")
PLAIN = {
    "<class 'float'>": "a number",
    "<class 'int'>": "a whole number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "a text",
    "<class 'list'>": "a list",
    "<class 'tuple'>": "a list",
    "<class 'dict'>": "a mapping",
    "<class 'NoneType'>": "null",
}
LONGEST_LIST = 90
"""Characters of a list of names; more are not read."""


@dataclass(frozen=True)
class Cause:
    """The deepest line of jsonargparse's message.

    Attributes:
        keys: Names of the fields on the way, outermost first; levels that the parser does not name are missing.
        owner: Path of the innermost class whose options are meant; empty at the top.
        texts: What is said there; several where alternatives were tried.
    """

    keys: tuple[str, ...]
    owner: str
    texts: tuple[str, ...]


def explain(message: str, path: Path, config: Mapping[str, Any]) -> str:
    """Shorten jsonargparse's message to one line that names the file, the field, the value and what is allowed.

    Args:
        message: As it was raised.
        path: The experiment's file.
        config: The merged experiment.
    """
    denied = DENIED.search(message)
    if denied:
        advice = "If you trust this one, add --allow-code PREFIX, a package's name."
        return f"{path}: {denied[1]}: a configuration may name classes of {', '.join(ALLOWED)} only. {advice}"
    cause = deepest(message)
    for pattern, tell in ((UNKNOWN, _unknown_option), (NO_CLASS, _no_class), (MISSING, _missing)):
        match = pattern.match(cause.texts[0])
        if match:
            return f"{path}: {tell(match, cause, config)}"
    expected = [match for text in cause.texts if (match := EXPECTED.fullmatch(text))]
    if expected and cause.keys:
        return f"{path}: {_wrong_value(expected, cause, config)}"
    field = f"{'.'.join(cause.keys)}: " if cause.keys else ""
    return f"{path}: {field}{' '.join(cause.texts)}"


def unknown_choice(field: str, value: str, known: Collection[str]) -> str:
    """Compose the line on a field whose value is none of the names that exist.

    Args:
        field: The whole field.
        value: As given.
        known: The names.
    """
    return f"{field} is {_short(value)}, which does not exist.{_did_you_mean(value, known)}"


def with_arguments(config: Mapping[str, Any], arguments: Sequence[str]) -> Config:
    """Return an experiment with what the command line says in place of the file: its fields as texts, for messages.

    Args:
        config: The merged experiment.
        arguments: ``--dotted.key=value``, or key and value as two words; others are passed over.
    """
    words = iter(arguments)
    for word in words:
        if word.startswith("--"):
            key, equals, text = word.removeprefix("--").partition("=")
            value: Any = text if equals else next(words, None)
            for part in reversed(key.split(".")):
                value = {part: value}
            config = merge(config, value)
    return dict(config)


def deepest(message: str) -> Cause:
    """Return the innermost cause that a message of jsonargparse tells."""
    lines = [(len(line) - len(line.lstrip()), line.strip().removeprefix("- ")) for line in message.splitlines()]
    lines = [(indent, text) for indent, text in lines if text and not text.startswith(AROUND)] or [(0, message)]
    causes = [indent for indent, text in lines if _is_cause(text)] or [indent for indent, _ in lines]
    depth = max(causes)
    place = next(i for i, (indent, text) in enumerate(lines) if indent == depth and (_is_cause(text) or not indent))
    way = list(_ancestors(lines, place))
    texts = [text for indent, text in lines[place:] if indent == depth]
    owners = [match[1] for text in way if (match := CLASS.fullmatch(text))]
    keys = [part for text in way if (match := KEY.fullmatch(text)) for part in match[1].split(".")]
    return Cause(tuple(keys), owners[-1] if owners else "", tuple(dict.fromkeys(texts)))


def _is_cause(text: str) -> bool:
    return any(pattern.match(text) for pattern in (UNKNOWN, NO_CLASS, MISSING, EXPECTED))


def _ancestors(lines: Sequence[tuple[int, str]], place: int) -> Iterator[str]:
    """Yield the lines under which a line is indented, outermost first."""
    above: list[str] = []
    indent = lines[place][0]
    for other, text in reversed(lines[:place]):
        if other < indent:
            above.append(text)
            indent = other
    yield from reversed(above)


def _unknown_option(match: re.Match[str], cause: Cause, config: Mapping[str, Any]) -> str:
    group, option = match[1], match[2] or match[3]
    keys = [*cause.keys, *([group] if group else []), *option.split(".")]
    given = locate(config, keys)
    field = ".".join(given or keys)
    *_, wrong = keys[: len(keys) - option.count(".")]
    if cause.owner:
        names: Collection[str] = accepted(_import(cause.owner))
    elif keys[0] in SECTIONS:
        wrong, names = keys[1], accepted(SECTIONS[keys[0]])
    else:
        names = ROOT
        for section in ("model", "data"):
            chosen = config.get(section)
            if isinstance(chosen, Mapping) and option.partition(".")[0] in accepted(_import(chosen["class_path"])):
                return f"there is no field {field} at the top; write {section}.init_args.{field}."
    value = "" if given is None else f" (given {_short(_value_at(config, given))})"
    return f"there is no field {field}{value}.{_did_you_mean(wrong, names)}"


def _no_class(match: re.Match[str], cause: Cause, config: Mapping[str, Any]) -> str:
    keys = locate(config, [*cause.keys, "class_path"]) or [*cause.keys, "class_path"]
    module = importlib.import_module(match[1])
    classes = [name for name, thing in vars(module).items() if isinstance(thing, type)]
    return f"{'.'.join(keys)} is {f'{match[1]}.{match[2]}'!r}, which does not exist.{_did_you_mean(match[2], classes)}"


def _missing(match: re.Match[str], cause: Cause, config: Mapping[str, Any]) -> str:
    keys = locate(config, cause.keys) or list(cause.keys)
    node = _value_at(config, keys)
    if isinstance(node, Mapping) and "class_path" in node:
        return f"{'.'.join([*keys, 'init_args', match[1]])} is missing; give it a value."
    entries = node.items() if isinstance(node, Mapping) else ()
    lacking = [name for name, entry in entries if isinstance(entry, Mapping) and entry.get(match[1]) is None]
    # Entries of a mapping, such as the students, are checked one by one without their names.
    keys += lacking[:1] if all(isinstance(entry, Mapping) for _, entry in entries) else []
    return f"{'.'.join([*keys, match[1]])} is missing; give it a value."


def _wrong_value(expected: Sequence[re.Match[str]], cause: Cause, config: Mapping[str, Any]) -> str:
    got = next((match[2] for match in expected if match[2] is not None), None)
    keys = locate(config, cause.keys, None if got is None else lambda node: str(node) == got)
    value = got if keys is None else _value_at(config, keys)
    is_item = isinstance(value, list) and got not in (None, str(value))
    choices = [choice for match in expected for choice in _choices(match[1])]
    others = [_plain(match[1]) for match in expected if not _choices(match[1])]
    others = [other for other in others if other != "null"] or ([] if choices else others)
    allowed = [*([f"one of {_listed(choices)}"] if choices else []), *others]
    hint = _close(str(got if is_item else value), choices)
    said = f"has {_short(got)} in it; each" if is_item else f"is {_short(value)}; it"
    return f"{'.'.join(keys or cause.keys)} {said} must be {' or '.join(allowed)}.{hint}"


def locate(node: Any, keys: Sequence[str], fits: Callable[[Any], bool] | None = None) -> list[str] | None:
    """Return the full way to a field, with the levels that jsonargparse leaves out; None where there is none.

    Those are ``init_args``, and the names of entries of a mapping, such as the students.

    Args:
        node: The configuration, or a part of it.
        keys: The levels that are known, outermost first.
        fits: Tells whether this is the field, or an item of it; any is when not given.
    """
    if not keys:
        if fits is None or fits(node) or (isinstance(node, list) and any(map(fits, node))):
            return []
    elif isinstance(node, Mapping) and keys[0] in node:
        rest = locate(node[keys[0]], keys[1:], fits)
        if rest is not None:
            return [keys[0], *rest]
    if isinstance(node, list):
        hidden: list[tuple[str, Any]] = [(str(place), item) for place, item in enumerate(node)]
    elif isinstance(node, Mapping):
        hidden = [("init_args", node["init_args"])] if "init_args" in node else list(node.items())
    else:
        return None
    for key, part in hidden:
        rest = locate(part, keys, fits)
        if rest is not None:
            return [str(key), *rest]
    return None


def accepted(owner: type) -> list[str]:
    """Return the names of a class's options, those that it hands on to its bases included."""
    names = ArgumentParser().add_class_arguments(owner)
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _import(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _value_at(node: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node


def _choices(kind: str) -> list[str]:
    """Return the values of a ``typing.Literal``; none for another type."""
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    return literal[1].split(", ") if literal else []


def _plain(kind: str) -> str:
    number = re.fullmatch(r"tuple with (\d+) elements", kind)
    if number:
        return f"a list of {number[1]} values"
    return PLAIN.get(kind, f"a mapping with the options of {kind}" if kind.isidentifier() else f"a {kind}")


def _did_you_mean(wrong: str, names: Collection[str]) -> str:
    return _close(wrong, [repr(name) for name in names]) or f" Known: {_listed(names)}."


def _close(wrong: str, names: Collection[str]) -> str:
    bare = {name.strip("'"): name for name in names}
    close = difflib.get_close_matches(wrong, bare, n=2)
    return f" Did you mean {' or '.join(bare[name] for name in close)}?" if close else ""


def _listed(names: Collection[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= LONGEST_LIST else text[:LONGEST_LIST].rpartition(",")[0] + ", ..."


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
