"""The one error that means: the user's input is at fault."""


class InputError(Exception):
    """Bad input, told in one sentence: which file or key, what is wrong, what to do.

    The command-line tools print it without a traceback and exit with code 2.
    """
