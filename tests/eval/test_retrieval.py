"""Retrieval against rankings computed apart, its files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import retrieval
from leaf_diffusion.evaluation.tasks.retrieval import file_gallery, world_gallery
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.experiment_records import AttackedCaptions, CleanRank, Embedded, Ranked, Shown
from leaf_diffusion.text import distance
from leaf_diffusion.world.captions import full_prompts
from leaf_diffusion.world.scenes import pixels
from leaf_diffusion.world.sources import load_clip

SMALL = [
    "--gallery",
    "20",
    "--limit",
    "3",
    "--targets",
    "2",
    "--attack",
    "charmer:n_positions=2",
    "--encoders",
    "original",
    "leaf",
]


Refused = Callable[..., str]
Declared = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval") / "run"
    assert retrieval.main([*SMALL, "--output", str(folder)]) == 0
    return folder


@cache
def image_features() -> torch.Tensor:
    gallery, clip = world_gallery(20, 0), load_clip()
    with torch.inference_mode():
        return clip.visual_projection(clip.vision_model(pixels([gallery.load(i) for i in range(20)])).pooler_output)


def order_of(encoder: TextEncoder, text: str) -> list[int]:
    """Images from the most to the least similar, by the models alone."""
    with torch.inference_mode():
        similarity = torch.cosine_similarity(encoder.features(encoder.tokenize([text])), image_features(), dim=-1)
    return [int(i) for i in similarity.argsort(descending=True)]


def test_the_main_comparison_is_of_the_attacked_captions(finished: Path, declared: Declared) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"]) == ("leaf", "original", "recall_at_1")
    assert (row["attack"], row["k"], row["captions"]) == ("charmer, drift", 1, "attacked")


def test_captions_of_one_noun_count_once(finished: Path) -> None:
    found, prompts = load_run(finished).results, full_prompts(20, 0)
    nouns = [prompt.scene.things[0].noun for prompt in prompts]
    assert len(set(nouns)) < 20
    assert found.clusters == {f"{number:07d}": noun for number, noun in enumerate(nouns)}
    assert {row.clusters for row in found.rows if row.captions == "all"} == {len(set(nouns))}


def test_ranks_and_targets_are_those_of_the_models(finished: Path) -> None:
    run = load_run(finished)
    targets = run.spec.settings["target_numbers"]
    captions = [text for text, _ in run.spec.settings["texts"]]
    encoders = {label: load_text_encoder(f"world:{label}") for label in ("original", "leaf")}
    assert len(run.records("ranks", Ranked)) == 6
    for record in run.records("ranks", Ranked):
        assert record.caption == captions[record.number]
        assert record.number not in targets
        for row in record.searches:
            order = order_of(encoders[record.encoder], row.perturbed)
            assert row.rank == order.index(record.number) + 1
            assert row.target_ranks == [order.index(target) + 1 for target in targets]
            assert row.target_above == [order.index(t) < order.index(record.number) for t in targets]
            assert row.top == order[:5]


def test_every_attack_is_there_and_within_its_edits(finished: Path) -> None:
    run = load_run(finished)
    targets = run.spec.settings["target_numbers"]
    expected = {
        (g, t, k) for g, t in [("drift", None), ("margin", None), *(("toward", t) for t in targets)] for k in (1, 2)
    }
    for record in run.records("attacks", AttackedCaptions):
        assert {(row.goal, row.target, row.k) for row in record.attacked} == expected
        for row in record.attacked:
            assert distance(row.prompt, row.perturbed) <= row.k
    by_encoder = {(r.encoder, r.number): r.attacked for r in run.records("attacks", AttackedCaptions)}
    for ranked in run.records("ranks", Ranked):  # transferred attacks are the first encoder's
        transferred = [row.perturbed for row in ranked.searches if row.protocol == "transfer"]
        assert transferred == [row.perturbed for row in by_encoder["original", ranked.number]]


def test_a_margin_is_solved_when_another_image_stands_first(finished: Path) -> None:
    run = load_run(finished)
    found = {(r.encoder, r.number): r.searches for r in run.records("ranks", Ranked)}
    for record in run.records("attacks", AttackedCaptions):
        for row in (row for row in record.attacked if row.goal == "margin"):
            (rank,) = (s.rank for s in found[record.encoder, record.number]
                       if s.protocol == "adaptive" and s.goal == "margin" and s.k == row.k)  # fmt: skip
            assert row.success == (rank > 1)


def test_rows_are_means_over_captions(finished: Path) -> None:
    run = load_run(finished)
    place = ("encoder", "baseline", "protocol", "attack", "k", "metric")
    every = {(r.encoder, r.metric): r for r in run.results.rows if r.captions == "all" and not r.baseline}
    rows = {tuple(row.column(name) for name in place): row for row in run.results.rows if row.captions == "attacked"}
    for label in ("original", "leaf"):
        mine = [r.searches for r in run.records("ranks", Ranked) if r.encoder == label]
        clean = [s.rank for searches in mine for s in searches if s.protocol == "clean"]
        assert rows[label, None, "clean", None, 0, "recall_at_5"].mean == pytest.approx(
            np.mean([r <= 5 for r in clean])
        )
        everywhere = {r.number: r.rank for r in run.records("clean", CleanRank) if r.encoder == label}
        assert [everywhere[r.number] for r in run.records("ranks", Ranked) if r.encoder == label] == clean
        assert every[label, "recall_at_1"].mean == pytest.approx(np.mean([r == 1 for r in everywhere.values()]))
        assert every[label, "recall_at_1"].n == 20
        aimed = [
            s for searches in mine for s in searches
            if s.protocol == "adaptive" and s.goal == "toward" and s.k == 2
        ]  # fmt: skip
        targets = run.spec.settings["target_numbers"]
        above = [s.target_above[targets.index(s.target)] for s in aimed]
        row = rows[label, None, "adaptive", "charmer, toward", 2, "target_above"]
        assert (row.mean, row.n) == (pytest.approx(np.mean(above)), 3)
    difference = rows["leaf", "original", "transfer", "charmer, drift", 2, "recall_at_10"]
    means = [
        rows[label, None, "transfer", "charmer, drift", 2, "recall_at_10"].mean or 0.0 for label in ("leaf", "original")
    ]
    assert difference.mean == pytest.approx(means[0] - means[1])


def test_a_second_call_computes_nothing_and_redraws_a_damaged_image(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*.jsonl")}
    image = finished / load_run(finished).records("shown", Shown)[-1].image
    drawn = image.read_bytes()
    image.write_bytes(drawn[:40])
    assert retrieval.main([*SMALL, "--output", str(finished)]) == 0
    assert {path: path.read_bytes() for path in finished.rglob("*.jsonl")} == before
    assert image.read_bytes() == drawn
    page = (finished / "report.html").read_text()
    assert "<script" not in page and "data:image/png" in page and "<ins>" in page and "Recall@10" in page


def test_world_captions_tell_every_scene_apart() -> None:
    prompts = full_prompts(200, 1)

    def meaning(scene: Any) -> tuple[Any, ...]:
        return tuple((thing.noun, thing.colour) for thing in scene.things), scene.relation, scene.background

    assert len({meaning(prompt.scene) for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 200
    for prompt in prompts:
        said = [
            prompt.scene.background,
            *(word for thing in prompt.scene.things for word in (thing.noun, thing.colour)),
        ]
        assert all(word in prompt.text.split() for word in said)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A Karpathy split of 16 images in a folder of their own, two of which have one caption."""
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    rng, images = np.random.default_rng(0), []
    for i in range(16):
        name = f"COCO_{i}.png"
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "images/val2014" / name)
        first = f"caption number {i}" if i > 1 else ("A  cat" if i else "a cat")
        sentences = [{"raw": first}, {"raw": f"another {i}"}]
        images.append({"filename": name, "split": "test" if i < 15 else "val", "sentences": sentences})
    (tmp_path / "coco.json").write_text(json.dumps({"images": images}))
    return tmp_path


def test_files_give_the_first_caption_of_each_image(coco: Path) -> None:
    gallery = file_gallery(coco / "coco.json", coco / "images", column=None, split="test", n=100)
    assert list(gallery.captions) == [f"caption number {i}" for i in range(2, 15)]
    assert gallery.shared == 2
    image = gallery.load(0)
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(coco / "images/val2014/COCO_2.png")))


def test_a_run_on_files(coco: Path, tmp_path: Path) -> None:
    words = ["--captions", str(coco / "coco.json"), "--images", str(coco / "images"), "--targets", "1", "--limit", "2",
             "--encoders", "leaf", "--k", "1", "--attack", "charmer:n_positions=1", "--goals", "toward", "--toward", "images"]  # fmt: skip
    assert retrieval.main([*words, "--output", str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    assert len(run.records("gallery", Embedded)) == 14
    clean = {(r.encoder, r.number): r.searches[0] for r in run.records("ranks", Ranked)}
    assert len(clean) == 2
    for record in run.records(
        "attacks", AttackedCaptions
    ):  # the attacker climbs on the similarity to the target's image
        (row,) = record.attacked
        assert row.score >= row.clean_score


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("gone", "COCO_3.png"),
        ("broken", "COCO_3.png holds no whole image"),
        ("twice", "2 times"),
        ("twins", "are one image"),
        ("outside", "is not in"),
        ("nameless", "no image is named"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    coco: Path, damage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, source = coco / "images" / "val2014", coco / "coco.json"
    if damage == "gone":
        (folder / "COCO_3.png").unlink()
    elif damage == "broken":
        (folder / "COCO_3.png").write_bytes((folder / "COCO_3.png").read_bytes()[:100])
    elif damage == "twice":
        (coco / "images" / "again").mkdir()
        (coco / "images" / "again" / "COCO_3.png").write_bytes((folder / "COCO_3.png").read_bytes())
    elif damage == "twins":
        (folder / "COCO_3.png").write_bytes((folder / "COCO_4.png").read_bytes())
    else:
        record = {"caption": "a dog"} | ({"image": "../../coco.json"} if damage == "outside" else {})
        source = coco / "captions.jsonl"
        source.write_text(json.dumps(record) + "\n")
    words = ["--captions", str(source), "--images", str(coco / "images"), "--output", str(coco / "run")]
    assert retrieval.main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (coco / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "0"], "--k"),
        (["--gallery", "12"], "too few"),
        (["--goals", "drift", "drift"], "--goals"),
        (["--captions", "x.json"], "belong together"),
        (["--encoders", "original", "world:judge", "--gallery", "20"], "different CLIPs"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(words: list[str], said: str, refused: Refused) -> None:
    assert said in refused(retrieval.main, words)
