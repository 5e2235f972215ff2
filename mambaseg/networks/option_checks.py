"""What several networks demand of their options."""

from mambaseg.errors import InputError


def check_dims(network: str, dims: int) -> None:
    """Refuse spatial dimensions other than 2 and 3.

    Args:
        network: What the message begins with.
        dims: The option.

    Raises:
        InputError: It is neither.
    """
    if dims not in (2, 3):
        raise InputError(f"{network}: dims is {dims}; it must be 2 or 3.")


def check_counts(network: str, **counts: int) -> None:
    """Refuse counts below 1.

    Args:
        network: What the message begins with.
        **counts: The options by name.

    Raises:
        InputError: One is below 1; the message names it.
    """
    for field, value in counts.items():
        if value < 1:
            raise InputError(f"{network}: {field} is {value}; it must be at least 1.")
