"""Which rows of an optimizer step go into which of its micro-batches. Plain numbers, no tensors."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

Lengths = Sequence[int]  # of the parts of one row that are padded apart: its prompt, its completion


def plan_window(
    lengths: Sequence[Sequence[Lengths]], needed: Sequence[Sequence[bool]], micro_batches: int
) -> list[list[list[int]]]:
    """The rows of each micro-batch, for each process: plan[process][micro_batch] is a list of row numbers.

    Rows that are not needed are left out, the others sorted, longest first, and cut into micro-batches so that the
    largest of these, padded to its own longest prompt and completion, is as small as can be. It is never larger than
    the largest of a plain cut into equal numbers of rows.

    Every process gets the same number of rows in its n-th micro-batch, which is what TRL's gathers of metrics per row
    need, and at least one. The one that has fewer needed rows than another, or fewer than there are micro-batches, is
    filled up with the shortest of those that are not needed.

    Args:
        lengths: for each process, for each of its rows, the lengths of the row's parts. The same number of rows each.
        needed: in the same way, whether the row can have a gradient.
        micro_batches: how many there are; at most the number of rows.
    """
    count = max(micro_batches, *(sum(flags) for flags in needed))
    orders = [_longest_first(rows, flags, count) for rows, flags in zip(lengths, needed, strict=True)]
    ordered = [[rows[row] for row in order] for rows, order in zip(lengths, orders, strict=True)]
    longest = [[max(column) for column in zip(*rows, strict=True)] for rows in zip(*ordered, strict=True)]
    bounds = [0, *accumulate(even_sizes(longest, micro_batches))]
    return [[order[start:end] for start, end in pairwise(bounds)] for order in orders]


def _longest_first(rows: Sequence[Lengths], needed: Sequence[bool], count: int) -> list[int]:
    order = sorted(range(len(rows)), key=lambda row: -sum(rows[row]))
    chosen = [row for row in order if needed[row]]
    fill = [row for row in order if not needed[row]]
    missing = count - len(chosen)
    chosen += fill[len(fill) - missing :]
    return sorted(chosen, key=lambda row: -sum(rows[row]))


def padded(rows: Sequence[Lengths]) -> int:
    """Tokens of a micro-batch of these rows, its padding included."""
    width: int = sum(max(lengths) for lengths in zip(*rows, strict=True))
    return len(rows) * width


def even_sizes(rows: Sequence[Lengths], groups: int) -> list[int]:
    """How many rows each group takes, in the order given, for the largest group to be as small as can be padded.

    Args:
        rows: at least as many as groups, of which none is empty.
    """
    low, high = max(sum(lengths) for lengths in rows), padded(rows)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(rows, middle, 0)) <= groups:
            high = middle
        else:
            low = middle + 1
    return _fill(rows, low, groups)


def _fill(rows: Sequence[Lengths], limit: int, at_least: int) -> list[int]:
    """Sizes of groups, each filled up to the limit of padded tokens, but so that there are at least so many groups."""
    sizes: list[int] = []
    size, widths = 0, [0] * len(rows[0])
    for place, lengths in enumerate(rows):
        wider = [max(pair) for pair in zip(widths, lengths, strict=True)]
        too_many = (size + 1) * sum(wider) > limit
        needs_all = len(rows) - place <= at_least - len(sizes) - 1  # a group for each of the rows that are left
        if size and (too_many or needs_all):
            sizes.append(size)
            size, wider = 0, list(lengths)
        size, widths = size + 1, wider
    return [*sizes, size]
