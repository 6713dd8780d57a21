"""What commands turn into one line and an exit code of its own."""


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do about it. Exit code 2."""


class StoppedError(Exception):
    """SIGTERM stopped a run after a last checkpoint: the same command continues it. Exit code 143, as for any job that
    a scheduler ended, so that it is started again."""
