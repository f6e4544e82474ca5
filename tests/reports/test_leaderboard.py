"""The leaderboard: what stands in it, what it refuses, and that its page runs nothing but its own sorting."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from leaf_diffusion.cli.main import main
from leaf_diffusion.reports.leaderboard import check_comparable, write_leaderboard
from leaf_diffusion.runs import Run, RunSpec, load_run

Make = Callable[..., Path]


def of(folder: Path, **settings: object) -> Run:
    """The run with other settings."""
    run = load_run(folder)
    return replace(run, spec=RunSpec({**run.spec.settings, **settings}))


def test_encoders_of_all_runs_stand_in_one_table_each_linked_to_its_run(make_run: Make, tmp_path: Path) -> None:
    one, other = make_run("one", encoders={"original": 0.1, "leaf": 0.9}), make_run("a b", encoders={"control": 0.5})
    path = tmp_path / "pages" / "board.html"
    path.parent.mkdir()
    page = write_leaderboard([one, other], path, ["scene_accuracy"]).read_text()
    rows = re.findall(r'<tr><th scope="row"><bdi>(.*?)</bdi>(.*?)</tr>', page, re.DOTALL)
    assert {name for name, _ in rows} == {"original", "leaf", "control"}
    assert [name for name, _ in rows].index("leaf") == 0  # best under the first attack
    assert 'href="../one/results.json"' in dict(rows)["leaf"]
    assert 'href="../a%20b/results.json"' in dict(rows)["control"]
    expected = {r.encoder: r.mean for r in load_run(one).results.rows if (r.metric, r.k, r.baseline) == ("scene_accuracy", 1, None)
                and r.protocol == "adaptive"}  # fmt: skip
    assert f'data-number="{expected["leaf"]}"' in dict(rows)["leaf"]
    assert "an upper bound on robustness" in page


def test_the_only_script_is_the_one_that_the_page_allows(make_run: Make, tmp_path: Path) -> None:
    page = write_leaderboard([make_run()], tmp_path / "board.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{allowed}'" in page


def test_runs_of_other_prompts_or_judges_are_refused_with_what_differs(make_run: Make, tmp_path: Path) -> None:
    one, other = make_run("one"), make_run("other", prompts=["a cat", "a dog"])
    with pytest.raises(ValueError, match="cannot stand in one table: prompts"):
        write_leaderboard([one, other], tmp_path / "board.html")
    with pytest.raises(ValueError, match='judges: "y" there, "x" asked'):
        check_comparable([of(one, judges="y"), of(one, judges="x")])
    check_comparable([of(one, attack="charmer", k=[1]), of(one, attack="genetic", k=[2])])


def test_one_name_for_two_encoders_is_refused(make_run: Make) -> None:
    one = make_run("one")
    with pytest.raises(ValueError, match=r'"leaf" is one encoder in .* and another in'):
        check_comparable([of(one, encoders={"leaf": "12"}), of(one, encoders={"leaf": "34"})])


def test_searches_that_differ_are_columns_of_their_own(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run("one", encoders={"leaf": 0.5}, ks=(1,)), make_run("other", encoders={"control": 0.5}, ks=(1,))]
    told = [of(run, attack_parameters={"n_positions": n}) for run, n in zip(runs, (5, 20), strict=True)]
    page = write_leaderboard(told, tmp_path / "board.html", ["scene_accuracy"]).read_text()
    assert "k=1 (1)" in page
    assert "k=1 (2): {&#34;attack_parameters&#34;: {&#34;n_positions&#34;: 20}}" in page


def test_the_command_says_what_is_wrong(make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(make_run()), "--output", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").is_file()
    assert main(["leaderboard", str(tmp_path / "run"), "--metrics", "scene"]) == 2
    assert "no run has the metric 'scene'; there are: " in capsys.readouterr().err
    assert main(["leaderboard"]) == 2
    assert main(["leaderboard", str(tmp_path)]) == 2
