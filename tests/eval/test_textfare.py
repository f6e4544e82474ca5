"""The TextFARE experiment against the loss computed by hand, and the frame that all experiments share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import textfare
from leaf_diffusion.evaluation.results import Setting, all_pairs, result_rows
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.experiment_records import Losses
from leaf_diffusion.text import distance, neighbours

OPTIONS = [
    "--encoders",
    "original",
    "leaf",
    "--limit",
    "3",
    "--attacks",
    "random-typos",
    "charmer",
    "--n-positions",
    "2",
]


Refused = Callable[..., str]
Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("textfare") / "run"
    assert textfare.main([*OPTIONS, "--k", "1", "2", "--output", str(folder)]) == 0
    return folder


def test_the_main_comparison_is_under_the_last_attack(finished: Path, declared: Declared) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"]) == ("leaf", "original", "textfare_relative")
    assert (row["attack"], row["k"]) == ("charmer", 1)


def test_losses_are_squared_distances_from_the_originals_clean_embedding(finished: Path) -> None:
    original, leaf = load_text_encoder("world:original"), load_text_encoder("world:leaf")
    records = load_run(finished).records("losses", Losses)
    assert len(records) == 6
    for record in records:
        encoder = {"original": original, "leaf": leaf}[record.encoder]
        clean = original.features(original.tokenize([record.prompt]))
        assert record.norm == pytest.approx(float(clean.square().sum()), rel=1e-4)
        for text, loss in [(record.prompt, record.clean)] + [(r.perturbed, r.score) for r in record.attacked]:
            moved = encoder.features(encoder.tokenize([text]))
            assert loss == pytest.approx(float((moved - clean).square().sum()), rel=1e-3, abs=1e-3)
        assert {(row.attack, row.k) for row in record.attacked} == {
            (attack, k) for attack in ("random-typos", "charmer") for k in (1, 2)
        }
        for row in record.attacked:
            assert distance(row.prompt, row.perturbed) <= row.k


def test_rows_hold_means_and_paired_differences(finished: Path) -> None:
    run = load_run(finished)
    rows = {(r.encoder, r.baseline, r.attack, r.k, r.metric): r for r in run.results.rows}
    by_encoder = {
        label: [row.score for record in run.records("losses", Losses) if record.encoder == label
                for row in record.attacked if (row.attack, row.k) == ("charmer", 2)]
        for label in ("original", "leaf")
    }  # fmt: skip
    means = {label: sum(values) / 3 for label, values in by_encoder.items()}
    for label, mean in means.items():
        assert rows[label, None, "charmer", 2, "textfare"].mean == pytest.approx(mean)
    difference = rows["leaf", "original", "charmer", 2, "textfare"]
    assert difference.mean == pytest.approx(means["leaf"] - means["original"])
    assert difference.mean is not None and difference.ci_low is not None and difference.ci_high is not None
    assert difference.ci_low <= difference.mean <= difference.ci_high
    assert rows["original", None, None, 0, "textfare"].mean == pytest.approx(0, abs=1e-6)


def test_exhaustive_is_at_least_as_bad_as_every_edit(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / "one.txt").write_text("a red cat\n")
    options = ["--encoders", "original", "--attacks", "exhaustive", "exact-or-beam", "charmer", "--constraint", "none"]
    assert textfare.main([*options, "--prompts", str(tmp_path / "one.txt"), "--output", str(folder)]) == 0
    (record,) = load_run(folder).records("losses", Losses)
    encoder = load_text_encoder("world:original")
    clean = encoder.features(encoder.tokenize(["a red cat"]))
    edits = neighbours("a red cat").texts()[::50]
    losses = (encoder.features(encoder.tokenize(edits)) - clean).square().sum(-1)
    assert record.attacked[0].score >= float(losses.max()) * (1 - 1e-5)
    assert [row.exact for row in record.attacked] == [True, True, False]
    assert record.attacked[1].perturbed == record.attacked[0].perturbed
    exact = {row.attack: row.exact for row in load_run(folder).results.rows if row.metric == "textfare"}
    assert exact == {None: None, "exhaustive": True, "exact-or-beam": True, "charmer": None}
    page = (folder / "report.html").read_text()
    assert "exact-or-beam on itself, k=1, unconstrained (exact)" in page
    assert "charmer on itself, k=1, unconstrained (exact)" not in page


def test_a_second_call_computes_nothing_and_writes_the_same(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*.jsonl")}
    results = (finished / "results.json").read_bytes()
    assert textfare.main([*OPTIONS, "--k", "1", "2", "--output", str(finished)]) == 0
    assert {path: path.read_bytes() for path in finished.rglob("*.jsonl")} == before
    assert (finished / "results.json").read_bytes() == results
    assert "report:" in capsys.readouterr().out
    page = (finished / "report.html").read_text()
    assert "<script" not in page and "Content-Security-Policy" in page and "TextFARE loss" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "0"], "--k"),
        (["--encoders", "leaf", "x=leaf", "x=original"], "share a label"),
        (["--encoders", "original", "world:judge"], "judge"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words: list[str], said: str, refused: Refused) -> None:
    assert said in refused(textfare.main, words)


def test_another_run_in_the_folder_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textfare.main([*OPTIONS, "--seed", "5", "--output", str(finished)]) == 2
    assert "another run" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads((finished / "spec.json").read_text())["settings"]["seed"] == 0


def test_differences_are_taken_over_shared_units_and_within_a_setting() -> None:
    values = {
        Setting("a", "m"): {"x": 1.0, "y": 2.0},
        Setting("b", "m"): {"x": 3.0, "z": 9.0},
        Setting("a", "m", "adaptive", "a", "charmer", None, 1): {"x": 5.0},
        Setting("b", "m", "adaptive", "b", "charmer", None, 1): {"x": 4.0},
        Setting("b", "m", "transfer", "a", "charmer", None, 1): {"x": 7.0},
    }
    rows = result_rows(values, all_pairs(["a", "b"]))
    differences = [(r.protocol, r.mean, r.n) for r in rows if r.baseline]
    assert differences == [("clean", 2.0, 1), ("adaptive", -1.0, 1)]
    assert len(rows) == 7
