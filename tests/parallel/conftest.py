"""Runs of several processes train what single ones do."""

from tests.training.conftest import checkpoint, corpus  # noqa: F401 (fixtures)
