"""The one error that is a person's to mend: commands print it as one line and exit with code 2."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do about it."""
