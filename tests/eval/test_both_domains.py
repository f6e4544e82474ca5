"""The table of both domains on an untrained world: every cell against what is computed by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.nn.functional import normalize

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.image_encoder import ImageEncoder, load_image_encoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import both_domains
from leaf_diffusion.evaluation.tasks.images import world_images
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.experiment_records import PairImage, PairText
from leaf_diffusion.text import NoNewWords, distance
from leaf_diffusion.world.captions import zero_shot_prompts
from leaf_diffusion.world.figures import zero_shot_anchors
from tests import tiny

OPTIONS = [
    "--limit",
    "3",
    "--text-limit",
    "3",
    "--attack-steps",
    "2",
    "--attack",
    "charmer:n_positions=2",
    "--per-class",
    "1",
]
ROWS = ["original + original", "fare + original", "original + leaf", "fare + leaf"]
Towers = tuple[dict[str, ImageEncoder], dict[str, TextEncoder]]


Refused = Callable[..., str]
Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def towers() -> Towers:
    images = {name: load_image_encoder(f"world:{name}") for name in ("original", "fare")}
    return images, {name: load_text_encoder(f"world:{name}") for name in ("original", "leaf")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both") / "run"
    assert both_domains.main([*OPTIONS, "--output", str(folder)]) == 0
    return folder


def test_the_main_comparison_is_of_texts_with_both_towers(finished: Path, declared: Declared) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"], row["k"]) == (ROWS[-1], ROWS[0], "text_accuracy", 1)


def test_images_are_classified_by_the_rows_text_tower(finished: Path, towers: Towers) -> None:
    task = world_images()
    records = load_run(finished).records("images", PairImage)
    assert [sorted(record.right) for record in records] == [sorted(ROWS)] * 3
    for row in ROWS:
        image, text = row.split(" + ")
        tower, encoder = towers[0][image], towers[1][text]
        classes = normalize(encoder.features(encoder.tokenize([texts[0] for texts in task.texts])), dim=-1)
        for record in records:
            features = tower.features(tower.prepare([task.load(record.number)]))
            right = int((features @ classes.T).argmax()) == task.labels[record.number]
            assert record.right[row] == right
            assert record.held[row] <= right


def test_texts_are_classified_by_the_rows_image_tower(finished: Path, towers: Towers) -> None:
    records = load_run(finished).records("texts", PairText)
    assert len(records) == 12
    prompts = [text for text, _, _ in zero_shot_prompts()]
    for row in ROWS:
        image, text = row.split(" + ")
        tower, encoder = towers[0][image], towers[1][text]
        anchors = zero_shot_anchors(per_class=1, embed=lambda x, tower=tower: tower.embed(tower.prepare(x)))
        for record in (record for record in records if record.row == row):
            assert record.prompt == prompts[record.number]
            for shown, right in ((record.prompt, record.right), (record.perturbed, record.held)):
                features = encoder.features(encoder.tokenize([shown]))
                assert right == (int((features @ anchors.T).argmax()) == record.number)
            assert distance(record.prompt, record.perturbed) <= 1
            assert NoNewWords().holds(record.prompt, record.perturbed)


def test_rows_and_page_show_the_table(finished: Path) -> None:
    run = load_run(finished)
    rows = run.results.rows
    means = [row for row in rows if row.baseline is None]
    assert len(means) == 16
    cells = {(row.encoder, row.metric, row.attack): row for row in means}
    held = [record.held["fare + leaf"] for record in run.records("images", PairImage)]
    assert cells["fare + leaf", "image_accuracy", "apgd"].mean == pytest.approx(sum(held) / 3)
    assert cells["fare + leaf", "image_accuracy", "apgd"].eps == 4.0
    said = [record.held for record in run.records("texts", PairText) if record.row == "original + leaf"]
    assert cells["original + leaf", "text_accuracy", "charmer"].mean == pytest.approx(sum(said) / 3)
    pairs = {(row.encoder, row.baseline) for row in rows if row.baseline}
    assert len(pairs) == 6 and ("fare + leaf", "original + original") in pairs
    page = (finished / "report.html").read_text()
    assert "image, attacked" in page and all(label in page for label in ROWS)


def test_a_second_call_writes_the_same(finished: Path) -> None:
    before = (finished / "results.json").read_bytes()
    assert both_domains.main([*OPTIONS, "--output", str(finished)]) == 0
    assert (finished / "results.json").read_bytes() == before


def test_images_texts_and_anchors_of_ones_own(tmp_path: Path, towers: Towers) -> None:
    for name, colour in (("cat", "red"), ("dog", "blue"), ("sky", "white")):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), colour).save(tmp_path / "images" / name / "0.png")
    lines = [{"text": "my cat sleeps", "label": "cat"}, {"text": "a dog barks", "label": "dog"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = ["--images", str(tmp_path / "images"), "--texts", str(tmp_path / "texts.jsonl"), "--steps", "1"]
    own += ["--attack", "charmer:n_positions=1", "--encoders", "original", "--image-encoders", "original", "fare"]
    folder = tmp_path / "run"
    assert both_domains.main([*own, "--anchors", str(tmp_path / "images"), "--output", str(folder)]) == 0
    records = load_run(folder).records("texts", PairText)
    encoder = towers[1]["original"]
    assert len(records) == 4
    for record in records:
        tower = towers[0][record.row.split(" + ")[0]]
        shown = [Image.open(tmp_path / "images" / name / "0.png") for name in ("cat", "dog")]
        anchors = normalize(tower.features(tower.prepare(shown)), dim=-1)
        features = encoder.features(encoder.tokenize([record.prompt]))
        label = ["cat", "dog"].index(lines[record.number]["label"])
        assert record.right == (int((features @ anchors.T).argmax()) == label)
    assert both_domains.main([*own, "--output", str(tmp_path / "templates")]) == 0
    by_row = dict[int, list[tuple[bool, str]]]()
    for record in load_run(tmp_path / "templates").records("texts", PairText):  # no image decides here
        by_row.setdefault(record.number, []).append((record.right, record.perturbed))
    assert [len(found) for found in by_row.values()] == [2, 2]
    assert all(len(set(found)) == 1 for found in by_row.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eps", "0"], "--eps"),
        (["--k", "0"], "--k"),
        (["--texts", "nowhere.csv"], "nowhere.csv"),
        (["--anchors", "somewhere"], "--anchors"),
        (["--image-encoders", "leaf"], "world:fare"),
        (["--encoders", "fare"], "fare"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words: list[str], said: str, refused: Refused) -> None:
    assert said in refused(both_domains.main, words)


def test_towers_of_different_clips_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.image_tower(projection_dim=24).save_pretrained(tmp_path / "other")
    words = ["--image-encoders", str(tmp_path / "other"), "--output", str(tmp_path / "run")]
    assert both_domains.main(words) == 2
    assert "features of 24" in capsys.readouterr().err.replace("\n", " ")
