"""The forest of shared prefixes against a plain count of prefixes."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from leaf_diffusion.scoring.forest import build_forest, cut, distinct
from leaf_diffusion.tokens.token_rows import Rows

ROWS = st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=8).map(tuple), min_size=1, max_size=40).map(sorted)


def prefixes(rows: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {row[: i + 1] for row in rows for i in range(len(row))}


@given(ROWS, st.sampled_from([1, 3, 8, 64]), st.sampled_from([1, 8]))
def test_every_prefix_is_one_node_and_reads_its_own_prefixes(
    rows: list[tuple[int, ...]], chunk: int, aligned: int
) -> None:
    forest = build_forest(distinct(Rows.of(rows))[0], chunk, aligned)
    total = len(prefixes(rows))
    assert len(forest.tokens) == len({(row[i], i) for row in rows for i in range(len(row))})
    assert len(forest.pairs) == len(forest.keys) * forest.chunk < total + forest.chunk
    assert forest.keys.shape == forest.stops.shape and forest.keys.shape[1] % aligned == 0
    read: dict[int, tuple[int, ...]] = {}
    for row, path, end in zip(rows, forest.paths.tolist(), forest.ends.tolist(), strict=True):
        assert path[len(row) - 1] == end and not any(path[len(row) :])
        for i, node in enumerate(path[: len(row)]):
            assert (forest.tokens[forest.pairs[node]], forest.positions[forest.pairs[node]]) == (row[i], i)
            assert read.setdefault(node, row[: i + 1]) == row[: i + 1]  # one node, one prefix
    assert sorted(read) == list(range(total))
    for node in range(len(forest.pairs)):
        keys, stops = forest.keys[node // forest.chunk], forest.stops[node // forest.chunk]
        reads = keys[(keys <= node) & (node < stops)].tolist()
        path = read.get(node, ())  # what fills up reads itself
        assert [read.get(key, ()) for key in reads] == ([path[: i + 1] for i in range(len(path))] or [()])


@given(ROWS, st.integers(1, 30))
def test_cut_keeps_the_order_and_the_bound(rows: list[tuple[int, ...]], most: int) -> None:
    parts = [rows[part] for part in cut(distinct(Rows.of(rows))[0], most)]
    assert [row for part in parts for row in part] == rows
    assert all(len(prefixes(part)) <= most or len(part) == 1 for part in parts)
    for part, after in itertools.pairwise(parts):  # none is cut without need
        assert len(prefixes([*part, after[0]])) > most


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 65534, 65535, 1 << 20]), max_size=8).map(tuple), max_size=40))
def test_distinct_rows_are_sorted_as_tuples_are(rows: list[tuple[int, ...]]) -> None:
    kept, order, place = distinct(Rows.of(rows))
    assert kept.rows.lists() == sorted(set(rows))
    assert [rows[i] for i in order] == sorted(rows)
    assert [kept.rows.lists()[i] for i in place] == sorted(rows)
    if rows:  # a part of them is planted as if it were alone
        half = kept[len(kept) // 2 :]
        assert half.rows.lists() == sorted(set(rows))[len(kept) // 2 :]


def test_nothing_is_cut_into_nothing() -> None:
    assert list(cut(distinct(Rows.of([]))[0], 5)) == []
