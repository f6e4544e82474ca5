"""The inversion experiment: its figures from its texts, resuming, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import inversion
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.tasks import inversion as library
from leaf_diffusion.metrics import reconstruction
from leaf_diffusion.runs import RunStore, load_run
from leaf_diffusion.runs.experiment_records import Inverted
from leaf_diffusion.world import seen_tokens

SMALL = [
    "--limit",
    "3",
    "--search-steps",
    "8",
    "--batch-size",
    "2",
    "--encoders",
    "original",
    "leaf",
    "--vocabulary",
    "seen",
]


Refused = Callable[..., str]
Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inversion") / "run"
    assert inversion.main([*SMALL, "--output", str(folder)]) == 0
    return folder


def test_the_main_comparison_is_of_words_given_back(finished: Path, declared: Declared) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"], row["protocol"]) == (
        "leaf",
        "original",
        "word_accuracy",
        "clean",
    )
    assert "the least that an embedding gives away" in (finished / "report.html").read_text()


def test_figures_are_those_of_the_texts(finished: Path) -> None:
    encoders = {label: load_text_encoder(f"world:{label}") for label in ("original", "leaf")}
    records = load_run(finished).records("inversions", Inverted)
    assert len(records) == 6
    for record in records:
        encoder = encoders[record.encoder]
        (wanted,) = encoder.tokenize([record.prompt])
        row = [wanted[0], *record.tokens, wanted[-1]]
        with torch.inference_mode():
            reached = torch.cosine_similarity(encoder.features([wanted]), encoder.features([row]))
        assert record.cosine == pytest.approx(float(reached), abs=1e-4)
        assert len(row) == len(wanted)
        assert set(record.tokens) <= seen_tokens()
        assert record.token_accuracy == np.mean([a == b for a, b in zip(row[1:-1], wanted[1:-1], strict=True)])
        assert record.word_accuracy == reconstruction.word_accuracy(record.found, record.prompt)
        assert "<|" not in record.found


def test_rows_are_means_with_paired_differences(finished: Path) -> None:
    run = load_run(finished)
    rows = {(row.encoder, row.baseline, row.metric): row for row in run.results.rows}
    means = {
        label: np.mean([r.cosine for r in run.records("inversions", Inverted) if r.encoder == label])
        for label in ("original", "leaf")
    }
    assert rows["original", None, "cosine"].mean == pytest.approx(means["original"])
    assert rows["leaf", "original", "cosine"].mean == pytest.approx(means["leaf"] - means["original"])
    assert rows["leaf", None, "cosine"].n == 3


def test_a_killed_run_ends_as_an_uninterrupted_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, calls = inversion.InversionExperiment.invert, []

    def stop(
        self: inversion.InversionExperiment, store: RunStore, label: str, prompts: Sequence[Prompt]
    ) -> list[Inverted]:
        calls.append(label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(self, store, label, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(inversion.InversionExperiment, "invert", stop)
        assert inversion.main([*SMALL, "--output", str(tmp_path / "run")]) == 130
    assert 0 < len(load_run(tmp_path / "run").records("inversions", Inverted)) < 6
    assert inversion.main([*SMALL, "--output", str(tmp_path / "run")]) == 0
    mine, theirs = (load_run(folder).records("inversions", Inverted) for folder in (tmp_path / "run", finished))
    assert mine == theirs


def test_bleu_is_measured_or_its_absence_is_said(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    run = load_run(finished)
    metrics = {row.metric for row in run.results.rows}
    assert ("bleu" in metrics) == reconstruction.has_bleu()
    assert (inversion.NO_BLEU in (finished / "report.html").read_text()) != reconstruction.has_bleu()
    # with the package, or a stand-in for it, every caption has its figure
    for module in (inversion, library):
        monkeypatch.setattr(module, "has_bleu", lambda: True)
    monkeypatch.setattr(library, "bleu", lambda found, text: 0.25)
    words = ["--limit", "1", "--steps", "1", "--encoders", "original", "--output", str(tmp_path / "run")]
    assert inversion.main(words) == 0
    assert inversion.NO_BLEU not in capsys.readouterr().out
    (row,) = (row for row in load_run(tmp_path / "run").results.rows if row.metric == "bleu")
    assert row.mean == 0.25


def test_a_file_of_captions(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("<b>a dog</b>\ntwo cats\n")
    words = ["--prompts", str(tmp_path / "captions.txt"), "--steps", "2", "--encoders", "x=world:judge"]
    assert inversion.main([*words, "--output", str(tmp_path / "run")]) == 0
    assert [record.prompt for record in load_run(tmp_path / "run").records("inversions", Inverted)] == [
        "<b>a dog</b>",
        "two cats",
    ]
    assert "<b>a dog" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--search-steps"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words: list[str], said: str, refused: Refused) -> None:
    assert said in refused(inversion.main, words)
