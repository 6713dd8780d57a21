"""What commands turn into one line and an exit code of its own."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do about it. Exit code 2."""


@contextlib.contextmanager
def refusing(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Makes an InputError "what: reason" of these errors, which a library raises within."""
    try:
        yield
    except InputError:
        raise
    except errors as error:
        raise InputError(f"{what}: {' '.join(str(error).split())}") from None


class PartlyRefusedError(InputError):
    """Part of the input was bad, the rest is done: `result` is printed as any other, then the reason. Exit code 2."""

    def __init__(self, reason: str, result: dict[str, Any]):
        super().__init__(reason)
        self.result = result


class StoppedError(Exception):
    """SIGTERM stopped a run after a last checkpoint: the same command continues it. Exit code 143, as for any job that
    a scheduler ended, so that it is started again."""


def check_range(name: str, value: float, least: float = 1, most: float = math.inf) -> None:
    """Raises InputError for a number outside [least, most]."""
    if not least <= value <= most:
        one_sided: dict[float, str] = {0: "not be negative", 1: "be positive"}
        wanted = one_sided.get(least, f"be at least {least:g}") if most == math.inf else f"lie in [{least:g}, {most:g}]"
        raise InputError(f"{name} must {wanted}, not {value}")
