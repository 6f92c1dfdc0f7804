"""Errors that are told in one sentence, without a traceback."""


class InputError(Exception):
    """Bad input: which file or key, what is wrong, what to do.

    The command-line tools print it and exit with code 2.
    """


class RunError(Exception):
    """A run that cannot go on though its input may be good: a full disk, a lost process.

    The command-line tools print it and exit with code 1.
    """
