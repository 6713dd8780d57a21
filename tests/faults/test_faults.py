"""The list of faults stays alive: each can be planted, and the tests of `make check` are there."""

import collections
import re

import pytest

from tests.faults.faults import FAULTS
from tests.faults.run import CHECK, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_in_one_place(fault):
    text = (ROOT / fault.file).read_text()
    assert text.count(fault.old) == 1, f"mend tests/faults/faults.py: {fault.file} holds {fault.old!r} not once"
    assert fault.new != fault.old
    compile(text.replace(fault.old, fault.new), fault.file, "exec")


def test_names_are_faults_own_and_every_room_of_the_method_has_some():
    names = collections.Counter(fault.name for fault in FAULTS)
    assert max(names.values()) == 1
    rooms = "attention diffusion models decoding data training pretrained parallel commands".split()
    assert {fault.room for fault in FAULTS} == set(rooms)


def test_the_tests_of_make_check_are_there():
    for node in CHECK.read_text().splitlines():
        file, _, name = node.partition("::")
        text = (ROOT / file).read_text()
        name = name.partition("[")[0]
        assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), f"tests/check.txt: {node} is gone"
