"""Result rows from synthetic records with known answers."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.results import Comparison, Setting, all_pairs, result_rows
from leaf_diffusion.evaluation.t2i.plan import make_plan
from leaf_diffusion.evaluation.t2i.summarise import attack_counts, pairs_of, setting_values
from leaf_diffusion.metrics import holm, mean_interval
from leaf_diffusion.runs import ResultRow
from leaf_diffusion.runs.records import AttackRecord, ImageRecord, ScoreRecord

PROMPTS = [Prompt(f"prompt {i}") for i in range(20)]
PLAN = make_plan(PROMPTS, ["a", "b", "c"], protocols=["adaptive", "transfer"], transfer_sources=["a"], ks=[1], seeds=2)


def found(hit: dict[str, float]) -> list[ResultRow]:
    """Rows where each encoder is right in the first `hit` share of the prompts when attacked, with every noise."""
    images, scores = [], []
    for unit in PLAN.images():
        rank = PROMPTS.index(unit.prompt) / len(PROMPTS)
        right = unit.cell.source is None or rank < hit[unit.cell.encoder]
        images.append(
            ImageRecord.model_validate(
                {
                    "id": unit.id,
                    "prompt_id": unit.prompt.id,
                    "seed_index": unit.seed_index,
                    "image": "images/01234567.png",
                    "truncated": False,
                    **dict.fromkeys(("prompt", "original", "given"), unit.prompt.text),
                    **asdict(unit.cell),
                }
            )
        )
        scores.append(ScoreRecord(id=unit.id, scene_correct=right, drift=0.25 * (unit.seed_index + 1)))
    return result_rows(setting_values(PLAN, images, scores, "charmer", "none"), pairs_of(["a", "b", "c"]))


def pick(rows: list[ResultRow], **wanted: object) -> ResultRow:
    (row,) = [row for row in rows if all(row.column(name) == value for name, value in wanted.items())]
    return row


def interval(row: ResultRow) -> tuple[float, float]:
    assert row.ci_low is not None and row.ci_high is not None
    return row.ci_low, row.ci_high


def test_means_and_differences_are_paired_over_prompts() -> None:
    rows = found({"a": 0.0, "b": 0.75, "c": 0.5})
    mean = pick(rows, encoder="b", baseline=None, protocol="transfer", metric="scene_accuracy")
    assert (mean.mean, mean.n, mean.seeds) == (0.75, 20, 2)
    low, high = interval(mean)
    assert low < 0.75 < high
    better = pick(rows, encoder="b", baseline="c", protocol="adaptive", metric="scene_accuracy")
    assert (better.mean, better.source, better.k) == (0.25, "b", 1)
    assert interval(better)[0] > 0
    # equal everywhere but in the quarter between: the pairs know, two separate means would not
    other = pick(rows, encoder="c", baseline=None, protocol="adaptive", metric="scene_accuracy")
    assert np.ptp(interval(better)) < 0.8 * (high - low + np.ptp(interval(other)))
    same = pick(rows, encoder="b", baseline="a", protocol="clean", metric="scene_accuracy")
    assert (same.mean, same.attack) == (0, None)
    assert (
        interval(same)[0] == pytest.approx(-interval(same)[1]) and interval(same)[1] > 0
    )  # twenty prompts are not all


def test_seeds_are_averaged_inside_a_prompt_and_absent_metrics_have_no_rows() -> None:
    rows = found({"a": 0.0, "b": 1.0, "c": 1.0})
    drift = pick(rows, encoder="a", baseline=None, protocol="transfer", metric="drift")
    assert drift.mean == pytest.approx(0.375)
    assert drift.ci_high == pytest.approx(0.375)
    assert not [row for row in rows if row.metric == "clip_score"]
    floor = pick(rows, protocol="floor", metric="drift")
    assert (floor.encoder, floor.mean, floor.seeds) == ("a", pytest.approx(0.75), 1)


def test_the_declared_difference_stands_alone_and_all_others_are_adjusted() -> None:
    rng = np.random.default_rng(0)
    values: dict[Setting, dict[str, float]] = {}
    for metric in ("accuracy", "textfare"):
        for k in (1, 2):
            for label, share in (("a", 0.2), ("b", 0.5), ("c", 0.4)):
                right = rng.random(60) < share
                place = ("adaptive", label, "charmer", "none", k)
                values[Setting(label, metric, *place)] = {f"{i:03d}": float(each) for i, each in enumerate(right)}
    main = Comparison(Setting("b", "accuracy", "adaptive", "b", "charmer", "none", 1), "a")
    rows = result_rows(values, all_pairs("abc"), None, main)
    (declared,) = [row for row in rows if row.main]
    assert (declared.encoder, declared.baseline, declared.metric, declared.k) == ("b", "a", "accuracy", 1)
    sides = (values[Setting(x, "accuracy", "adaptive", x, "charmer", "none", 1)] for x in "ba")
    assert declared.p == declared.p_adjusted == mean_interval(*sides, share=True).p
    others = [row for row in rows if row.baseline is not None and not row.main]
    for metric, size in (("accuracy", 5), ("textfare", 6)):
        family = [row for row in others if row.metric == metric]
        assert len(family) == size
        assert [row.p_adjusted for row in family] == holm([row.p for row in family])
        least = min(family, key=lambda row: row.p or 0.0)
        assert least.p is not None and least.p_adjusted == pytest.approx(size * least.p)
    undeclared = result_rows(values, all_pairs("abc"))
    assert not any(row.main for row in undeclared)
    assert all(row.p is None for row in undeclared if row.baseline is None)


def test_too_few_prompts_are_no_test() -> None:
    """They decide nothing, and make no other comparison harder."""
    values = {Setting(label, "accuracy", k=k): {str(i): float(i < n) for i in range(n if k else 40)}
              for label, k, n in (("a", 0, 5), ("b", 0, 12), ("a", 1, 6), ("b", 1, 9))}  # fmt: skip
    few, enough = (pick(result_rows(values, [("b", "a")]), baseline="a", k=k) for k in (1, 0))
    assert few.p is few.p_adjusted is None and few.n < 10
    assert enough.p is not None and enough.p == enough.p_adjusted


def test_attack_sets_are_counted() -> None:
    def record(**more: object) -> AttackRecord:
        base = {"id": "i", "prompt_id": "p", "prompt": "x", "source": "a", "k": 1, "truncated": False, "distance": 1}
        return AttackRecord.model_validate({**base, "score": 2.0, "queries": 10, **more})

    rows = [
        record(perturbed="y", unseen_tokens=0.5),
        record(perturbed="x", truncated=True, distance=0, unseen_tokens=0.0),
        record(perturbed="yy", k=2, unseen_tokens=None),
    ]
    one, two = attack_counts(rows)
    assert (one.n, one.unchanged, one.truncated, one.distance, one.unseen_tokens) == (2, 1, 1, 0.5, 0.25)
    assert (two.k, two.unseen_tokens) == (2, None)


def test_prompts_of_one_noun_count_once() -> None:
    values = {Setting(label, "accuracy"): {f"{i:07d}": float(i // 8 < right) for i in range(96)}
              for label, right in (("a", 6), ("b", 8))}  # fmt: skip
    clusters = {f"{i:07d}": f"noun {i // 8}" for i in range(96)}
    alone, together = (result_rows(values, [("b", "a")], each) for each in ({}, clusters))
    for one, other in zip(alone, together, strict=True):
        assert (one.mean, one.n, one.clusters) == (other.mean, 96, 96)
        assert other.clusters == 12
        assert np.ptp(interval(other)) > 2 * np.ptp(interval(one))
    assert interval(alone[-1])[0] > 0 > interval(together[-1])[0]
