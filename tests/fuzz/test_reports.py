"""Each field of each record and of the results lost, or of another type: a report, or an error that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leaf_diffusion.reports import html, write_comparison, write_report
from leaf_diffusion.reports.plots import plot_over_k
from leaf_diffusion.reports.results import Results
from leaf_diffusion.reports.table import results_table
from leaf_diffusion.reports.text_tables import latex, markdown
from leaf_diffusion.runs import RunResults, RunSpec, RunStore, image_name, load_run
from leaf_diffusion.runs.log import encode
from leaf_diffusion.runs.records import KINDS

WRONG = [None, True, -1, 2, 0.5, 10**15, 10**40, "", "x", [["x"]], {"x": 1}]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two encoders, clean, attacked and the floor; one prompt."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    folder, rows = tmp_path / "run", []
    cells = [
        (e, *c)
        for e in ("original", "leaf")
        for c in (("clean", None, 0), ("adaptive", e, 1), ("transfer", "judge", 1))
    ]
    with RunStore.open(folder, RunSpec({"pipeline": "world"})) as store:
        for encoder, protocol, source, k in [*cells, ("original", "floor", None, 0)]:
            unit, text = f"{encoder}{protocol}", "a cat" + "x" * k
            image = store.save_image(image_name(unit), Image.new("RGB", (8, 8), "red"))
            if k:
                store.append("attacks", KINDS["attacks"].model_validate({
                    "id": unit, "prompt_id": "p", "prompt": "a cat", "perturbed": text, "source": source, "k": k,
                    "truncated": False, "attack": "charmer", "constraint": "none", "distance": 1, "score": 0.5,
                    "queries": 9, "unseen_tokens": 0.1, "shattered": [["cat", "x"]],
                }))  # fmt: skip
            store.append("images", KINDS["images"].model_validate({
                "id": unit, "prompt_id": "p", "prompt": text, "original": "a cat", "given": text, "encoder": encoder,
                "protocol": protocol, "source": source, "k": k, "seed_index": 0, "image": image, "truncated": False,
            }))  # fmt: skip
            values = {"clip_score": 20.0, "clip_score_attacked_caption": 21.0, "drift": 0.1, "drift_features": 0.2}
            store.append("scores", KINDS["scores"].model_validate({"id": unit, "scene_correct": not k, **values}))
            for metric in ("scene_accuracy", *values):
                row = {"encoder": encoder, "baseline": None, "protocol": protocol, "source": source, "attack": None}
                row |= {"constraint": None, "k": k, "metric": metric, "mean": 0.5, "ci_low": 0.1, "ci_high": 0.9}
                rows.append(row | {"n": 1, "seeds": 1})
                if encoder == "leaf":
                    rows.append(rows[-1] | {"baseline": "original"})
        counts = {"images": 7, "drawn": 7, "truncated": 0, "given_unchanged": 0}
        one = {"source": "judge", "k": 1, "n": 1, "unchanged": 0, "truncated": 0}
        one |= dict.fromkeys(("distance", "score", "queries", "unseen_tokens"), 0.5)
        more = {"attacks": [one], "counts": counts, "feature_space": "x", "real_images": 3}
        store.write_results(RunResults.model_validate({"rows": rows, **more}))
    return folder


def spoiled(value: dict[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """(field, the object without it or with something else there)"""
    for name in value:
        yield name, {key: other for key, other in value.items() if key != name}
        for wrong in WRONG:
            yield name, value | {name: wrong}


def everything(run: Path) -> None:
    """All that reads a finished run."""
    write_report(run)
    write_comparison(run, run)
    results = Results.of(load_run(run))
    for show in (results_table, markdown, latex):
        show(results)


def read_or_refused(read: Callable[[], None], *named: str) -> bool:
    """Whether it was refused; the message has to name everything."""
    try:
        read()
    except (ValueError, OSError) as error:
        if missing := [name for name in named if name not in str(error)]:
            raise AssertionError(f"the message does not name {missing}") from error
        return True
    return False


@pytest.mark.parametrize("kind", ["attacks", "images", "scores"])
def test_records(kind: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "plot_over_k", lambda *_: [])  # drawn from the results alone
    path = run / "records" / f"{kind}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    at = 1  # an attacked image, and a line in the middle
    record = json.loads(lines[at])
    del record["sum"]
    everything(run)
    refused = 0
    for name, changed in spoiled(record):
        path.write_bytes(b"".join([*lines[:at], encode(changed) + b"\n", *lines[at + 1 :]]))
        refused += read_or_refused(lambda: everything(run), str(path), f"line {at + 1}", f'"{name}"')
    assert refused > 2 * len(record)


@pytest.mark.parametrize("part", ["clean row", "attacked row", "difference", "floor", "attacks", "counts", "top"])
def test_results(part: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "results.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    rows = {
        "clean row": lambda row: row["protocol"] == "clean" and row["baseline"] is None,
        "attacked row": lambda row: row["k"] and row["baseline"] is None,
        "difference": lambda row: row["baseline"] is not None,
        "floor": lambda row: row["protocol"] == "floor" and row["metric"] == "drift",
    }
    places: dict[str, tuple[Any, int | str]]  # a list or an object of the JSON, and where in it
    if part in rows:
        at = next(i for i, row in enumerate(whole["rows"]) if rows[part](row))
        places = {part: (whole["rows"], at)}
    else:
        places = {"attacks": (whole["attacks"], 0), "counts": (whole, "counts"), "top": ([whole], 0)}
    place, key = places[part]
    original, refused = place[key], 0
    for name, changed in spoiled(original):
        with_plots = part == "attacked row" and name in ("mean", "ci_low", "k")  # drawing takes its time
        monkeypatch.setattr(html, "plot_over_k", plot_over_k if with_plots else lambda *_: [])
        place[key] = changed
        path.write_text(json.dumps(changed if part == "top" else whole), encoding="utf-8")
        refused += read_or_refused(lambda: everything(run), str(run), "" if name == "rows" else f'"{name}"')
    assert refused > 2 * len(original)
