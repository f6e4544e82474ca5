"""Two runs side by side: what counts together, and how many comparisons a verdict is one of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from leaf_diffusion.metrics import Interval
from leaf_diffusion.metrics.bounds import attack_note
from leaf_diffusion.reports import compare, write_comparison
from leaf_diffusion.reports.results import METRICS, Setting

Make = Callable[..., Path]
PAIRS = {str(i): f"noun {i // 2}" for i in range(12)}


def clustered(run: Path, clusters: Mapping[str, str]) -> Path:
    """The run with these clusters in its results."""
    path = run / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clusters": clusters}))
    return run


def test_clusters_are_those_that_both_runs_or_one_of_them_know(make_run: Make) -> None:
    bare, one, same = make_run("bare"), clustered(make_run("one"), PAIRS), clustered(make_run("same"), PAIRS)
    assert "12 (6 independent)" not in write_comparison(bare, make_run("other")).read_text()
    for pair in ((bare, one), (one, bare), (one, same)):
        assert "12 (6 independent)" in write_comparison(*pair).read_text()
    renamed = clustered(make_run("renamed"), {key: f"image {name}" for key, name in PAIRS.items()})
    assert "12 (6 independent)" in write_comparison(one, renamed).read_text()


def test_runs_that_count_prompts_together_differently_are_not_compared(make_run: Make) -> None:
    one = clustered(make_run("one"), PAIRS)
    other = clustered(make_run("other"), PAIRS | {"0": "another", "11": "noun 1"})
    with pytest.raises(ValueError, match=r"6 of 12 prompts fall together with other prompts.*--clusters of the other"):
        write_comparison(one, other)


def test_a_difference_is_one_of_all_in_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = METRICS["scene_accuracy"]
    order = [("leaf", Setting("adaptive", "", k)) for k in (1, 2, 3)]
    found = [{(label, setting, metric.key): {"a": 1.0} for label, setting in order}] * 2
    p_values = iter([0.02, 0.001, 0.5])
    monkeypatch.setattr(compare, "mean_interval", lambda *_, **__: Interval(0.3, 0.1, 0.5, 20, 20, next(p_values)))
    apart = compare._differences(metric, found, {}, set(found[0]), order)
    assert [each.p_adjusted for each in apart.values()] == pytest.approx([0.04, 0.003, 0.5])
    assert compare._headline(metric, ["one", "other"], apart).endswith("better in 2 of 3 settings")


def test_figures_of_a_search_are_upper_bounds(make_run: Make) -> None:
    page = write_comparison(make_run("one", n=3), make_run("other", n=3)).read_text()
    assert attack_note([False]) in page
    assert attack_note([False], higher_is_better=False) in page
    assert "Holm’s adjustment" in page
