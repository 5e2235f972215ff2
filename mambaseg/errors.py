"""The error a person can act on."""


class InputError(ValueError):
    """Bad input from outside: the message names the file, the field, the value and the fix.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
