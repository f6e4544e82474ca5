"""The forest of shared prefixes against a plain count of prefixes."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from leaf_diffusion.encoders.token_rows import Rows
from leaf_diffusion.scoring.forest import cut, distinct, plant

ROWS = st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=8).map(tuple), min_size=1, max_size=40).map(sorted)


def prefixes(rows):
    return {row[: i + 1] for row in rows for i in range(len(row))}


@given(ROWS, st.sampled_from([0, 1, 3, 8]))
def test_every_prefix_is_one_node_and_paths_lead_along_them(rows, step):
    forest = plant(distinct(Rows.of(rows))[0], step)
    assert len(forest.pairs) == len(prefixes(rows))
    assert len(forest.tokens) == len({(row[i], i) for row in rows for i in range(len(row))})
    read, branch_rows = {}, []
    for branches in forest.branches:
        assert branches.paths.shape[1] % (step or 1) == 0
        assert step or len(set(branches.own.tolist())) == 1
        for path, begin, own in zip(branches.paths, branches.begins, branches.own, strict=True):
            row = rows[forest.order[len(branch_rows)]]
            branch_rows.append(row)
            assert begin + own == len(row)
            assert path[begin : len(row)].tolist() == list(range(path[begin], path[begin] + own))
            assert not path[len(row) :].any()
            for i in range(len(row)):
                assert forest.tokens[forest.pairs[path[i]]] == row[i]
                assert forest.positions[forest.pairs[path[i]]] == i
                assert read.setdefault(int(path[i]), row[: i + 1]) == row[: i + 1]  # one node, one prefix
    assert sorted(branch_rows) == rows
    ends = [rows[i] for i in forest.order]
    assert [read[int(end)] for end in forest.ends] == ends == branch_rows


@given(ROWS, st.integers(1, 30))
def test_cut_keeps_the_order_and_the_bound(rows, most):
    parts = [rows[part] for part in cut(distinct(Rows.of(rows))[0], most)]
    assert [row for part in parts for row in part] == rows
    assert all(len(prefixes(part)) <= most or len(part) == 1 for part in parts)
    for part, after in itertools.pairwise(parts):  # none is cut without need
        assert len(prefixes([*part, after[0]])) > most


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 65534, 65535, 1 << 20]), max_size=8).map(tuple), max_size=40))
def test_distinct_rows_are_sorted_as_tuples_are(rows):
    kept, order, place = distinct(Rows.of(rows))
    assert kept.rows.lists() == sorted(set(rows))
    assert [rows[i] for i in order] == sorted(rows)
    assert [kept.rows.lists()[i] for i in place] == sorted(rows)
    if rows:  # a part of them is planted as if it were alone
        half = kept[len(kept) // 2 :]
        assert half.rows.lists() == sorted(set(rows))[len(kept) // 2 :]


def test_nothing_is_cut_into_nothing():
    assert list(cut(distinct(Rows.of([]))[0], 5)) == []
