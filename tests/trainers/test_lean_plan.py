from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.trainers.lean_plan import even_sizes, padded, plan_window

LENGTHS = st.tuples(st.integers(1, 30), st.integers(1, 60))


@st.composite
def windows(draw):
    """Lengths and flags of one to three processes, and how many micro-batches of how many rows each has."""
    micro_batches, size, processes = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rows = st.lists(LENGTHS, min_size=micro_batches * size, max_size=micro_batches * size)
    flags = st.lists(st.booleans(), min_size=micro_batches * size, max_size=micro_batches * size)
    lengths = [draw(rows) for _ in range(processes)]
    return lengths, [draw(flags) for _ in range(processes)], micro_batches, size


def test_a_window_by_hand():
    """Two rows without gradient; the long row alone, the three that are alike together."""
    lengths = [[(2, 3), (2, 90), (2, 28), (2, 5), (2, 30), (2, 29)]]
    needed = [[False, True, True, False, True, True]]
    assert plan_window(lengths, needed, 2) == [[[1], [4, 5, 2]]]


@given(windows())
def test_every_needed_row_is_in_one_micro_batch_and_others_only_fill_up(window):
    lengths, needed, micro_batches, _ = window
    plan = plan_window(lengths, needed, micro_batches)
    count = max(micro_batches, max(map(sum, needed)))
    for rows, flags, own in zip(lengths, needed, plan, strict=True):
        taken = [row for index in own for row in index]
        assert len(taken) == len(set(taken)) == count
        assert {row for row, flag in enumerate(flags) if flag} <= set(taken)
        fill = [sum(rows[row]) for row in taken if not flags[row]]
        spared = [sum(rows[row]) for row, flag in enumerate(flags) if not flag and row not in taken]
        assert not fill or not spared or max(fill) <= min(spared)


@given(windows())
def test_every_process_has_as_many_rows_as_the_others_in_each_micro_batch(window):
    lengths, needed, micro_batches, _ = window
    shapes = [[len(index) for index in own] for own in plan_window(lengths, needed, micro_batches)]
    assert all(shape == shapes[0] for shape in shapes)
    assert len(shapes[0]) == micro_batches
    assert min(shapes[0]) >= 1


@given(windows())
def test_no_micro_batch_is_larger_than_the_largest_of_the_plain_cut(window):
    """As the trainer pads it: every row to the longest of all. This is what memory must hold."""
    lengths, needed, micro_batches, size = window
    everything = [row for rows in lengths for row in rows]
    plain = size * sum(max(column) for column in zip(*everything, strict=True))
    for rows, own in zip(lengths, plan_window(lengths, needed, micro_batches), strict=True):
        assert max(padded([rows[row] for row in index]) for index in own) <= plain


@given(st.lists(LENGTHS, min_size=1, max_size=9), st.integers(1, 9))
def test_the_largest_group_is_the_smallest_that_there_is(rows, groups):
    groups = min(groups, len(rows))
    sizes = even_sizes(rows, groups)
    assert sum(sizes) == len(rows)
    assert len(sizes) == groups
    assert min(sizes) >= 1

    def largest(bounds):
        return max(padded(rows[start:end]) for start, end in pairwise([0, *bounds, len(rows)]))

    found = [sum(sizes[: i + 1]) for i in range(groups - 1)]
    assert largest(found) == min(largest(bounds) for bounds in combinations(range(1, len(rows)), groups - 1))


@pytest.mark.parametrize("needed", [[False] * 6, [True] + [False] * 5])
def test_where_nothing_is_needed_the_shortest_rows_keep_the_micro_batches_going(needed):
    lengths = [[(1, 9), (1, 2), (1, 8), (1, 3), (1, 1), (1, 7)]]
    (own,) = plan_window(lengths, [needed], 3)
    assert [len(index) for index in own] == [1, 1, 1]
    assert {row for index in own for row in index} == ({0, 4, 1} if needed[0] else {4, 1, 3})


def test_rows_that_are_alike_are_shared_out_evenly():
    assert even_sizes([(8, 100)] * 12, 4) == [3, 3, 3, 3]
