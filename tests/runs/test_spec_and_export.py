import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaf_diffusion.runs import DamagedRecords, RunResults, RunSpec, RunStore, load_run, results_csv
from leaf_diffusion.runs.records import ImageRecord, Record
from leaf_diffusion.runs.results import COLUMNS, EvaluationResults, ResultRow, SwapCosts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def row(**values: object) -> ResultRow:
    filled = {"encoder": "leaf", "protocol": "clean", "k": 0, "metric": "drift", "mean": 0.5, "n": 3, "seeds": 1}
    return ResultRow.model_validate({**dict.fromkeys(COLUMNS), **filled, **values})


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_identity_depends_on_values_alone(settings: dict[str, object]) -> None:
    spec = RunSpec(settings)
    assert spec.identity == RunSpec(dict(reversed(settings.items()))).identity
    again = RunSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again.identity == spec.identity
    assert again.differences(spec) == []
    changed = RunSpec(settings | {"one more": 1})
    assert changed.identity != spec.identity
    assert "one more: (absent) there, 1 asked" in changed.differences(spec)


def test_settings_that_only_nest_differently_differ() -> None:
    assert RunSpec({"a.b": 1}).differences(RunSpec({"a": {"b": 1}}))


def test_settings_are_copied_and_checked() -> None:
    settings = {"k": [1]}
    spec = RunSpec(settings)
    settings["k"].append(2)
    assert spec.settings == {"k": [1]}
    for bad in (float("nan"), {1, 2}, Path(), "caf\udce9"):
        with pytest.raises(ValueError, match="only JSON values"):
            RunSpec({"bad": bad})
    with pytest.raises(ValueError, match="edited by hand"):
        RunSpec.from_dict(spec.to_dict() | {"settings": {"k": [3]}})
    with pytest.raises(ValueError, match="settings"):
        RunSpec.from_dict({})


def test_results_are_written_for_people_and_machines(tmp_path: Path) -> None:
    rows = [row(encoder="leaf", ci_low=None), row(encoder="x", note="=1", eps=4)]
    swap = {"identity": "0", "rows": [], "conditions": [{"key": "plain", "title": "plain"}]}
    more = {"counts": {"n": 1}, "far": float("nan"), "swap_cost": SwapCosts.model_validate(swap)}
    with RunStore.open(tmp_path, RunSpec({})) as store:
        store.write_results(RunResults.model_validate({"rows": rows, **more}))
    assert load_run(tmp_path).results.rows == rows
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == {
        "rows": [each.model_dump(exclude_unset=True) for each in rows],
        **more,
        "far": None,
        "swap_cost": swap,
    }
    assert list(found["rows"][1]) == [*COLUMNS, "eps", "note"]
    assert load_run(tmp_path).read_results(EvaluationResults).swap_cost == more["swap_cost"]
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert (table[0]["encoder"], table[0]["mean"], table[0]["ci_low"], table[1]["note"]) == ("leaf", "0.5", "", "'=1")
    path = tmp_path / "results.json"
    for name, wrong, said in (
        ("ci_high", None, "is missing"),
        ("n", "3", "has to be a valid integer"),
        ("eps", "4", "has to be a finite number"),
        ("protocol", "other", "has to be 'clean'"),
    ):
        spoiled = row().model_dump(exclude_unset=True) | {name: wrong}
        if wrong is None:
            del spoiled[name]
        path.write_text(json.dumps({"rows": [found["rows"][0], spoiled]}))
        with pytest.raises(ValueError, match=rf'results\.json is damaged: .*item 1, the field "{name}" {said}'):
            _ = load_run(tmp_path).results


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(A1)", "＝1"])
def test_text_is_never_a_formula_and_numbers_stay_numbers(text: str) -> None:
    (cells,) = csv.DictReader(io.StringIO(results_csv([row(encoder=text, mean=-0.25)]), newline=""))
    assert cells["encoder"] == "'" + text
    assert cells["mean"] == "-0.25"


def test_no_run_folder_and_paths_that_leave_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        load_run(tmp_path)
    RunStore.open(tmp_path / "run", RunSpec({})).close()
    run = load_run(tmp_path / "run")
    assert (run.results.rows, run.records("images", ImageRecord)) == ([], [])
    with pytest.raises(ValueError, match="outside"):
        run.image_path("../../etc/passwd")
    (tmp_path / "run" / "spec.json").write_text("{")
    with pytest.raises(ValueError, match=r"spec\.json is damaged"):
        load_run(tmp_path / "run")


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, RunSpec({})) as store:
        store.append("drawings", Record(id="a"))
        store.write_results(RunResults(rows=[]))
    right = {path: path.read_text() for path in tmp_path.rglob("*.json*")}
    for content in ("{", "[1]", "null", "\ufeff{}", "[" * 50_000, '{"x": "\\ud800"}', '{"x": ' + "9" * 5000 + "}"):
        (tmp_path / "environment.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"environment\.json is damaged"):
            load_run(tmp_path)
    (tmp_path / "environment.json").write_text(right[tmp_path / "environment.json"])
    for content in ("{", '{"rows": null}', '{"rows": [1]}', '{"rows": [{"encoder": "leaf"}]}'):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match=r"results\.json is damaged"):
            _ = load_run(tmp_path).results
    (tmp_path / "spec.json").write_text("[" * 50_000)
    with pytest.raises(ValueError, match=r"spec\.json is damaged"):
        load_run(tmp_path)
    (tmp_path / "spec.json").write_text(right[tmp_path / "spec.json"])
    path = tmp_path / "records" / "drawings.jsonl"
    for line in ("[" * 50_000, '{"id": "\\ud800"}', '{"id": ' + "9" * 5000 + "}"):
        path.write_text(f'{line}\n{{"id": "b"}}\n')
        with pytest.raises(DamagedRecords, match=r"drawings\.jsonl, line 1 is damaged"):
            load_run(tmp_path).records("drawings", Record)
        path.write_text(f'{{"id": "b"}}\n{line}\n')
        with pytest.raises(DamagedRecords, match=r"drawings\.jsonl, line 2 is damaged"):
            load_run(tmp_path).records("drawings", Record)
        path.write_text(f'{{"id": "b"}}\n{line}')  # as a crash leaves it, or while it is being written
        assert load_run(tmp_path).records("drawings", Record) == [Record(id="b")]
