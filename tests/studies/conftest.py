"""The config that the commands' tests convert with is small enough for a study, too."""

from tests.commands.conftest import one_device, tiny_config  # noqa: F401
