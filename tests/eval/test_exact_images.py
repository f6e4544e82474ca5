"""Exact images, small, on an untrained world: what is recorded against a plain loop over all edits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leaf_diffusion.eval import exact_images, t2i_robustness
from leaf_diffusion.evaluation.encoders import with_encoder
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.t2i import exact
from leaf_diffusion.evaluation.t2i.exact import ExactDrawing, batches, exact_values, read_edits
from leaf_diffusion.evaluation.t2i.exact_options import ExactImagesOptions
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup, prepare
from leaf_diffusion.evaluation.tasks.certify import certify
from leaf_diffusion.runs import RunSpec, RunStore, load_run
from leaf_diffusion.runs.experiment_records import SettledPrompt
from leaf_diffusion.text import NoNewWords, neighbours
from leaf_diffusion.world import SceneJudge
from leaf_diffusion.world.figures import noise_seed

PROMPT = Prompt("a red cat", scene="whatever is bright")
SMALL = ["--limit", "2", "--steps", "1", "--batch-size", "16", "--encoders", "original", "leaf"]
LETTERS = "x"
Refused = Callable[..., str]


class Brightness:
    """A judge that finds an image right where it is as bright as `least`."""

    def __init__(self, least: float = -1.0) -> None:
        self.least = least

    def correct(self, images: Sequence[Image.Image], scenes: Sequence[object]) -> list[bool]:
        assert len(images) == len(scenes)
        return [brightness(image) >= self.least for image in images]


def brightness(image: Image.Image) -> float:
    return float(np.asarray(image, dtype=float).mean())


@pytest.fixture(autouse=True)
def few_edits() -> Iterator[None]:
    """One letter in the place of ninety-five."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "neighbours", lambda text: neighbours(text, LETTERS))
        yield


@pytest.fixture(scope="module")
def setup(untrained_world: Path) -> Setup:
    options = ExactImagesOptions(encoders=("leaf", "leaf+canonical"), limit=1, steps=1, batch_size=16, device="cpu")
    return replace(prepare(options.evaluation()), prompts=[PROMPT])


def settled(
    setup: Setup, folder: Path, label: str, least: float = -1.0, most_rows: int | None = None
) -> tuple[SettledPrompt, RunStore]:
    drawing = ExactDrawing(setup, Judges(None, None, Brightness(least), []), least_score=None, most_rows=most_rows)
    store = RunStore.open(folder, RunSpec({"experiment": "exact-images"}), kinds={})
    (found,) = drawing(store, [(label, PROMPT, 0)])
    return found, store


@pytest.fixture(scope="module")
def by_hand(setup: Setup) -> dict[str, dict[str, float]]:
    """Label -> the brightness of the image of every allowed edit, each drawn alone; under "" that of the clean prompt."""
    edits = neighbours(PROMPT.text, LETTERS)
    texts = [text for text in edits.texts() if NoNewWords().holds(PROMPT.text, text)]
    found: dict[str, dict[str, float]] = {}
    for label, loaded in setup.encoders.items():
        pipeline, seen = with_encoder(setup.pipeline, loaded), dict[str, float]()
        found[label] = {}
        for text in [PROMPT.text, *texts]:
            (given,) = loaded.encoder.preprocess([text])
            if given not in seen:
                generator = torch.Generator().manual_seed(noise_seed(PROMPT.id, 0))
                (image,) = pipeline(given, generator=generator, num_inference_steps=1, guidance_scale=3.0).images
                seen[given] = brightness(image)
            found[label][text] = seen[given]
    return found


@pytest.mark.parametrize("label", ["leaf", "leaf+canonical"])
def test_a_prompt_holds_where_every_edit_drawn_alone_is_right(
    label: str, setup: Setup, by_hand: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    shown = by_hand[label]
    darkest = min(shown.values())
    held, _ = settled(setup, tmp_path / "held", label, darkest - 0.5)
    assert held.held and held.right and held.worst_right and held.wrong is None and held.place == 0
    assert held.drawn == held.rows + 1 and held.edits == len(shown) - 1 and len(held.images) == 1
    # a bound between the clean image and the darkest: only edits fall
    least = (darkest + shown[PROMPT.text]) / 2
    assert darkest < shown[PROMPT.text]
    fell, store = settled(setup, tmp_path / "fell", label, least)
    assert fell.held is False and fell.right and fell.wrong is not None
    assert shown[fell.wrong] < least and len(fell.images) == 2
    for path, text in zip(fell.images, (PROMPT.text, fell.wrong), strict=True):
        assert brightness(store.load_image(path)) == pytest.approx(shown[text], abs=0.2)


def test_readings_are_drawn_in_the_order_of_their_drift(
    setup: Setup, by_hand: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    encoder, shown = setup.encoders["leaf"].encoder, by_hand["leaf"]
    with torch.inference_mode():
        features = encoder.features(encoder.tokenize(list(shown)))
    drift = dict(zip(shown, (features - features[0]).square().sum(1).tolist(), strict=True))
    least = (min(shown.values()) + shown[PROMPT.text]) / 2
    fell, _ = settled(setup, tmp_path / "run", "leaf", least)
    assert fell.wrong is not None
    wrong = max(drift[text] for text, bright in shown.items() if bright < least)
    assert drift[fell.wrong] == pytest.approx(wrong, rel=1e-4)
    before = {
        tuple(row)
        for row, text in zip(encoder.tokenize(list(drift)), drift, strict=True)
        if drift[text] > 1.0001 * wrong
    }
    assert fell.place == len(before) + 1


def test_edits_that_are_read_alike_are_one_reading(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "neighbours", neighbours)
    rule, rows = NoNewWords(), {}
    for label, loaded in setup.encoders.items():
        found, encoder = read_edits(loaded, PROMPT.text, rule), loaded.encoder
        certificate = certify(encoder, PROMPT.text, rule)
        assert (found.edits, found.undone) == (certificate.edits, certificate.undone)
        assert len(found.distinct) == len(certificate.left)
        read = encoder.tokenize(encoder.preprocess([PROMPT.text, *found.distinct.texts()]))
        assert len({tuple(row) for row in read}) == len(found.distinct) + 1
        rows[label] = len(found.distinct)
    assert rows["leaf+canonical"] < rows["leaf"] / 10


def test_batches_grow_and_miss_none() -> None:
    for n, size in ((1, 32), (8, 32), (100, 32), (100, 4), (5, 1)):
        found = list(batches(n, size))
        assert [i for part in found for i in part] == list(range(n))
        assert max(map(len, found)) <= size
    assert [len(part) for part in batches(100, 32)] == [8, 16, 32, 32, 12]


def test_a_clean_image_that_is_wrong_settles_a_prompt(setup: Setup, tmp_path: Path) -> None:
    fell, _ = settled(setup, tmp_path, "leaf", 1000.0)
    assert not fell.right and fell.held is False and fell.place == 1 and fell.drawn == 8


def test_rows_that_are_left_leave_a_prompt_undecided(
    setup: Setup, by_hand: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    cut, _ = settled(setup, tmp_path / "cut", "leaf", most_rows=3)
    assert cut.held is None and cut.drawn == 4 < cut.rows
    whole, _ = settled(setup, tmp_path / "whole", "leaf", most_rows=cut.rows)
    assert whole.held
    values = {setting.metric: mine for setting, mine in exact_values([cut], "none", "scene_accuracy").items()}
    assert values["exact_accuracy"] == {PROMPT.id: 0.0} and values["exact_accuracy_at_most"] == {PROMPT.id: 1.0}
    assert "exact_accuracy_at_most" not in {each.metric for each in exact_values([whole], "none", "scene_accuracy")}
    noises = [whole, cut.model_copy(update={"seed_index": 1})]
    means = {(each.metric, each.seeds): mine for each, mine in exact_values(noises, "none", "scene_accuracy").items()}
    assert means["exact_accuracy", 2] == {PROMPT.id: 0.5}


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> Brightness:
    """In the place of the scene judge, which is untrained here; and deletions are all the edits."""
    judge = Brightness()
    monkeypatch.setattr(exact, "neighbours", lambda text: neighbours(text, ""))
    monkeypatch.setattr(SceneJudge, "correct", lambda _, images, scenes: judge.correct(images, scenes))
    return judge


@pytest.mark.slow
def test_a_killed_prompt_goes_on_where_it_was(
    bright: Brightness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exact, "KEPT_EVERY", 20)  # behind the second batch
    small = [*SMALL, "--limit", "1"]
    assert exact_images.main([*small, "--output", str(tmp_path / "whole")]) == 0
    drawn, kill = list[int](), [2]
    real = ExactDrawing._draw

    def counted(self: ExactDrawing, label: str, given: Sequence[str], seed: int) -> list[Image.Image]:
        if len(drawn) == kill[0]:
            raise KeyboardInterrupt
        drawn.append(len(given))
        return real(self, label, given, seed)

    monkeypatch.setattr(ExactDrawing, "_draw", counted)
    words = [*small, "--output", str(tmp_path / "killed")]
    assert exact_images.main(words) == 130
    kill[0] = -1
    assert exact_images.main(words) == 0
    whole, again = (load_run(tmp_path / name) for name in ("whole", "killed"))
    records = whole.records("prompts", SettledPrompt)
    assert again.records("prompts", SettledPrompt) == records
    assert all(record.held and record.drawn == record.rows + 1 for record in records)
    assert drawn[:2] == [8, 16] and records[0].drawn > 24  # killed within the first prompt
    assert sum(drawn) == sum(record.drawn for record in records)  # nothing was drawn twice
    assert (tmp_path / "killed/results.json").read_bytes() == (tmp_path / "whole/results.json").read_bytes()
    counts, lines = len(drawn), (tmp_path / "killed/records/prompts.jsonl").read_bytes()
    assert exact_images.main(words) == 0  # nothing is left
    assert len(drawn) == counts and (tmp_path / "killed/records/prompts.jsonl").read_bytes() == lines
    assert "Right under every allowed edit" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_and_page(bright: Brightness, tmp_path: Path) -> None:
    probe = ["--limit", "2", "--steps", "1", "--encoders", "original", "leaf"]
    assert exact_images.main([*SMALL, "--output", str(tmp_path / "probe"), "--most-rows", "5"]) == 0
    run = load_run(tmp_path / "probe")
    rows = {(row.encoder, row.baseline, row.metric, row.attack): row.mean for row in run.results.rows}
    assert rows["leaf", None, "exact_accuracy", "every edit"] == 0
    assert rows["leaf", None, "exact_accuracy_at_most", "every edit"] == 1
    assert rows["leaf", "original", "exact_accuracy", "every edit"] == 0
    assert json.loads((tmp_path / "probe/results.json").read_text())["undecided"] == {"original": 2, "leaf": 2}
    page = (tmp_path / "probe/report.html").read_text()
    assert "not decided: 5 of" in page and "original 0% to 100%, leaf 0% to 100%" in page
    images = [Image.open(run.folder / record.images[0]) for record in run.records("prompts", SettledPrompt)]
    bright.least = float(np.median([brightness(image) for image in images]))  # half of the clean images are wrong
    attacked = ["--attack", "exhaustive", "--k", "1", "--protocols", "adaptive", "--neutral-source", "none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leaf_diffusion.attacks.exhaustive.neighbours", lambda text, alphabet: exact.neighbours(text))
        assert t2i_robustness.main([*probe, *attacked, "--output", str(tmp_path / "evaluated")]) == 0
    assert exact_images.main([*SMALL, "--output", str(tmp_path / "exact")]) == 0
    found, evaluated = (
        {(row.encoder, row.protocol, row.k): row.mean for row in load_run(tmp_path / name).results.rows
         if row.metric == "scene_accuracy" and row.baseline is None}
        for name in ("exact", "evaluated")
    )  # fmt: skip
    assert found == evaluated and len(found) == 4
    exactly = [row for row in load_run(tmp_path / "exact").results.rows if row.metric == "exact_accuracy"]
    assert all(row.exact for row in exactly) and [row.main for row in exactly if row.baseline] == [True]
    assert not any(row.exact for row in run.results.rows)  # where prompts are not decided
    page = (tmp_path / "exact/report.html").read_text()
    assert "largest drift, no-new-words" in page and "<del>" in page and "<script" not in page
    assert page.count("data:image/png") == sum(
        len(record.images) for record in load_run(tmp_path / "exact").records("prompts", SettledPrompt)
    )


def test_prompts_of_ones_own_are_judged_by_their_score(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "1", "--encoders", "leaf+canonical"]
    for name, least, right in (("low", "-101", 1.0), ("high", "101", 0.0)):
        assert exact_images.main([*words, "--least-score", least, "--output", str(tmp_path / name)]) == 0
        means = {row.metric: row.mean for row in load_run(tmp_path / name).results.rows if row.protocol == "clean"}
        assert means == {"clip_accuracy": right}


def test_a_dry_run_says_how_much_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exact_images.main([*SMALL, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "readings to draw a prompt (mean of 2): " in said and "images a second (measured)" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "prompts.txt"], "give --least-score"),
        (["--pipeline", "my-model"], "give --least-score"),
        (["--pipeline", "my-model", "--least-score", "20"], "--clip-score-model"),
        (["--clip-score-model", "ViT-B-16/openai"], "--least-score"),
        (["--most-rows", "0"], "--most-rows"),
        (["--steps", "0"], "--steps"),
        (["--encoders", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words: list[str], said: str, refused: Refused) -> None:
    assert said in refused(exact_images.main, words)
