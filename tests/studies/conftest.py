"""The config that the commands' tests convert with is small enough for a study, too."""

from tests.commands.conftest import tiny_config  # noqa: F401
