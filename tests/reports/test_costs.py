"""What a swap costs, in the main report: from the run's own rows, and from a swap-cost run's that are kept beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leaf_diffusion.cli.report import report
from leaf_diffusion.reports import write_report
from leaf_diffusion.reports.costs import condition_costs, own_costs, read_swap_cost
from leaf_diffusion.reports.results import Results
from leaf_diffusion.runs import ResultRow, RunSpec, load_run
from leaf_diffusion.runs.results import CostRow, SwapCosts

Make = Callable[..., Path]


def row(encoder: str, metric: str, mean: float, baseline: str | None = None, **more: object) -> ResultRow:
    fixed = {"source": None, "attack": None, "constraint": None, "k": 0, "n": 20, "seeds": 1}
    around = {"ci_low": mean - 0.04, "ci_high": mean + 0.04}
    named = {"encoder": encoder, "baseline": baseline, "protocol": "clean", "metric": metric, "mean": mean}
    compared = {} if baseline is None else {"p_adjusted": 0.001}
    return ResultRow.model_validate({**named, **around, **fixed, **compared, **more})


ROWS = [
    row("original", "scene_accuracy", 0.90),
    row("leaf", "scene_accuracy", 0.80),
    row("leaf", "scene_accuracy", -0.10, "original"),
    row("original", "sensitivity", 0.95, n=44),
    row("leaf", "sensitivity", 0.97, n=44),
    row("leaf", "sensitivity", 0.02, "original", n=44),
    row("leaf", "drift", 0.11, n=19),
    row("original", "drift", 0.25, protocol="floor"),
    row("original", "scene_accuracy", 0.2, protocol="adaptive", source="original", k=1),
    row("leaf", "drift", 0.31, protocol="adaptive", source="leaf", k=1),
]


def swap_row(
    condition: str, encoder: str, metric: str, mean: float, baseline: str | None = None, **more: object
) -> dict[str, object]:
    made = row(encoder, metric, mean, baseline, **more).model_dump(include=set(CostRow.model_fields))
    return {**made, "condition": condition}


SWAP_ROWS = [
    swap_row("plain", "original", "scene_accuracy", 0.9),
    swap_row("plain", "leaf", "scene_accuracy", 0.9),
    swap_row("plain", "leaf", "scene_accuracy", 0.0, "original"),
    swap_row("lora", "original", "scene_accuracy", 0.8),
    swap_row("lora", "leaf", "scene_accuracy", 0.3),
    swap_row("lora", "leaf", "scene_accuracy", -0.5, "original"),
    swap_row("lora", "leaf", "drift", 0.12),
    swap_row("lora", "original", "drift", 0.21, protocol="floor"),
]
SWAP = {
    "identity": "0123456789abcdef",
    "conditions": [{"key": "plain", "title": "plain prompts"}, {"key": "lora", "title": "<b>LoRA</b>"}],
    "rows": SWAP_ROWS,
}


def test_a_line_a_metric_with_the_difference_beside_the_mean() -> None:
    (matrix,) = own_costs(Results(ROWS))
    assert list(matrix.columns) == ["original", "leaf"]
    lines = {label: ([(cell.text, cell.sub, cell.tone) for cell in cells], n) for label, cells, n in matrix.lines}
    assert lines == {
        "Right images": ([("90%", "86 to 94", ""), ("80%", "−10 (−14 to −6)", "bad")], "20"),
        "Sensitivity": ([("95%", "91 to 99", ""), ("97%", "+2 (−2 to 6)", "")], "44"),
        "Pixels moved": ([("0.250", "another noise", ""), ("0.110", "0.070 to 0.150", "")], "19–20"),
    }
    assert own_costs(Results([each for each in ROWS if each.encoder == "original"])) == []


def test_the_drift_of_a_swap_is_no_attacks() -> None:
    results = Results(ROWS)
    assert [setting.label for setting in results.settings_of("drift")] == ["attacked on itself, k=1"]
    assert all(each.mean != 0.11 for each in results.rows)
    swap = results.swap_drift("leaf", "drift")
    assert swap is not None
    assert swap.mean == 0.11


def test_conditions_of_another_run() -> None:
    right, moved = condition_costs(SwapCosts.model_validate(SWAP), Results(ROWS))
    assert [label for label, *_ in right.lines] == ["plain prompts", "<b>LoRA</b>"]
    assert [(cell.text, cell.sub, cell.tone) for cell in right.lines[1][1]] == [
        ("80%", "76 to 84", ""),
        ("30%", "−50 (−54 to −46)", "bad"),
    ]
    assert [(label, [cell.text for cell in cells]) for label, cells, _ in moved.lines] == [
        ("<b>LoRA</b>", ["0.210", "0.120"])
    ]


def test_the_section_stands_in_the_report(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(n=3)
    path = run / "results.json"
    html = write_report(run).read_text()
    assert 'href="#cost"' in html
    assert html.count(">Pixels moved<") == 1
    assert "by what else a pipeline is given" not in html
    found = json.loads(path.read_text())
    found["swap_cost"] = SWAP
    more = [row("original", "sensitivity", 0.95, n=44), row("leaf", "sensitivity", 0.97, n=44)]
    found["rows"] += [each.model_dump(exclude_unset=True) for each in more]
    path.write_text(json.dumps(found))
    html = write_report(run).read_text()
    assert "Right images, by what else a pipeline is given" in html
    assert "run 01234567 of swap-cost" in html
    assert "&lt;b&gt;LoRA&lt;/b&gt;" in html
    assert "<b>LoRA" not in html
    assert html.count("share of minimal pairs") == 1
    assert report([str(run), "--tables", "markdown", "--metrics", "drift"]) == 0
    assert "clean prompts" not in capsys.readouterr().out
    one = make_run("alone", n=2, encoders={"original": 0.1})
    assert 'id="cost"' not in write_report(one).read_text()


def test_damaged_costs_are_refused_with_their_place(make_run: Make) -> None:
    run = make_run(n=2)
    path = run / "results.json"
    found = json.loads(path.read_text())
    for wrong, said in (
        ({**SWAP, "rows": [{**SWAP_ROWS[0], "mean": "0.5"}]}, 'item 0, the field "mean" has to be'),
        ({**SWAP, "conditions": [{"key": "plain"}]}, 'item 0, the field "title" is missing'),
        ({"rows": []}, 'the field "conditions" is missing'),
        ([], "a valid dictionary"),
    ):
        path.write_text(json.dumps(found | {"swap_cost": wrong}))
        with pytest.raises(ValueError, match="is damaged") as error:
            Results.of(load_run(run))
        assert said in str(error.value)


def test_a_folder_is_read_or_refused(tmp_path: Path, make_run: Make) -> None:
    with pytest.raises(FileNotFoundError, match=r"no results\.json; give the folder of a finished swap-cost run"):
        read_swap_cost(tmp_path)
    with pytest.raises(ValueError, match="another experiment"):
        read_swap_cost(make_run(n=2))
    folder = tmp_path / "swap"
    folder.mkdir()
    spec = RunSpec({"experiment": "swap-cost", "encoders": {"original": "a", "leaf": "b"}, "pipeline_weights": "w"})
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    more = {"source": None, "k": 0}  # columns that the costs have no use for
    rows = [{**each, **more} for each in SWAP_ROWS]
    (folder / "results.json").write_text(json.dumps({**SWAP, "rows": rows, "environment": {"command": "x"}}))
    found, settings = read_swap_cost(folder)
    assert (settings.encoders, settings.pipeline_weights) == ({"original": "a", "leaf": "b"}, "w")
    assert found == SwapCosts.model_validate(SWAP | {"identity": spec.identity})
    (folder / "results.json").write_text(json.dumps(SWAP)[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        read_swap_cost(folder)
