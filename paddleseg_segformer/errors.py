"""Errors that the command-line tools report in one sentence, without a traceback."""

MAX_MESSAGE = 2000  # characters


class InputError(Exception):
    """Invalid input: which file or key, what is wrong, what to do. Exit code 2.

    Its text is printable: line breaks and control characters, which file names may contain, are
    escaped as in Python. Of a long one, such as of a name of megabytes, the middle is left out.
    """

    def __str__(self):
        text = super().__str__()
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]}…{text[-MAX_MESSAGE // 4 :]}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class RunError(Exception):
    """A failure not caused by the input, such as a full disk or a lost process. Exit code 1."""


def one_line(error):
    """An error's message on one line, or the name of its type if it has no message."""
    if isinstance(error, KeyError):  # its message is only the key
        return f"{error} is missing"
    return " ".join(str(error).split()) or type(error).__name__
