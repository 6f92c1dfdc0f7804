"""Errors that are told in one sentence, without a traceback."""


class InputError(Exception):
    """Bad input: which file or key, what is wrong, what to do.

    The command-line tools print it and exit with code 2. Line ends and control characters, which a
    name in a file may have, are told as Python's escapes.
    """

    def __str__(self):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in super().__str__())


class RunError(Exception):
    """A run that cannot go on though its input may be good: a full disk, a lost process.

    The command-line tools print it and exit with code 1.
    """


def one_line(error):
    """An error's message on one line; its type's name where it has none."""
    if isinstance(error, KeyError):  # whose message is the key alone
        return f"{error} is missing"
    return " ".join(str(error).split()) or type(error).__name__
