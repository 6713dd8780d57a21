import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edlm_jax.data.packing import Grid, align_document, pack_documents, padding_row, without_filler
from tests.seeds import fresh_rng

END = 1


def make_document(prompt_length, response_length, first):
    """Tokens that no other document has, so that a packed one can be told apart."""
    tokens_L = np.arange(first, first + prompt_length + response_length, dtype=np.int32)
    return tokens_L, (np.arange(len(tokens_L)) >= prompt_length).astype(np.int32)


def make_documents(lengths):
    firsts = np.cumsum([10] + [p + r for p, r in lengths])
    return [make_document(p, r, int(first)) for (p, r), first in zip(lengths, firsts, strict=False)]


def pack(documents, grid, **kwargs):
    pieces = [piece for document in documents for piece in align_document(document, grid)]
    if not pieces:
        return []
    return list(pack_documents(grain.MapDataset.source(pieces).to_iter_dataset(), grid, seed=0, **kwargs))


def unpack(row):
    """The documents of a row as (first column, tokens, loss mask, positions)."""
    for segment in range(1, row["segment_ids"].max() + 1):
        columns = np.flatnonzero(row["segment_ids"] == segment)
        np.testing.assert_array_equal(columns, np.arange(columns[0], columns[0] + len(columns)))
        yield columns[0], row["tokens"][columns], row["loss_mask"][columns], row["positions"][columns]


def expected_pieces(tokens_L, loss_mask_L, grid):
    """What should be found of a document, said without the code under test: (tokens, loss mask) of each piece."""
    prompt_length = int(np.argmax(loss_mask_L))
    room = grid.length - (-prompt_length % grid.block_length if grid.counted_from == "response" else 0)
    if prompt_length:
        return [(tokens_L[:room], loss_mask_L[:room])] if prompt_length < room else []
    return [(tokens_L[i : i + room], loss_mask_L[i : i + room]) for i in range(0, len(tokens_L), room)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40) | st.just(0), st.integers(1, 90)), max_size=40),
    st.sampled_from([(24, 1), (24, 3), (32, 8), (64, 64), (35, 5)]),
    st.sampled_from(["response", "position"]),
)
def test_every_document_is_recovered_from_the_packed_rows(lengths, shape, counted_from):
    grid = Grid(*shape, END, counted_from)
    documents = make_documents(lengths)
    rows = pack(documents, grid)
    found = {}
    for row in rows:
        padding = row["segment_ids"] == 0
        assert set(row) == {"tokens", "segment_ids", "positions", "loss_mask"}
        assert all(value.shape == (grid.length,) and value.dtype == np.int32 for value in row.values())
        assert (row["tokens"][padding] == END).all() and (row["positions"][padding] == 0).all()
        assert (row["loss_mask"][padding] == 0).all()
        for column, tokens, loss_mask, positions in unpack(row):
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            first = column + (int(np.argmax(loss_mask > 0)) if counted_from == "response" else 0)
            assert first % grid.block_length == 0, "what blocks are counted from does not start on a block boundary"
            assert (column + len(tokens)) % grid.block_length == 0, "the last block is not filled"
            assert int(tokens[0]) not in found
            found[int(tokens[0])] = tokens, loss_mask
    expected = [piece for document in documents for piece in expected_pieces(*document, grid)]
    assert len(found) == len(expected)
    for tokens, loss_mask in expected:
        found_tokens, found_loss_mask = found[int(tokens[0])]
        filled = len(found_tokens) - len(tokens)
        assert 0 <= filled < grid.block_length
        np.testing.assert_array_equal(found_tokens, np.append(tokens, [END] * filled))
        np.testing.assert_array_equal(found_loss_mask, np.append(loss_mask, [2] * filled))


def test_the_drawn_example():
    grid = Grid(24, 4, END)
    row = pack([make_document(3, 4, 10), make_document(0, 6, 20), make_document(4, 4, 30)], grid)[0]
    expected = dict(
        tokens=[1, *range(10, 17), *range(20, 26), 1, 1, *range(30, 38)],
        segment_ids=[0] + [1] * 7 + [2] * 8 + [3] * 8,
        positions=[0, *range(7), *range(8), *range(8)],
        loss_mask=[0] * 4 + [1] * 10 + [2] * 2 + [0] * 4 + [1] * 4,
    )
    assert {name: value.tolist() for name, value in row.items()} == expected
    expected["loss_mask"][14:16] = [0, 0]
    assert {name: value.tolist() for name, value in without_filler(row).items()} == expected


def test_blocks_from_position_0_need_no_padding_before_a_prompt():
    row = pack([make_document(3, 4, 10), make_document(5, 6, 20)], Grid(24, 4, END, "position"))[0]
    expected = dict(
        tokens=[*range(10, 17), 1, *range(20, 31), 1, 1, 1, 1, 1],
        segment_ids=[1] * 8 + [2] * 12 + [0] * 4,
        positions=[*range(8), *range(12), 0, 0, 0, 0],
        loss_mask=[0] * 3 + [1] * 4 + [2] + [0] * 5 + [1] * 6 + [2] + [0] * 4,
    )
    assert {name: value.tolist() for name, value in row.items()} == expected


def test_no_alignment_at_block_length_one():
    row = pack([make_document(3, 2, 10), make_document(0, 4, 20)], Grid(12, 1, END))[0]
    assert row["segment_ids"].tolist() == [1] * 5 + [2] * 4 + [0] * 3


def test_a_prompt_that_leaves_no_room_is_dropped():
    grid = Grid(16, 4, END)
    assert align_document(make_document(15, 9, 10), grid) == []
    assert align_document(make_document(16, 9, 10), grid) == []
    assert align_document((np.arange(5, dtype=np.int32), np.zeros(5, np.int32)), grid) == []
    (piece_L3,) = align_document(make_document(11, 9, 10), grid)
    assert piece_L3.shape == (16, 3) and piece_L3[:, 1].sum() == 4


def test_given_tail_is_filled_without_loss():
    tokens_L, loss_mask_L = np.arange(10, 15, dtype=np.int32), np.array([1, 1, 1, 0, 0], np.int32)
    (piece_L3,) = align_document((tokens_L, loss_mask_L), Grid(8, 4, END))
    assert piece_L3[:, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_no_piece_of_a_long_document_is_without_loss():
    """A pre-tokenised one may end in many given tokens."""
    pieces = align_document((np.arange(20, dtype=np.int32), (np.arange(20) < 7).astype(np.int32)), Grid(8, 4, END))
    assert [piece_L3[:, 0].tolist() for piece_L3 in pieces] == [list(range(8))]


def test_one_document_per_row():
    rows = pack(make_documents([(2, 3), (0, 5), (1, 1)]), Grid(16, 4, END), max_per_row=1)
    assert [row["segment_ids"].max() for row in rows] == [1, 1, 1]


def test_short_documents_fill_the_rows():
    """What is lost is the left padding of prompts, 3.5 positions of about 48 here, and the ends of rows."""
    random = fresh_rng()
    grid = Grid(256, 8, END)
    lengths = [(int(random.integers(5, 40)), int(random.integers(3, 40))) for _ in range(3000)]
    rows = pack(make_documents(lengths), grid)[:256]  # the last window is not full
    efficiency = np.mean([row["segment_ids"] > 0 for row in rows])
    print(f"efficiency {efficiency:.3f}")
    assert 0.85 < efficiency < 0.99


@pytest.mark.parametrize("shape", [(16, 4), (35, 5)])
def test_padding_row_has_no_document(shape):
    row = padding_row(Grid(*shape, END))
    assert all(value.shape == (shape[0],) and value.dtype == np.int32 for value in row.values())
    assert (row["tokens"] == END).all() and not any(row[n].any() for n in ("segment_ids", "positions", "loss_mask"))
