"""The default run cut to a few prompts, on an untrained world: what is checked is the bookkeeping, not the figures."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from leaf_diffusion.attacks import Charmer
from leaf_diffusion.encoders import Hidden
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval.t2i_robustness import main
from leaf_diffusion.evaluation.t2i import generate
from leaf_diffusion.runs import files, log
from leaf_diffusion.runs.records import AttackRecord, ImageRecord, Record, ScoreRecord, parse
from leaf_diffusion.world.figures import noise_seed

SMALL = ["--limit", "2", "--attack", "charmer", "--n-positions", "2", "--steps", "2", "--batch-size", "16"]
COLUMNS = [
    "encoder",
    "baseline",
    "protocol",
    "source",
    "attack",
    "constraint",
    "k",
    "metric",
    "mean",
    "ci_low",
    "ci_high",
    "n",
    "seeds",
    "clusters",
]
COMPARED = {"p", "p_adjusted", "main"}


def run(output: Path, *more: str) -> int:
    return main([*SMALL, "--output", str(output), *more])


class Searched(AttackRecord):
    """An attacked prompt with all that a search measures."""

    distance: float
    score: float
    clean_score: float
    unseen_tokens: float | None


class Drawn(ImageRecord):
    """An image with the seed of its noise."""

    seed: int


R = TypeVar("R", bound=Record)


def lines(output: Path, name: str, model: type[R]) -> list[R]:
    text = (output / "records" / f"{name}.jsonl").read_text()
    return [parse(model, json.loads(line)) for line in text.splitlines()]


def attack_lines(output: Path) -> list[Searched]:
    return lines(output, "attacks", Searched)


def image_lines(output: Path) -> list[Drawn]:
    return lines(output, "images", Drawn)


def score_lines(output: Path) -> list[ScoreRecord]:
    return lines(output, "scores", ScoreRecord)


def rows(output: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((output / "results.json").read_text())["rows"]
    return found


def mean(row: dict[str, object]) -> float:
    found = row["mean"]
    assert isinstance(found, (int, float))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert run(output, "--save-attacked-prompts", str(output.parent / "attacked.jsonl")) == 0
    return output


def test_every_unit_is_there_once(finished: Path) -> None:
    attacks, images, scores = attack_lines(finished), image_lines(finished), score_lines(finished)
    assert len(attacks) == len({row.id for row in attacks}) == 2 * 5 * 2
    assert len(images) == len({row.id for row in images}) == 2 * (4 * (1 + 2 + 3 * 2) + 1)
    assert {row.id for row in scores} == {row.id for row in images}
    assert (finished / "report.html").stat().st_size > 1000
    assert any(row.shattered for row in attacks)
    for row in attacks:
        assert row.distance <= row.k
        assert row.score >= row.clean_score - 1e-4
        assert row.unseen_tokens is not None and 0 <= row.unseen_tokens <= 1
        if row.perturbed != row.prompt and row.source != "original+speller":
            assert row.shattered
            assert all("".join(word) in row.perturbed.lower() for word in row.shattered)


def test_the_main_comparison_is_the_second_encoder_under_its_own_weakest_attack(
    finished: Path, declared: Callable[[Path], dict[str, Any]]
) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"]) == ("leaf", "original", "scene_accuracy")
    assert (row["protocol"], row["attack"], row["k"]) == ("adaptive", "charmer", 1)


def test_images_of_one_prompt_share_their_noise_and_equal_ones_are_drawn_once(finished: Path) -> None:
    images = image_lines(finished)
    assert all(row.seed == noise_seed(row.prompt_id, row.seed_index) for row in images)
    drawn = {row.image for row in images}
    assert {f"images/{path.name}" for path in (finished / "images").iterdir()} == drawn
    same: dict[tuple[str, ...], set[str]] = {}
    for row in images:
        weights = row.encoder.removesuffix("+speller")
        same.setdefault((weights, row.given, str(row.seed)), set()).add(row.image)
    assert all(len(images) == 1 for images in same.values())
    assert len(same) == len(drawn) < len(images)


def test_every_encoder_faces_the_same_transferred_prompts(finished: Path) -> None:
    faced: dict[tuple[Any, ...], set[str]] = {}
    for row in image_lines(finished):
        if row.protocol == "transfer":
            faced.setdefault((row.source, row.k, row.prompt_id), set()).add(row.prompt)
    assert {key[0] for key in faced} == {"original", "leaf", "judge"}
    assert all(len(texts) == 1 for texts in faced.values())


def test_results_are_rows_with_means_and_paired_differences(finished: Path) -> None:
    found = rows(finished)
    assert all([name for name in row if name not in COMPARED] == COLUMNS for row in found)
    assert all(
        {*row} & COMPARED == ({"p", "p_adjusted"} if row["baseline"] else set()) for row in found if "main" not in row
    )
    assert {row["clusters"] for row in found if row["metric"] == "drift"} == {2}
    keys = [tuple(row[c] for c in ("encoder", "baseline", "protocol", "source", "k", "metric")) for row in found]
    assert len(keys) == len(set(keys))
    assert ("leaf", None, "transfer", "judge", 2, "scene_accuracy") in keys
    assert ("leaf", None, "transfer", "original", 2, "clip_score") in keys
    # the judge is no judge of what was attacked on itself, and a few images have no distance
    assert ("leaf", None, "transfer", "judge", 2, "clip_score") not in keys
    assert not {"kid", "cmmd", "frechet"} & {key[-1] for key in keys}
    told = json.loads((finished / "results.json").read_text())["left_out"]
    assert [sentence.partition(" is left out")[0] for sentence in told] == [
        "CLIPScore",
        "KID",
        "CMMD",
        "Fréchet distance",
    ]
    for metric in ("clip_score", "scene_accuracy", "drift"):
        assert ("leaf", "original", "adaptive", "leaf", 1, metric) in keys
        assert ("leaf", "typo-augmented", "transfer", "leaf", 2, metric) in keys
    assert ("original", None, "floor", None, 0, "drift") in keys
    assert ("leaf", "original", "clean", None, 0, "sensitivity") in keys
    by_key = dict(zip(keys, found, strict=True))
    mine, base = (
        by_key["leaf", None, "clean", None, 0, "clip_score"],
        by_key["original", None, "clean", None, 0, "clip_score"],
    )
    assert by_key["leaf", "original", "clean", None, 0, "clip_score"]["mean"] == pytest.approx(mean(mine) - mean(base))


def test_drift_is_the_pixel_distance_to_the_same_encoders_clean_image(finished: Path) -> None:
    images, scores = image_lines(finished), {row.id: row for row in score_lines(finished)}
    row = next(r for r in images if r.protocol == "transfer" and r.encoder == "leaf" and r.given != r.original)
    clean = next(r for r in images if r.protocol == "clean" and (r.encoder, r.prompt_id) == ("leaf", row.prompt_id))
    a, b = (np.asarray(Image.open(finished / r.image), dtype=float) / 255 for r in (row, clean))
    assert scores[row.id].drift == pytest.approx(np.sqrt(((a - b) ** 2).mean()), abs=1e-6)


def test_a_finished_run_only_reports_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run does no work")

    monkeypatch.setattr(Charmer, "path", never)
    monkeypatch.setattr(generate, "draw", never)
    before = rows(finished)
    (finished / "report.html").unlink()
    assert run(finished) == 0
    assert rows(finished) == before
    assert (finished / "report.html").exists()


def test_missing_and_torn_images_are_drawn_again(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    gone, torn, *_ = sorted((tmp_path / "run" / "images").iterdir())
    wanted = {path.name: np.asarray(Image.open(path)).astype(int) for path in (gone, torn)}
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:50])
    assert run(tmp_path / "run") == 0
    for path in (gone, torn):  # in other batches, which move a colour by a step at most
        assert np.abs(np.asarray(Image.open(path)).astype(int) - wanted[path.name]).max() <= 1
    assert image_lines(tmp_path / "run") == image_lines(finished)


def test_an_attack_on_what_the_denoiser_sees(finished: Path, tmp_path: Path) -> None:
    words = ("--feature", "states", "--encoders", "original", "--protocols", "adaptive", "--k", "1")
    assert run(tmp_path / "run", *words) == 0
    encoder = load_text_encoder("world:original")
    for row in attack_lines(tmp_path / "run"):
        clean, moved = encoder.features(encoder.tokenize([row.prompt, row.perturbed]), Hidden(-1, "all"))
        assert clean.shape == (77 * 128,)
        assert row.score == pytest.approx(float((moved - clean).square().sum()), rel=1e-3)
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())["settings"]
    assert (
        "feature" in spec and spec["feature"] != json.loads((finished / "spec.json").read_text())["settings"]["feature"]
    )


FEW = ["--encoders", "original", "leaf", "--k", "1", "--neutral-source", "none", "--batch-size", "2"]


@pytest.fixture(scope="module")
def finished_few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "few"
    assert run(output, *FEW) == 0
    return output


@pytest.mark.parametrize("stage", [pytest.param("attack", marks=pytest.mark.slow), "image"])
def test_a_killed_run_continues_to_the_same_results(
    finished_few: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = (Charmer, "path") if stage == "attack" else (generate, "draw")
    work, calls = getattr(module, name), []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        assert run(tmp_path / "run", *FEW) == 130
    done, planned = (len(attack_lines(folder)) for folder in (tmp_path / "run", finished_few))
    assert 0 < done < planned if stage == "attack" else done == planned
    assert run(tmp_path / "run", *FEW) == 0
    for found, expected in zip(rows(tmp_path / "run"), rows(finished_few), strict=True):
        assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    "kind",
    [
        "attacks.jsonl",
        *(pytest.param(kind, marks=pytest.mark.slow)
          for kind in ("images/", "results.", "images.jsonl", "scores.jsonl", "report.")),
    ],
)  # fmt: skip
def test_a_full_disk_stops_any_write_clearly_and_the_run_goes_on(
    finished_few: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, room = files.write_all, 3

    def full(fd: int, data: bytes) -> None:
        nonlocal room
        if kind in os.readlink(f"/proc/self/fd/{fd}"):
            room -= 1
            if room < 0 or kind in ("results.", "report."):
                os.write(fd, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
        write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        patch.setattr(log, "write_all", full)
        assert run(tmp_path / "run", *FEW) == 1
    assert "the disk is full; free some space" in capsys.readouterr().out.replace("\n", " ")
    assert run(tmp_path / "run", *FEW) == 0
    assert rows(tmp_path / "run") == rows(finished_few)
    assert sorted((tmp_path / "run").rglob("*.tmp")) == []


def test_a_dry_run_measures_and_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for part in ("unet", "encoder leaf", "attacks", "images", "scores", "together", "nothing was kept"):
        assert part in said
    # 2 prompts x 5 sources x 2 k, of which one prompt's were measured
    assert re.search(r"attacks +20 +10 in \d+\.\d s", said)
    assert re.search(r": 20, about [\d,]{5,} queries at most; images", " ".join(said.split()))


def test_attack_sets_of_a_file_are_used_and_not_searched(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Charmer, "path", lambda *_, **__: pytest.fail("nothing to search"))
    given = finished.parent / "attacked.jsonl"
    drawn = [*SMALL[:2], *SMALL[6:], "--encoders", "original", "leaf"]
    assert main([*drawn, "--attacked-prompts", str(given), "--output", str(tmp_path / "run")]) == 0
    images = image_lines(tmp_path / "run")
    assert {row.protocol for row in images} == {"clean", "floor", "transfer"}
    wanted = {(row.source, row.k, row.perturbed) for row in attack_lines(finished)}
    assert {(row.source, row.k, row.prompt) for row in images if row.source} == wanted


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--encoders", "original", "nobody/nowhere/nothing"], "nothing"),
        (["--encoders", "leaf", "world:leaf"], "share a label"),
        (["--encoders", "original", "world:judge"], "fit"),
        (["--prompts", "/nowhere/prompts.txt"], "/nowhere/prompts.txt"),
        (["--attack", "magic"], "magic"),
        (["--clip-score-model", "ViT-nowhere"], "ViT-nowhere"),
        (["--dtype", "float99"], "float99"),
    ],
)
def test_wrong_input_is_told_before_any_work(
    tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "records").exists()


def test_a_folder_of_another_run_and_a_file_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "other")
    assert run(tmp_path / "other", "--guidance", "2") == 2
    assert "guidance" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert run(tmp_path / "file") == 2
    assert "file" in capsys.readouterr().err


def test_another_pipeline_with_prompts_of_a_file(
    untrained_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain diffusers folder: no scenes and no judge, so drift alone is measured, and what is left out is said."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a café by the sea\nтри кота 🐈\n" + "long " * 90 + "\n", encoding="utf-8")
    folder = str(untrained_world / "stable-diffusion")
    more = ["--pipeline", folder, "--prompts", str(prompts), "--encoders", "original", "robust=world:leaf", "--k", "1"]
    assert main([*more, *SMALL[2:], "--output", str(tmp_path / "run")]) == 0
    assert "--clip-score-model" in capsys.readouterr().out
    found = rows(tmp_path / "run")
    assert {row["metric"] for row in found} == {"drift"}
    assert {row["encoder"] for row in found} == {"original", "robust"}
    attacks = attack_lines(tmp_path / "run")
    assert {row.source for row in attacks} == {"original", "robust"}
    assert [row.truncated for row in attacks if row.source == "robust"] == [False, False, True]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["counts"]["truncated"] == 2 * (1 + 1 + 2) + 1
