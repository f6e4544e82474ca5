"""The report as a reader gets it: safe, whole, bounded, and honest in its words."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leaf_diffusion.cli.report import report
from leaf_diffusion.reports import html, sections, write_report
from leaf_diffusion.reports.compare import Mean
from leaf_diffusion.reports.gallery import save_overview
from leaf_diffusion.reports.results import METRICS
from leaf_diffusion.runs import RunSpec, RunStore, load_run
from leaf_diffusion.runs.records import ImageRecord

Make = Callable[..., Path]
EVIL = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "a \u202egnp.exe & <b>bold</b>",
    "</style><svg onload=alert(1)>",
    "javascript:alert(1) é 猫",
]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_hostile_texts_stay_text_and_nothing_is_fetched(make_run: Make) -> None:
    run = make_run(prompts=EVIL, encoders={"<i>original</i>": 0.1, 'leaf" onload="x': 0.8})
    found = page(run)
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "form", "base"}
    assert not [a for _, a in found.tags if any(key.startswith("on") for key in a)]
    for prompt in EVIL:
        assert prompt in found.text
    (policy,) = [m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'; img-src data:;")
    images = found.all("img")
    assert images and all((image["src"] or "").startswith("data:image/") for image in images)
    for tag, attributes in found.tags:
        for name in ("href", "xlink:href", "src", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/")), (tag, value[:50])
    assert not re.search(r"url\((?!#)", write_report(run).read_text())


def test_the_sections_a_reader_looks_for_are_there(make_run: Make) -> None:
    found = page(make_run())
    for said in (
        "Under one-character adaptive attacks (k=1) the encoder “leaf” keeps",
        "Without an attack:",
        "attacked on judge, k=2",
        "leaf − original",
        "original+speller − typo-augmented",
        "KID",
        "feature space “world:judge image features”",
        "500 real ones",
        "unseen tokens",
        "leaf-diffusion evaluate",
        "What was not counted",
        "attacked images whose encoder read the clean prompt",
        "drift from another noise",
        "read as:",
        "The other encoders under these attacks: “typo-augmented”",
        "of attacks found on judge are measured and not shown",
    ):
        assert said in found.text, said
    headings = [a["id"] for a in found.all("h2")]
    assert headings == [
        "tables",
        "differences",
        "cost",
        "plots",
        "sets",
        "attacks",
        "gallery",
        "how",
        "run",
        "uncounted",
    ]
    ids = [a["id"] for _, a in found.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "").removeprefix("#") for a in found.all("a")}
    assert links <= set(ids)
    assert len(found.all("svg")) == 9  # three metrics; on itself, on original, on judge
    images = found.all("img")
    assert images and all(image["alt"] for image in images)
    assert {"ins", "del"} <= {tag for tag, _ in found.tags}
    assert "tokens<i>umbr" in found.text  # escaped, piece by piece


def test_the_same_run_gives_the_same_bytes(make_run: Make) -> None:
    run = make_run(n=3)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_large_images_become_thumbnails_and_the_file_stays_small(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(n=4, size=256, ks=(1,))
    whole = page(run)
    assert any("image/jpeg" in (image["src"] or "") for image in whole.all("img"))
    assert not any(image["class"] == "px" for image in whole.all("img"))
    monkeypatch.setattr(html, "MAX_BYTES", html._RESERVED + 60_000)
    cut = page(run)
    shown = [a for a in cut.all("section") if (a.get("class") or "").startswith("prompt")]
    left_out = re.search(r"(\d) more prompts are in the run folder", cut.text)
    assert left_out is not None
    assert len(shown) + int(left_out[1]) == 4
    assert 0 < len(shown) < 4


def test_a_run_with_nothing_but_drift_or_without_attacks_still_reports(make_run: Make) -> None:
    bare = page(make_run("clean", attacked=False, n=3))
    assert "says nothing about robustness" in bare.text
    plain = page(make_run("plain", scenes=False, n=3, encoders={"original": 0.2, "original+speller": 0.7}))
    assert "reach a CLIPScore of" in plain.text
    assert "Right images" not in plain.text
    alone = page(make_run("alone", n=1, ks=(1,), encoders={"original": 0.0}))
    assert "stands alone" in alone.text


def test_results_with_gaps_or_without_records_still_report(make_run: Make) -> None:
    run = make_run(n=3, ks=(1,), encoders={"original": 0.0, "leaf": 1.0})
    path = run / "results.json"
    found = json.loads(path.read_text())
    found["rows"] = [r for r in found["rows"] if (r["encoder"], r["protocol"]) != ("leaf", "adaptive")]
    path.write_text(json.dumps({"rows": found["rows"]}))
    gaps = page(run)
    assert "“leaf” and “original” were not measured together" in gaps.text
    assert "an unrecorded number of real ones" in gaps.text
    for name in ("images", "scores"):
        (run / "records" / f"{name}.jsonl").write_text("")
    bare = page(run)
    assert not bare.all("img")
    assert "prompts0" in bare.text


def test_missing_and_damaged_images_are_shown_as_such_and_counted(make_run: Make) -> None:
    run = make_run(n=3, ks=(1,), encoders={"original": 0.0, "leaf": 1.0})
    shown = [each for each in load_run(run).records("images", ImageRecord) if each.protocol != "floor"]
    images = [run / record.image for record in shown]
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:50])
    found = page(run)
    assert "image missing" in found.text
    assert "they count2images missing or damaged" in found.text


def test_what_is_no_finished_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path)
    RunStore.open(tmp_path / "new", RunSpec({})).close()
    with pytest.raises(ValueError, match="no results yet"):
        report([str(tmp_path / "new")])


def test_the_command_prints_a_table_of_100_columns(
    make_run: Make, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run = make_run()
    assert report([str(run)]) == 0
    shown = capsys.readouterr().out
    assert "itself, k=2" in shown
    assert "– (clean)" in shown
    assert "original+speller" in shown
    assert str(run / "report.html") in shown.replace("\n", "")
    assert all(len(line) <= 100 for line in shown.splitlines() if "report:" not in line)


def test_tables_for_a_readme_and_a_paper(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(encoders={"original": 0.1, "a_b|c & 100%": 0.8})
    (run / "report.html").unlink(missing_ok=True)
    assert report([str(run), "--tables", "markdown", "--metrics", "scene_accuracy", "drift"]) == 0
    said = capsys.readouterr().out
    assert said.count("|---|---|---|---|") == 2
    assert "a\\_b\\|c & 100%" in said
    assert re.search(r"\| attacked on itself, k=1 \| \d+% \[\d+ to \d+\] \| \d+% \[\d+ to \d+\] \| 12 \|", said)
    assert report([str(run), "--tables", "latex"]) == 0
    said = capsys.readouterr().out
    assert said.count(r"\begin{tabular}{lrrr}") == said.count(r"\end{table}") == 7
    assert r"a\_b|c \& 100\%" in said
    assert not re.search(r"(?<!\\)%(?! needs)", said)
    with pytest.raises(ValueError, match="has not measured fid"):
        report([str(run), "--tables", "latex", "--metrics", "fid"])
    assert not (run / "report.html").exists()


def test_the_overview_shows_baseline_and_robust_encoder(make_run: Make, tmp_path: Path) -> None:
    assert report([str(make_run()), "--overview", str(tmp_path / "overview.png")]) == 0
    with Image.open(tmp_path / "overview.png") as image:
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 100
    with pytest.raises(ValueError, match="no attacked images"):
        save_overview(make_run(attacked=False), tmp_path / "none.png")


def test_a_bar_covers_its_interval() -> None:
    row = Mean(0.5, 0.25, 0.75, 9, 9)
    cell = sections.mean_cell(row, METRICS["scene_accuracy"])
    assert (cell.text, cell.sub, cell.bar) == ("50%", "25 to 75", (25, 50, 75))
