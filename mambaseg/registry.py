"""Names to builders: how a new network, method or dataset is found without editing anything."""

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from mambaseg.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from public names to objects of one kind, with errors that list what exists.

    Args:
        kind: What the entries are, for messages: ``"network"``, ``"transform"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``.

        Raises:
            ValueError: The name is taken: a silent overwrite would change every experiment that uses it.
        """

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return file

    def get(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
            InputError: There is none; the message gives close matches and the whole list.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(unknown_name(self.kind, name, self._entries)) from None

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Compose the message for a name that does not exist.

    Args:
        kind: What was looked for.
        name: The name as given.
        known: The names that exist.
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"There is no {kind} {name!r}.{hint} Known: {', '.join(choices) or 'none'}."
