"""The ablation: every training differs in one choice, resumes, and is measured alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import ablation
from leaf_diffusion.eval.ablation import AblationOptions
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.experiment_records import Trained

WORDS = [
    "--rho",
    "1",
    "2",
    "--train-steps",
    "2",
    "--batch-size",
    "2",
    "--limit",
    "2",
    "--k",
    "1",
    "2",
    "--attack",
    "charmer",
    "--n-positions",
    "1",
]


Refused = Callable[..., str]
Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leaf_diffusion.finetune.textfare.HELD_OUT", 4)
        assert ablation.main([*WORDS, "--output", str(folder)]) == 0
    return folder


def test_the_main_comparison_is_the_first_training_against_the_original(finished: Path, declared: Declared) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"]) == ("rho=1", "original", "textfare_relative")
    assert (row["attack"], row["k"]) == ("leaf, rho=50", 1)


def test_the_recipes_differ_in_one_choice_each() -> None:
    recipes = AblationOptions().recipes()
    assert list(recipes) == ["rho=1", "rho=10", "rho=50", "rho=50, unconstrained", "random typos"]
    base = vars(recipes["rho=50"])
    assert (base["attack"], base["rho"], base["constraint"]) == ("leaf", 50, "no-new-words")
    for label, changed in (
        ("rho=1", {"rho": 1}),
        ("rho=10", {"rho": 10}),
        ("rho=50, unconstrained", {"constraint": "none"}),
        ("random typos", {"attack": "random-typos"}),
    ):
        assert {name: value for name, value in vars(recipes[label]).items() if value != base[name]} == changed


def test_encoders_are_trained_kept_and_compared(finished: Path) -> None:
    run = load_run(finished)
    trainings = run.records("trainings", Trained)
    assert [record.label for record in trainings] == ["rho=1", "rho=2", "rho=2, unconstrained", "random typos"]
    prints = {"original": load_text_encoder("world:original").fingerprint}
    for record in trainings:
        assert load_text_encoder(finished / record.folder).fingerprint == record.fingerprint
        prints[record.label] = record.fingerprint
    del prints["rho=2, unconstrained"]  # in two updates no constraint may have mattered
    assert len(set(prints.values())) == 4
    rows = run.results.rows
    assert {row.encoder for row in rows} == {"original", *(record.label for record in trainings)}
    assert {(row.metric, row.k) for row in rows} == {
        ("accuracy", 0), ("accuracy", 1), ("accuracy", 2), ("textfare_relative", 0), ("textfare_relative", 1)
    }  # fmt: skip
    clean = next(
        r for r in rows if (r.encoder, r.metric, r.k, r.baseline) == ("original", "textfare_relative", 0, None)
    )
    assert clean.mean == pytest.approx(0, abs=1e-6)
    assert "rho=2, unconstrained" in (finished / "report.html").read_text()


def test_a_second_call_trains_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Path:
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "finetune_text_encoder", never)
    results = (finished / "results.json").read_bytes()
    assert ablation.main([*WORDS, "--output", str(finished)]) == 0
    assert (finished / "results.json").read_bytes() == results


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rho", "0"], "--rho"),
        (["--train-steps", "0"], "--train-steps"),
        (["--encoders", "rho=1=original"], "label 'rho=1'"),
    ],
)
def test_bad_options_are_refused(words: list[str], said: str, refused: Refused) -> None:
    assert said in refused(ablation.main, words)
