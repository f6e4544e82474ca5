"""Zero-shot image classification on an untrained world and on folders: what is recorded against what is computed by hand."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from leaf_diffusion.encoders.image_encoder import load_image_encoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import zero_shot_image
from leaf_diffusion.evaluation.tasks.image_attacks import Classifier
from leaf_diffusion.evaluation.tasks.images import folder_images, world_images
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.experiment_records import ClassifiedImage
from leaf_diffusion.world.captions import zero_shot_prompts

OPTIONS = ["--limit", "6", "--steps", "3", "--batch-size", "4"]


Refused = Callable[..., str]
Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "run"
    assert zero_shot_image.main([*OPTIONS, "--eps", "2", "8", "--output", str(folder)]) == 0
    return folder


def classes_by_hand() -> torch.Tensor:
    text, task = load_text_encoder("world:original"), world_images()
    features = text.features(text.tokenize([texts[0] for texts in task.texts]))
    return normalize(features, dim=-1)


def test_the_main_comparison_is_at_the_first_eps(finished: Path, declared: Declared) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["attack"], row["eps"]) == ("fare", "original", "apgd", 2)


def test_what_is_said_is_the_nearest_caption(finished: Path) -> None:
    records, task, classes = load_run(finished).records("images", ClassifiedImage), world_images(), classes_by_hand()
    assert [record.number for record in records] == [i * len(zero_shot_prompts()) // 6 for i in range(6)]
    for name in ("original", "fare"):
        encoder = load_image_encoder(f"world:{name}")
        for record in records:
            features = encoder.features(encoder.prepare([task.load(record.number)]))
            assert record.said[name] == int((features @ classes.T).argmax())


def test_every_attack_is_shown_to_every_tower(finished: Path) -> None:
    for record in load_run(finished).records("images", ClassifiedImage):
        seen = [(row.encoder, row.source, row.attack, row.eps) for row in record.attacked]
        both = ("original", "fare")
        assert sorted(seen) == sorted(
            (mine, theirs, attack, eps)
            for mine in both
            for theirs in both
            for attack in ("pgd", "apgd")
            for eps in (2, 8)
        )
        assert len(record.images) == 6
        clean, attacked, added = (np.asarray(Image.open(finished / path), dtype=float) for path in record.images[:3])
        assert np.array_equal(clean, np.asarray(world_images().load(record.number)))
        assert 0 < np.abs(attacked - clean).max() <= 2  # eps 2, the first of the two, rounded to 8 bits
        np.testing.assert_allclose((added / 255 - 0.5) * 4, attacked - clean, atol=0.52)


def test_rows_count_images_that_are_right_clean_and_attacked(finished: Path) -> None:
    run = load_run(finished)
    rows = {(r.encoder, r.baseline, r.protocol, r.source, r.attack, r.eps): r for r in run.results.rows}
    records = run.records("images", ClassifiedImage)
    held = [
        float(row.said == record.label == record.said["fare"])
        for record in records
        for row in record.attacked
        if (row.encoder, row.source, row.attack, row.eps) == ("fare", "original", "apgd", 8)
    ]
    assert rows["fare", None, "transfer", "original", "apgd", 8].mean == pytest.approx(sum(held) / 6)
    clean = [float(record.said["original"] == record.label) for record in records]
    assert rows["original", None, "clean", None, None, 0].mean == pytest.approx(sum(clean) / 6)
    assert ("fare", "original", "adaptive", "fare", "pgd", 2) in rows
    assert all(row.n == 6 for row in rows.values())


def test_a_second_call_computes_nothing_and_a_lost_image_is_drawn_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, records = (finished / "results.json").read_bytes(), (finished / "records/images.jsonl").read_bytes()
    lost = finished / load_run(finished).records("images", ClassifiedImage)[0].images[4]
    before = lost.read_bytes()
    lost.unlink()
    assert zero_shot_image.main([*OPTIONS, "--eps", "2", "8", "--output", str(finished)]) == 0
    assert lost.read_bytes() == before
    assert (finished / "results.json").read_bytes() == results
    assert (finished / "records/images.jsonl").read_bytes() == records
    page = (finished / "report.html").read_text()
    assert "apgd on original, eps 8/255" in page and "<script" not in page
    assert "report:" in capsys.readouterr().out


def test_a_page_shows_no_image_that_was_not_recorded(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    words = [*OPTIONS, "--eps", "2", "8", "--output", str(folder)]
    record = next(record for record in load_run(folder).records("images", ClassifiedImage) if record.images)
    assert record.sha256s == [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in record.images]
    swapped, lost = folder / record.images[0], folder / record.images[1]
    lost.unlink()
    assert zero_shot_image.main(words) == 0  # drawn again
    assert lost.read_bytes() == (finished / record.images[1]).read_bytes()
    Image.new("RGB", (8, 8), "red").save(swapped)
    capsys.readouterr()
    assert zero_shot_image.main(words) == 1
    said = capsys.readouterr()
    assert "is not the image that was recorded" in " ".join((said.out + said.err).split())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, colour in (("n01_cat", "red"), ("n02_dog", "blue"), ("n03", "green")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 36), colour).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def test_a_folder_of_images_and_its_class_names(images: Path, tmp_path: Path) -> None:
    task = folder_images(images, None, ["a {}", "the {}"])
    assert task.classes == ["n01 cat", "n02 dog", "n03"]
    assert task.texts[1] == ["a n02 dog", "the n02 dog"]
    assert list(task.labels) == [0, 0, 1, 1, 2, 2]
    assert task.load(2).getpixel((0, 0)) == (0, 0, 255)
    assert task.spread(3) == [0, 2, 4]
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["cat", "dog", "lawn"]))
    assert folder_images(images, names, ["{}"]).texts == [["cat"], ["dog"], ["lawn"]]
    names.write_text(json.dumps({"n03": "lawn", "n01_cat": "cat", "n02_dog": "dog"}))
    assert folder_images(images, names, ["{}"]).classes == ["cat", "dog", "lawn"]
    text = load_text_encoder("world:original")
    by_hand = [normalize(text.features(text.tokenize([f"a {n}", f"the {n}"])), dim=-1).mean(0) for n in task.classes]
    torch.testing.assert_close(task.class_features(text), normalize(torch.stack(by_hand), dim=-1))
    folder = tmp_path / "run"
    options = ["--images", str(images), "--class-names", str(names), "--attacks", "apgd", "--steps", "2"]
    assert zero_shot_image.main([*options, "--encoders", "original", "--output", str(folder)]) == 0
    records = load_run(folder).records("images", ClassifiedImage)
    assert len(records) == 6 and {row.eps for record in records for row in record.attacked} == {2.0}


def test_apgd_adds_what_the_second_loss_finds() -> None:
    torch.manual_seed(0)
    encoder = load_image_encoder("world:original")
    task = world_images()
    pixels = encoder.prepare([task.load(i) for i in range(0, len(zero_shot_prompts()), 30)])
    classify = Classifier(encoder, classes_by_hand(), "the captions")
    with torch.no_grad():
        labels = classify(pixels).argmax(1)  # so that every image is right untouched
    apgd = classify.attack("apgd", pixels, labels, eps=2 / 255, steps=5, seed=0)
    pgd = classify.attack("pgd", pixels, labels, eps=2 / 255, steps=5, seed=0)
    logits = classify(apgd.pixels)
    assert torch.equal(apgd.score > 0, logits.argmax(1) != labels)
    assert float((apgd.pixels - pixels).abs().max()) <= 2 / 255 + 1e-6
    assert float((apgd.score > 0).float().mean()) >= float((pgd.score > 0).float().mean())
    assert bool((apgd.clean_score <= 0).all())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoders", "original", "leaf"], "world:fare"),
        (["--encoders", "fare", "x=fare", "x=original"], "different labels"),
        (["--encoders", "original+speller"], "defence"),
        (["--eps", "0"], "--eps"),
        (["--steps", "0"], "--steps"),
        (["--images", "nowhere"], "nowhere"),
        (["--class-names", "names.json"], "--class-names"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words: list[str], said: str, refused: Refused) -> None:
    assert said in refused(zero_shot_image.main, words)


def test_folders_that_cannot_serve(images: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    for content, said in (('["cat"]', "1 names for 3"), ('{"n03": ""}', "no name"), ("3", "expected")):
        names.write_text(content)
        with pytest.raises(ValueError, match=said):
            folder_images(images, names, ["{}"])
    with pytest.raises(ValueError, match="--templates"):
        folder_images(images, None, ["a photo"])
    with pytest.raises(ValueError, match="two classes"):
        folder_images(images.parent, None, ["{}"])
    (images / "n03" / "0.png").write_bytes(b"no image")
    with pytest.raises(OSError, match="remove it"):
        folder_images(images, None, ["{}"]).load(4)
    Image.new("RGB", (4, 4)).save(images / "loose.png")
    with pytest.raises(ValueError, match="no sub-folder"):
        folder_images(images, None, ["{}"])
