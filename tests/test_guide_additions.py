"""What the guide adds is really added: in a copy of the package, by the files and the lines that its pages show."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide"
FILES = {"add-an-attack": 2, "add-a-metric": 2, "add-an-experiment": 2, "add-a-pipeline": 3, "add-an-encoder": 2}
"""Page -> how many files of the package the addition touches."""
NEW = re.compile(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHANGED = re.compile(r"^```diff\n--- (\S+)\n\+\+\+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CHECKS = {
    "add-an-attack": """
Path("prompts.txt").write_text("a red umbrella")
assert main("attack --prompts prompts.txt --attack doubled-letters --k 1 --output doubled.jsonl".split()) == 0
assert json.loads(Path("doubled.jsonl").read_text())["attack"] == "doubled-letters"
""",
    "add-a-metric": """
words = "--encoders original leaf --limit 2 --k 1 --attack leaf --protocols adaptive --steps 2 --output small"
assert main(["evaluate", *words.split()]) == 0
rows = [row for row in json.loads(Path("small/results.json").read_text())["rows"] if row["metric"] == "colour_shift"]
assert {row["protocol"] for row in rows} == {"adaptive"} and {row["n"] for row in rows} == {2}
assert [(row["encoder"], row["baseline"]) for row in rows] == [("original", None), ("leaf", None), ("leaf", "original")]
assert "Colour shift" in Path("small/report.html").read_text()
""",
    "add-an-experiment": """
assert main("word-order --encoders original leaf --limit 2 --output order".split()) == 0
rows = json.loads(Path("order/results.json").read_text())["rows"]
assert [(row["encoder"], row["baseline"]) for row in rows] == [("original", None), ("leaf", None), ("leaf", "original")]
assert main(["word-order", "--help"]) == 0
""",
    "add-a-pipeline": """
import diffusers
from leaf_diffusion import pipelines
from leaf_diffusion.diffusion.families import family_of
leaf = pipelines.LeafLatentConsistencyModelPipeline
assert family_of(leaf).leaf_class() is leaf and issubclass(leaf, diffusers.LatentConsistencyModelPipeline)
""",
    "add-an-encoder": """
from leaf_diffusion import load_text_encoder
encoder = load_text_encoder("gru:0")
assert type(encoder).__name__ == "GRUTextEncoder" and encoder.features([[49406, 320, 49407]]).shape == (1, 16)
""",
}
RUN = """
import json, sys, traceback
from pathlib import Path
from leaf_diffusion.cli.main import main
found = {}
for page, check in json.loads(sys.argv[1]).items():
    try:
        exec(check)
        found[page] = ""
    except BaseException:
        found[page] = traceback.format_exc()
Path("found.json").write_text(json.dumps(found))
"""


def text_of(page: str) -> str:
    return (GUIDE / f"{page}.md").read_text(encoding="utf-8")


def touched(page: str) -> set[str]:
    text = text_of(page)
    assert all(match[1] == match[2] for match in CHANGED.finditer(text))
    return {match[1] for pattern in (NEW, CHANGED) for match in pattern.finditer(text)}


@pytest.mark.parametrize("page", FILES)
def test_an_addition_touches_as_few_files_as_its_page_says(page: str) -> None:
    assert len(touched(page)) == FILES[page]
    assert f"\n## In the package: {FILES[page]} files\n" in text_of(page)
    assert {each.stem for each in GUIDE.glob("add-*.md")} == FILES.keys()


def copied(folder: Path) -> Path:
    """The package in a folder, as it is installed, with a link in the place of the weights."""
    package = folder / "leaf_diffusion"
    skipped = shutil.ignore_patterns("__pycache__", "weights")
    for source, target in (("leaf_diffusion", ""), ("eval", "eval"), ("pipelines", "pipelines")):
        shutil.copytree(ROOT / source, package / target, ignore=skipped, dirs_exist_ok=True)
    shutil.copytree(ROOT / "leaf_diffusion" / "weights", package / "weights", dirs_exist_ok=True)
    (package / "world" / "weights").symlink_to(ROOT / "leaf_diffusion" / "world" / "weights")
    return package


def place(package: Path, name: str) -> Path:
    """Where a file of the repository lies in the copy."""
    return package / name.removeprefix("leaf_diffusion/")


def changed(text: str, hunks: str) -> str:
    """A text after the hunks of a diff, each of which has to fit at one place."""
    for hunk in hunks.split("@@\n")[1:]:
        old, new = ("".join(line[1:] for line in hunk.splitlines(True) if line[0] in f" {sign}") for sign in "-+")
        assert text.count(old) == 1, f"the page's lines stand {text.count(old)} times in the file:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Page -> what went wrong in the copy in which everything was added; "" for nothing."""
    folder = tmp_path_factory.mktemp("additions")
    package = copied(folder)
    for page in FILES:
        text = text_of(page)
        for name in {match[1] for match in NEW.finditer(text)}:
            assert not (ROOT / name).exists()
            parts = [match[2] for match in NEW.finditer(text) if match[1] == name]
            place(package, name).write_text("\n\n".join(parts), encoding="utf-8")
        for match in CHANGED.finditer(text):
            file = place(package, match[1])
            file.write_text(changed(file.read_text(encoding="utf-8"), match[3]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", RUN, json.dumps(CHECKS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (folder / "found.json").exists(), done.stderr
    told: dict[str, str] = json.loads((folder / "found.json").read_text())
    return told


@pytest.mark.slow
@pytest.mark.parametrize("page", FILES)
def test_what_a_page_adds_works_in_the_package(found: dict[str, str], page: str) -> None:
    assert not found[page], found[page]
