"""The zero-shot text experiment: exact accuracy against the attacks, the curve by counting, tasks from files."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from leaf_diffusion.attacks import Exhaustive
from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import zero_shot_text
from leaf_diffusion.evaluation.tasks.query_curve import against_random, query_numbers
from leaf_diffusion.evaluation.tasks.text import file_task, sensitivity, world_task
from leaf_diffusion.metrics.bounds import attack_note
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.experiment_records import ClassifiedText
from leaf_diffusion.scoring import Margin, Scorer
from leaf_diffusion.text import NoNewWords, distance

WORDS = ["--encoders", "original", "leaf", "--limit", "4", "--images", "1", "--k", "1", "2", "--attacks", "charmer", "--n-positions", "3", "1",
         "--constraints", "no-new-words", "none"]  # fmt: skip

ONE_SEARCH = ["--no-exact", "--k", "1", "--attacks", "charmer", "--n-positions", "1"]


Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero-shot") / "run"
    assert zero_shot_text.main([*WORDS, "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("queries", [1, 2, 4, 6, 9])
def test_random_edits_hold_as_often_as_a_count_of_all_draws_says(queries: int) -> None:
    draws = list(itertools.combinations(range(6), min(queries, 6)))
    held = sum(not {0, 1} & set(draw) for draw in draws) / len(draws)
    assert against_random(6, 2, queries) == pytest.approx(held)
    assert against_random(6, 0, queries) == 1
    assert query_numbers(250) == [1, 3, 10, 30, 100, 250] and query_numbers(0) == []


def test_the_main_comparison_is_exact_and_the_page_says_which_lines_are(finished: Path, declared: Declared) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"], row["attack"]) == (
        "leaf",
        "original",
        "accuracy",
        "exhaustive",
    )
    assert (row["k"], row["constraint"], row["exact"]) == (1, "no-new-words", True)
    assert {r.attack for r in load_run(finished).results.rows if r.exact} == {"exhaustive"}
    page = (finished / "report.html").read_text()
    for rule in (", no-new-words", ", unconstrained"):
        assert f"exhaustive on itself, k=1{rule} (exact)" in page
        assert f"charmer, n=3 on itself, k=1{rule} (exact)" not in page
    assert attack_note([True, False]) in page


def test_every_edit_is_the_exhaustive_attack_and_nothing_is_stronger(finished: Path) -> None:
    records = load_run(finished).records("texts", ClassifiedText)
    assert len(records) == 8
    task = world_task(1)
    for record in records:
        encoder = load_text_encoder(f"world:{record.encoder}")
        label = task.labels[record.number]
        scorer = Scorer(encoder, Margin(task.anchors(encoder), [label]))
        for each in record.exact:
            rule = NoNewWords() if each.constraint == "no-new-words" else None
            exact = Exhaustive()([record.text], scorer, k=1, constraint=rule)[0]
            assert (exact.score > 0) == (each.flips > 0)
            assert record.right == (exact.clean_score <= 0)
            assert distance(record.text, each.worst) == 1
            tried = [a for a in record.attacks if (a.k, a.constraint) == (1, each.constraint)]
            assert len(tried) == 2
            assert all(a.held for a in tried) or each.flips > 0
        constrained, free = record.exact
        assert constrained.edits < free.edits and constrained.flips <= free.flips


def test_rows_follow_from_the_records(finished: Path) -> None:
    run = load_run(finished)
    rows = {(r.encoder, r.baseline, r.attack, r.k, r.constraint): r for r in run.results.rows
            if r.metric == "accuracy"}  # fmt: skip
    for name in ("original", "leaf"):
        mine = [record for record in run.records("texts", ClassifiedText) if record.encoder == name]
        exact = sum(record.right and not record.exact[0].flips for record in mine) / 4
        assert rows[name, None, "exhaustive", 1, "no-new-words"].mean == exact
        assert rows[name, None, None, 0, None].mean == sum(record.right for record in mine) / 4
        k1, k2 = (rows[name, None, "charmer, n=3", k, "none"].mean or 0.0 for k in (1, 2))
        assert k2 <= k1
    last = [r for r in run.results.rows if r.metric == "accuracy_over_queries" and r.baseline is None]
    most = max(row.queries or 0 for row in last)
    for row in (row for row in last if row.queries == most):
        assert row.mean == rows[row.encoder, None, "exhaustive", 1, row.constraint].mean
    told = [r for r in run.results.rows if r.metric == "sensitivity" and r.baseline is None]
    for row in told:
        encoder = load_text_encoder(f"world:{row.encoder}")
        again = sensitivity(encoder, world_task(1).anchors(encoder))
        assert (row.n, row.mean) == (len(again), pytest.approx(sum(again) / len(again)))
    assert "random edits" in (finished / "report.html").read_text()


def test_the_default_is_exact_at_one_edit_and_says_so(tmp_path: Path) -> None:
    words = ["--encoders", "original", "leaf", "--limit", "2", "--images", "1", "--k", "1", "2"]
    assert zero_shot_text.main([*words, "--output", str(tmp_path / "run")]) == 0
    rows = [row for row in load_run(tmp_path / "run").results.rows if row.metric == "accuracy" and row.k]
    means = {(row.encoder, row.attack, row.k): row.mean for row in rows if row.baseline is None}
    for name in ("original", "leaf"):
        assert means[name, "exact-or-beam", 1] == means[name, "exhaustive", 1]
    said = {("exhaustive", 1, True), ("exact-or-beam", 1, True), ("exact-or-beam", 2, None)}
    for paired in (False, True):
        assert {(row.attack, row.k, row.exact) for row in rows if (row.baseline is not None) == paired} == said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "exact-or-beam on itself, k=1, no-new-words (exact)" in page
    assert "exact-or-beam on itself, k=2, no-new-words (exact)" not in page


def labelled(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def test_a_task_of_a_file_has_the_encoders_own_anchors(tmp_path: Path) -> None:
    rows = [{"text": "a red cat", "label": "animal"}, {"text": "a blue car", "label": "thing"}]
    source = labelled(tmp_path / "t.jsonl", rows)
    task = file_task(source, column=None, split=None, classes=(), templates=("a {}", "the {}"))
    assert (list(task.classes), list(task.labels)) == (["animal", "thing"], [0, 1])
    encoder = load_text_encoder("world:leaf")
    features = encoder.features(encoder.tokenize(["a animal", "the animal"]))
    expected = normalize(normalize(features, dim=-1).mean(0), dim=-1)
    assert torch.allclose(task.anchors(encoder)[0], expected, atol=1e-5)
    words = ["--task", source, "--encoders", "original", *ONE_SEARCH]
    assert zero_shot_text.main([*words, "--output", str(tmp_path / "run")]) == 0
    results = load_run(tmp_path / "run").results
    assert {row.metric for row in results.rows} == {"accuracy"}
    assert (results.model_dump()["texts"], results.model_dump()["classes"]) == (2, 2)


def test_numbers_count_the_classes(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "x", "label": 1}, {"text": "y", "label": 0}]
    source = labelled(tmp_path / "t.jsonl", rows)
    task = file_task(source, column=None, split=None, classes=("world", "sports"), templates=("{}",))
    assert (list(task.texts), list(task.labels)) == (["y", "x"], [0, 1])
    (tmp_path / "t.csv").write_text("text,label\nx,1\ny,0\n")
    again = file_task(str(tmp_path / "t.csv"), column=None, split=None, classes=("world", "sports"), templates=("{}",))
    assert (again.texts, list(again.labels)) == (task.texts, [0, 1])


def test_classes_may_be_images_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("animal", "red"), ("thing", "blue")):
        (tmp_path / "shown" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32 + i, 32), colour).save(tmp_path / "shown" / name / f"{i}.png")
    rows: list[dict[str, object]] = [{"text": "a cat", "label": "animal"}, {"text": "a car", "label": "thing"}]
    source = labelled(tmp_path / "t.jsonl", rows)
    words = ["--task", source, "--encoders", "leaf", *ONE_SEARCH]
    shown = ["--anchors", str(tmp_path / "shown"), "--image-encoder", "world:original"]
    assert zero_shot_text.main([*words, *shown, "--output", str(tmp_path / "run")]) == 0
    tower, encoder = load_image_encoder("world:original"), load_text_encoder("world:leaf")
    anchors = []
    for name in ("animal", "thing"):
        images = [Image.open(tmp_path / "shown" / name / f"{i}.png") for i in range(2)]
        anchors.append(normalize(tower.embed(tower.prepare(images)), dim=-1).mean(0))
    logits = (
        normalize(encoder.features(encoder.tokenize(["a cat", "a car"])), dim=-1)
        @ normalize(torch.stack(anchors), dim=-1).T
    )
    said = [record.said for record in load_run(tmp_path / "run").records("texts", ClassifiedText)]
    assert said == [("animal", "thing")[i] for i in logits.argmax(1).tolist()]
    (tmp_path / "shown" / "thing").rename(tmp_path / "shown" / "other")
    assert zero_shot_text.main([*words, *shown, "--output", str(tmp_path / "no")]) == 2
    assert "no sub-folder 'thing'" in capsys.readouterr().err.replace("\n", "")
    assert zero_shot_text.main([*words, *shown[:2], "--output", str(tmp_path / "no")]) == 2
    assert "--anchors needs --image-encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "classes", "said"),
    [
        ([{"text": "x", "label": 1}], (), "--classes"),
        ([{"text": "x"}], (), "line 1: no label"),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": "c"}], ("a", "b"), "line 2: label 'c'"),
        ([{"text": "x", "label": "a"}], (), "two classes"),
        ([{"text": " ", "label": "a"}], (), "empty text"),
    ],
)
def test_a_task_that_cannot_be_is_refused(
    rows: list[dict[str, object]], classes: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    source = labelled(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=said):
        file_task(source, column=None, split=None, classes=classes, templates=("{}",))


def test_datasets_name_their_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "d")
    task = file_task(f"dataset:{tmp_path / 'd'}", column=None, split=None, classes=(), templates=("{}",))
    assert (list(task.texts), list(task.classes), list(task.labels)) == (["y", "x"], ["bad", "good"], [0, 1])


def test_other_attacks_and_noise_are_searched_too(tmp_path: Path) -> None:
    words = [
        "--attacks",
        "keyboard",
        "worst-keyboard",
        "tokens",
        "--no-exact",
        "--limit",
        "2",
        "--images",
        "1",
        "--k",
        "1",
    ]
    assert zero_shot_text.main([*words, "--encoders", "original", "--output", str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    for record in run.records("texts", ClassifiedText):
        slip, worst, tokens = record.attacks
        assert slip.queries == 0 and slip.perturbed != record.text
        for searched in (worst, tokens):  # what is wrong already is not searched for
            assert (searched.queries > 0) == record.right
        assert not worst.held or slip.held
    accuracy = {row.attack for row in run.results.rows if row.metric == "accuracy"}
    assert accuracy == {None, "keyboard", "worst-keyboard", "tokens"}


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["--task", "nowhere.csv"], "nowhere.csv"), (["--attacks", "charmr"], "unknown attack")):
        assert zero_shot_text.main([*words, "--output", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "run").exists()
