from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaf_diffusion.attacks import ATTACKS
from leaf_diffusion.metrics.bounds import under_attack
from leaf_diffusion.reports import gallery_rows, headline, show_gallery
from leaf_diffusion.reports.gallery import marks
from leaf_diffusion.reports.headline import UNITS
from leaf_diffusion.reports.results import Results, Setting
from leaf_diffusion.runs import ResultRow

Make = Callable[..., Path]


def row(encoder: str, mean: float, low: float | None, high: float | None, **values: object) -> ResultRow:
    base = {"baseline": None, "protocol": "adaptive", "source": encoder, "attack": "charmer", "constraint": "none"}
    rest = {"k": 1, "metric": "scene_accuracy", "n": 60, "seeds": 1}
    measured = {"encoder": encoder, "mean": mean, "ci_low": low, "ci_high": high}
    return ResultRow.model_validate({**base, **rest, **measured, **values})


def said(leaf: float, low: float | None, high: float | None, **values: Any) -> Any:
    rows = [row("original", 0.09, 0.0, 0.2, **values), row("leaf", leaf, 0.5, 0.8, **values)]
    rows.append(
        row("leaf", leaf - 0.09, low, high, **({"main": True, "p_adjusted": 0.01, "baseline": "original"} | values))
    )
    return headline(Results(rows))


def test_a_clear_gain_is_one_sentence_with_everything_in_it() -> None:
    found = said(0.71, 0.5, 0.73)
    assert found.text == (
        "Under one-character adaptive attacks (k=1) the encoder “leaf” keeps 71% of the images right, “original” 9% "
        "(n=60 prompts, difference +62 points, 95% interval 50 to 73; the main comparison, declared before the run)."
    )
    assert found.verdict == "better"
    assert found.notes == [f"Under attack: {under_attack()}: the true figure is at most this."]


def test_what_no_run_declared_is_exploratory() -> None:
    found = said(0.71, 0.5, 0.73, main=None, p_adjusted=None)
    assert found.verdict == "exploratory"
    assert "(k=1) an exploratory comparison: the encoder “leaf” keeps 71%" in found.text
    assert "declared" not in found.text


def test_the_declared_comparison_leads() -> None:
    """Whichever encoder, metric and attack others would choose."""
    rows = [row(label, 0.5, 0.4, 0.6) for label in ("original", "leaf", "control")]
    rows += [row("leaf", 0.2, 0.1, 0.3, baseline="original", p_adjusted=0.001)]
    rows += [row(label, 25.0, 24.0, 26.0, metric="clip_score", k=2) for label in ("original", "control")]
    rows += [row("control", 0.5, 0.1, 0.9, baseline="original", metric="clip_score", k=2, p_adjusted=0.01, main=True)]
    found = headline(Results(rows))
    assert found.text.startswith(
        "Under two-character adaptive attacks (k=2) the images of “control” reach a CLIPScore of 25.0"
    )
    assert found.verdict == "better"


@pytest.mark.parametrize(
    ("leaf", "low", "high", "verdict", "words"),
    [
        (0.11, -0.04, 0.08, "open", "no clear difference: the encoder “leaf” keeps 11%"),
        (
            0.11,
            -0.04,
            0.08,
            "open",
            "difference +2 points, 95% interval −4 to 8, which includes 0; the main comparison, ",
        ),
        (
            0.09,
            -0.001,
            0.0,
            "open",
            "difference +0 points, 95% interval 0 to 0, which includes 0; the main comparison, ",
        ),
        (0.02, -0.12, -0.01, "worse", "(k=1) “leaf” does worse: the encoder “leaf” keeps 2%"),
        (1.0, None, None, "unknown", "too small to tell: the encoder “leaf” keeps 100%"),
    ],
)
def test_words_follow_the_interval(leaf: float, low: Any, high: Any, verdict: str, words: str) -> None:
    found = said(leaf, low, high)
    assert found.verdict == verdict
    assert words in found.text


def test_controls_and_defences_are_named_beside_the_robust_encoder() -> None:
    rows = [row(label, mean, None, None) for label, mean in (("original", 0.1), ("leaf", 0.6), ("o+speller", 0.7))]
    rows.append(row("leaf", 0.5, 0.2, 0.7, baseline="original"))
    assert headline(Results(rows)).others == "The other encoders under these attacks: “o+speller” 70%."
    assert said(0.71, 0.5, 0.73).others == ""


def test_less_drift_is_better_and_k_is_spelled() -> None:
    found = said(0.02, -0.12, -0.01, metric="drift", k=2)
    assert found.verdict == "better"
    assert found.text.startswith("Under two-character adaptive attacks (k=2) the images of “leaf” move by 0.020")


@pytest.mark.parametrize(
    ("attack", "unit"),
    [
        ("words", "word"),
        ("worst-keyboard", "character"),
        ("tokens", "token"),
        ("charmer+words", "edit"),
        ("given", "character"),
    ],
)
def test_what_k_counts_is_said(attack: str, unit: str) -> None:
    assert said(0.71, 0.5, 0.73, attack=attack).text.startswith(f"Under one-{unit} adaptive attacks (k=1)")


def test_every_attack_counts_what_the_headline_says() -> None:
    assert {name: attack.unit for name, attack in ATTACKS.items() if attack.unit != "character"} == UNITS


def test_transferred_attacks_name_their_source() -> None:
    found = said(0.71, 0.5, 0.73, protocol="transfer", source="judge")
    assert found.text.startswith("Under one-character attacks found on “judge” (k=1)")


@given(st.text(max_size=12), st.text(max_size=12))
def test_marks_tell_both_texts(original: str, perturbed: str) -> None:
    pieces = marks(original, perturbed)
    assert "".join(text for kind, text in pieces if kind != "ins") == original
    assert "".join(text for kind, text in pieces if kind != "del") == perturbed


def test_gallery_is_worst_first_and_pairs_every_cell(make_run: Make) -> None:
    run = make_run()
    rows = gallery_rows(run)
    assert len(rows) == 12
    assert [r.damage for r in rows] == sorted((r.damage for r in rows), reverse=True)
    assert rows[0].damage[0] > rows[-1].damage[0]
    for found in rows:
        assert len(found.cells) == 4 * (1 + 2 + 2 * 2)
        transferred = {c.prompt for (_, s), c in found.cells.items() if s == Setting("transfer", "judge", 1)}
        assert len(transferred) == 1
        lost = (
            found.cells["original", Setting("clean")].correct
            and not found.cells["original", Setting("adaptive", "", 1)].correct
        )
        assert not lost or found.damage[0] > 0 or found.damage[1] > 0


def test_a_figure_for_notebooks(make_run: Make, tmp_path: Path) -> None:
    run = make_run(n=3, prompts=["a $cat$ <b>", "b", "c"])
    figure = show_gallery(run, k=1, limit=2, encoders=["original", "leaf"])
    assert len(figure.axes) == 2 * 4
    figure.savefig(tmp_path / "gallery.png")
    with pytest.raises(ValueError, match="holds no images of prompts attacked on itself, k=7"):
        show_gallery(run, k=7)
