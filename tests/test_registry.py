import pytest

from mambaseg.errors import InputError
from mambaseg.registry import Registry


def test_names_are_found_and_sorted():
    registry = Registry[int]("number")
    registry.register("two")(2)
    registry.register("one")(1)
    assert (registry.get("two"), registry.names()) == (2, ["one", "two"])


def test_an_unknown_name_gives_close_matches():
    registry = Registry[int]("number")
    registry.register("seven")(7)
    with pytest.raises(InputError, match=r"There is no number 'sevn'\. Did you mean 'seven'\? Known: seven\."):
        registry.get("sevn")


def test_a_name_cannot_be_taken_twice():
    registry = Registry[int]("number")
    registry.register("one")(1)
    with pytest.raises(ValueError, match="twice"):
        registry.register("one")(11)
