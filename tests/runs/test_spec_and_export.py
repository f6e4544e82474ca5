import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaf_diffusion.runs import DamagedRecords, RunSpec, RunStore, load_run, results_csv, write_results
from leaf_diffusion.runs.export import COLUMNS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def row(**values: object) -> dict[str, object]:
    filled: dict[str, object] = {
        "encoder": "leaf",
        "protocol": "clean",
        "k": 0,
        "metric": "drift",
        "mean": 0.5,
        "n": 3,
        "seeds": 1,
    }
    return dict.fromkeys(COLUMNS) | filled | values


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
    results = {"rows": [row(encoder="leaf", ci_low=float("nan")), row(encoder="x", note="=1")], "counts": {"n": 1}}
    with RunStore.open(tmp_path, RunSpec({})) as store:
        store.write_results(results)
    found = load_run(tmp_path).results
    assert found["rows"][0] == row(encoder="leaf", ci_low=None)
    assert found["counts"] == {"n": 1}
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert (table[0]["encoder"], table[0]["mean"], table[0]["ci_low"], table[1]["note"]) == ("leaf", "0.5", "", "'=1")
    with pytest.raises(ValueError, match='row 0: the field "ci_high" is missing'):
        write_results(tmp_path, {"rows": [{k: v for k, v in row().items() if k != "ci_high"}]})
    with pytest.raises(ValueError, match='row 1: the field "n" has to be a valid integer'):
        write_results(tmp_path, {"rows": [row(), row(n="3")]})
    with pytest.raises(ValueError, match='hold "rows"'):
        write_results(tmp_path, {})


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
    assert (run.results["rows"], run.records("images")) == ([], [])
    with pytest.raises(ValueError, match="outside"):
        run.image_path("../../etc/passwd")
    (tmp_path / "run" / "spec.json").write_text("{")
    with pytest.raises(ValueError, match=r"spec\.json is damaged"):
        load_run(tmp_path / "run")


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, RunSpec({})) as store:
        store.append("drawings", {"id": "a"})
        store.write_results({"rows": []})
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
            load_run(tmp_path).records("drawings")
        path.write_text(f'{{"id": "b"}}\n{line}\n')
        with pytest.raises(DamagedRecords, match=r"drawings\.jsonl, line 2 is damaged"):
            load_run(tmp_path).records("drawings")
        path.write_text(f'{{"id": "b"}}\n{line}')  # as a crash leaves it, or while it is being written
        assert load_run(tmp_path).records("drawings") == [{"id": "b"}]
