"""The errors a person can act on."""


class InputError(ValueError):
    """Bad input from outside: the message names the file, the field, the value and the fix.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """

    status = 2


class TrainingFault(InputError):  # noqa: N818  a fault is what the table in docs/reliability.md calls it
    """What ended a training from outside its code: memory, disk, workers, numbers; the message tells how to go on.

    The command line exits with status 1: the same command may succeed when repeated.
    """

    status = 1
