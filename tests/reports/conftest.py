"""Synthetic runs: made by the real RunStore, drawn by hand, with known right and wrong images."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from leaf_diffusion.metrics import mean_interval
from leaf_diffusion.reports.metrics import is_share
from leaf_diffusion.runs import RunResults, RunSpec, RunStore, image_name
from leaf_diffusion.runs.records import AttackRecord, ImageRecord, ScoreRecord

COLOURS = {"red": "#d33", "blue": "#36c", "green": "#2a4", "yellow": "#dc3", "purple": "#83b", "orange": "#e80"}
NOUNS = ["cat", "boat", "house", "key", "bell", "umbrella", "fish", "cup"]
ENCODERS = {"original": 0.1, "leaf": 0.75, "typo-augmented": 0.5, "original+speller": 0.6}
NOISE = "xqzv"


def draw(colour: str, shape: int, noise: random.Random, size: int) -> Image.Image:
    """A coloured shape on a soft background."""
    ground = tuple(noise.randint(185, 235) for _ in range(3))
    image = Image.new("RGB", (128, 128), ground)
    pen = ImageDraw.Draw(image)
    x, y, r = noise.randint(44, 84), noise.randint(44, 84), noise.randint(24, 38)
    if shape % 3 == 0:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    else:
        pen.regular_polygon((x, y, r), 3 + shape % 5, rotation=noise.randint(0, 90), fill=colour)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def misspell(prompt: str, k: int, rng: random.Random) -> str:
    text = prompt
    for _ in range(k):
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(NOISE) + text[at + rng.randint(0, 1) :]
    return text


Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """make_run(prompts=None, ...) -> run folder."""

    def make(name: str = "run", **options: Any) -> Path:
        return build(tmp_path / name, **options)

    return make


def build(
    folder: Path,
    prompts: list[str] | None = None,
    n: int = 12,
    encoders: dict[str, float] | None = None,
    size: int = 32,
    ks: tuple[int, ...] = (1, 2),
    scenes: bool = True,
    attacked: bool = True,
) -> Path:
    """A finished run folder. encoders: label -> share of images that stay right under one edit."""
    hold = encoders or ENCODERS
    rng = random.Random(0)
    if prompts is None:
        prompts = [f"a {rng.choice(list(COLOURS))} {rng.choice(NOUNS)} on the grass" for _ in range(n)]
    values: dict[tuple[str, str, str | None, int, str], dict[str, float]] = {}
    with RunStore.open(
        folder, RunSpec({"pipeline": "world", "prompts": prompts}), command="leaf-diffusion evaluate"
    ) as store:
        for index, prompt in enumerate(prompts):
            texts: dict[tuple[str, int], str] = {}
            for found_on in [*hold, "judge"]:
                for k in ks if attacked else ():
                    texts[found_on, k] = text = misspell(prompt, k, random.Random(f"{index}{found_on}"))
                    store.append("attacks", AttackRecord.model_validate({
                        "unit": "attack", "id": f"{found_on}/{k}/{index}", "prompt_id": str(index), "prompt": prompt,
                        "perturbed": text, "source": found_on, "k": k, "attack": "charmer", "truncated": False,
                        "shattered": [["<i>um", "br"], ["x"]],
                    }))  # fmt: skip
            for cell in cells(hold, ks if attacked else ()):
                encoder, protocol, source, k = cell
                text = prompt if source is None else texts[source, k]
                chance = 0.92 if source is None else hold[encoder] ** (1 + 0.5 * (k - 1))
                right = random.Random(f"{index}{cell}").random() < chance
                shape = 0 if right else random.Random(f"w{index}{cell}").randint(1, 9)
                colour = COLOURS["blue"] if right else random.Random(f"c{index}{cell}").choice(list(COLOURS.values()))
                unit = f"{cell}/{index}"
                image = store.save_image(image_name(unit), draw(colour, shape, random.Random(index), size))
                given = prompt if "speller" in encoder and right else text
                store.append("images", ImageRecord.model_validate({
                    "unit": "image", "id": unit, "prompt_id": str(index), "prompt": text, "original": prompt,
                    "encoder": encoder, "protocol": protocol, "source": source, "k": k, "seed_index": 0, "seed": index,
                    "image": image, "given": given, "truncated": False,
                }))  # fmt: skip
                drift = None if protocol == "clean" else (0.05 if right else 0.2) + 0.01 * (index % 3)
                score: dict[str, float | None] = {
                    "clip_score": (28 if right else 19) + math.sin(index),
                    "clip_score_attacked_caption": 22 + math.sin(index),
                    "scene_correct": right if scenes else None,
                    "drift": drift,
                }
                store.append("scores", ScoreRecord.model_validate({"unit": "score", "id": unit, **score}))
                for metric, field in (
                    ("scene_accuracy", "scene_correct"),
                    *((m, m) for m in score if m != "scene_correct"),
                ):
                    if (value := score[field]) is not None:
                        values.setdefault((*cell, metric), {})[str(index)] = float(value)
        store.write_results(results(values, list(hold), store, attacked))
    return folder


def cells(hold: dict[str, float], ks: tuple[int, ...]) -> Iterator[tuple[str, str, str | None, int]]:
    for encoder in hold:
        yield encoder, "clean", None, 0
        for k in ks:
            yield encoder, "adaptive", encoder, k
            for source in dict.fromkeys([next(iter(hold)), "judge"]):
                yield encoder, "transfer", source, k
    yield next(iter(hold)), "floor", None, 0


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def results(values: dict[Any, dict[str, float]], labels: list[str], store: RunStore, attacked: bool) -> RunResults:
    rows = []

    leading = next(
        (metric for metric in ("scene_accuracy", "clip_score") if any(metric in key for key in values)), "drift"
    )

    def add(key: tuple[Any, ...], baseline: str | None, interval: Any) -> None:
        encoder, protocol, source, k, metric = key
        compared = {} if baseline is None else {"p": interval.p, "p_adjusted": interval.p}
        if [encoder, protocol, k, metric, baseline] == [*labels[1:2], "adaptive", 1, leading, labels[0]]:
            compared["main"] = True
        rows.append({
            "encoder": encoder, "baseline": baseline, "protocol": protocol, "source": source,
            "attack": "charmer" if source else None, "constraint": "no-new-words" if source else None, "k": k,
            "metric": metric, "mean": interval.mean, "ci_low": finite(interval.ci_low),
            "ci_high": finite(interval.ci_high),
            "n": interval.n, "seeds": 1, **compared,
        })  # fmt: skip

    for key, found in values.items():
        encoder, protocol, source, k, metric = key
        if protocol == "floor" and metric != "drift":
            continue
        add(key, None, mean_interval(found, share=is_share(metric)))
        for baseline in labels:
            if protocol != "floor" and labels.index(encoder) > labels.index(baseline) in (0, 2):
                other = (baseline, protocol, baseline if protocol == "adaptive" else source, k, metric)
                add(key, baseline, mean_interval(found, values[other], share=is_share(metric)))
    for number, label in enumerate(labels[1:], 1):
        moved = {"mean": 0.01 * number, "ci_low": 0.005 * number, "ci_high": 0.02 * number, "n": 12, "seeds": 1}
        row = dict.fromkeys(("baseline", "source", "attack", "constraint"))
        rows.append({**row, "encoder": label, "protocol": "clean", "k": 0, "metric": "drift", **moved})
    for encoder, protocol, source, k in cells(dict.fromkeys(labels, 1.0), (1, 2) if attacked else ()):
        if protocol != "floor":
            for metric, value in (("kid", 0.0123), ("cmmd", 1.5), ("frechet", 44.0)):
                row = dict.fromkeys(("baseline", "attack", "constraint", "ci_low", "ci_high"))
                rows.append({**row, "encoder": encoder, "protocol": protocol, "source": source, "k": k, "metric": metric,
                             "mean": value * (1 + k), "n": 12, "seeds": 1})  # fmt: skip
    attacks = [
        {"source": s, "k": k, "n": 12, "unchanged": 1, "truncated": 0, "distance": k, "score": 3.1, "queries": 2001.0,
         "unseen_tokens": 0.25}
        for s in labels for k in (1, 2)
    ]  # fmt: skip
    counts = {"images": 300, "drawn": 280, "truncated": 0, "given_unchanged": 7}
    return RunResults.model_validate({
        "rows": rows, "attacks": attacks if attacked else [], "counts": counts,
        "feature_space": "world:judge image features", "real_images": 500,
    })  # fmt: skip
