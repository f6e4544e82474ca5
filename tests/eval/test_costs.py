"""The costs of a swap in the evaluation: how far clean images move, and a swap-cost run's figures taken over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
from PIL import Image

from leaf_diffusion.eval.swap_cost import main as swap_cost
from leaf_diffusion.eval.t2i_robustness import main
from leaf_diffusion.evaluation.swap_cost import files
from leaf_diffusion.runs import ResultRow, RunSpec
from leaf_diffusion.runs.records import parse

SMALL = ["--limit", "2", "--steps", "2"]
EVALUATE = [*SMALL, "--k", "1", "--seeds", "2", "--attack", "random-typos", "--protocols", "adaptive"]
EVALUATE += ["--neutral-source", "none", "--encoders", "original", "leaf", "typo-augmented"]


@pytest.fixture(scope="module", autouse=True)
def short_translation() -> Iterator[None]:
    """Two steps in the place of two hundred."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "translate_file", partial(files.translate_file, steps=2))
        yield


@pytest.fixture(scope="module")
def swap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "swap"
    words = [*SMALL, "--train-steps", "1", "--encoders", "original", "leaf", "--output", str(folder)]
    assert swap_cost(words) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, swap: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*EVALUATE, "--swap-cost", str(swap), "--output", str(folder)]) == 0
    return folder


class SwapCost(TypedDict):
    """What a run keeps of a swap-cost run."""

    identity: str
    conditions: list[dict[str, str]]
    rows: list[dict[str, object]]


class Results(TypedDict):
    """What is read here of results.json."""

    rows: list[dict[str, object]]
    swap_cost: SwapCost


def results(folder: Path) -> Results:
    found: Results = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.slow
def test_clean_drift_is_measured_from_the_first_encoders_image_of_the_same_noise(run: Path) -> None:
    records = [json.loads(line) for line in (run / "records" / "images.jsonl").read_text().splitlines()]
    clean = {(r["encoder"], r["prompt_id"], r["seed_index"]): r["image"] for r in records if r["protocol"] == "clean"}
    moved: dict[str, list[float]] = {"original": [], "leaf": [], "typo-augmented": []}
    for (encoder, prompt, noise), image in clean.items():
        paths = (image, clean["original", prompt, noise])
        a, b = (np.asarray(Image.open(run / path), dtype=float) / 255 for path in paths)
        moved[encoder].append(np.sqrt(((a - b) ** 2).mean()))
    found = [parse(ResultRow, r) for r in results(run)["rows"]]
    rows = [r for r in found if (r.protocol, r.metric) == ("clean", "drift")]
    means = {r.encoder: r for r in rows if r.baseline is None}
    assert set(means) == {"leaf", "typo-augmented"}
    for label, each in means.items():
        assert each.mean == pytest.approx(np.mean(moved[label]), abs=1e-6)
        assert each.mean is not None and each.mean > 0
        assert (each.n, each.seeds) == (2, 2)
    assert {(r.encoder, r.baseline) for r in rows if r.baseline} == {("leaf", "typo-augmented")}
    scores = [json.loads(line) for line in (run / "records" / "scores.jsonl").read_text().splitlines()]
    by_id = {r["id"]: r for r in scores}
    for record in records:
        score, away = by_id[record["id"]], record["protocol"] == "clean" and record["encoder"] != "original"
        assert (score["swap_drift"] is None) == (score["swap_drift_features"] is None) == (not away)
        assert (score["drift"] is None) == (record["protocol"] == "clean")


@pytest.mark.slow
def test_a_swap_cost_runs_figures_are_taken_over_unchanged(run: Path, swap: Path) -> None:
    kept, theirs = results(run)["swap_cost"], results(swap)
    identity = json.loads((swap / "spec.json").read_text())["identity"]
    assert kept["identity"] == identity
    assert [each["key"] for each in kept["conditions"]] == ["plain", "negative", "long", "token", "translated", "lora"]
    assert kept["rows"] == [{name: row.get(name) for name in kept["rows"][0]} for row in theirs["rows"]]
    html = (run / "report.html").read_text()
    assert f"run {identity[:8]} of swap-cost" in html
    for title in ("Right images, by what else a pipeline is given", "learnt token", "translated token", "style LoRA"):
        assert title in html
    # no part of what the run is: given or not, the folder is the same run's
    assert main([*EVALUATE, "--output", str(run)]) == 0
    assert "swap_cost" not in results(run)
    assert "by what else a pipeline is given" not in (run / "report.html").read_text()


@pytest.mark.slow
def test_other_encoders_and_pipelines_are_refused(swap: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    def said(**changes: object) -> str:
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        settings = json.loads((swap / "spec.json").read_text())["settings"] | changes
        (other / "spec.json").write_text(json.dumps(RunSpec(settings).to_dict()))
        (other / "results.json").write_bytes((swap / "results.json").read_bytes())
        return refused(main, [*EVALUATE, "--swap-cost", str(other)])

    theirs = json.loads((swap / "spec.json").read_text())["settings"]["encoders"]
    assert "another pipeline than world" in said(pipeline_weights="0" * 64)
    assert "its 'leaf' is another encoder than this run's" in said(encoders=theirs | {"leaf": "0" * 64})
    assert "needed is 'original' as the first" in said(encoders={"original": theirs["original"]})
    assert "another experiment" in said(experiment="retrieve")
    assert "no results.json" in refused(main, [*EVALUATE, "--swap-cost", str(tmp_path)])
