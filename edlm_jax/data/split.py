"""Which documents of a source that knows all of them are held out: decided by a name, whatever else there is."""

import hashlib

from edlm_jax.errors import InputError

TEST_SHARE = 16  # one in so many


def belongs_to_test(name: str) -> bool:
    """Whether the name's hash puts what it names into the test split."""
    return hashlib.blake2b(name.encode(), digest_size=4).digest()[-1] % TEST_SHARE == 0


def check_split(split: str, what: str) -> None:
    """Raises InputError for a split that there is not."""
    if split not in ("train", "test"):
        raise InputError(f"a {what} split is 'train' or 'test', not {split!r}")
