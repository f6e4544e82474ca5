"""Prompts that hold markup, formulas, paths, control characters: they pass through everything, and stay text."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from leaf_diffusion.attacks import Attack, Charmer, LeafAttack
from leaf_diffusion.encoders import HFTextEncoder
from leaf_diffusion.evaluation.attack_sets import GivenAttack, marked, read_attacks, write_attacks
from leaf_diffusion.evaluation.terminal import print_matrix
from leaf_diffusion.finetune.card import model_card
from leaf_diffusion.finetune.config import TextFAREConfig
from leaf_diffusion.finetune.text_card import text_card
from leaf_diffusion.reports import write_report
from leaf_diffusion.reports.pages.experiment import matrices
from leaf_diffusion.reports.results import METRICS, Results
from leaf_diffusion.reports.text_tables import latex, markdown
from leaf_diffusion.runs import (
    ResultRow,
    RunResults,
    RunSpec,
    RunStore,
    image_name,
    load_run,
    results_csv,
    write_results,
)
from leaf_diffusion.runs.records import ImageRecord, ScoreRecord
from leaf_diffusion.scoring import Drift, Scorer
from leaf_diffusion.text import NoNewWords
from leaf_diffusion.text.visible import visible
from tests import tiny

HOSTILE = [
    '<b onmouseover=alert(1)>hat</b> & "cup"',
    "<script>alert('cat')</script>",
    "--></style></textarea><svg onload=alert(1)>",
    "../../etc/passwd",
    "C:\\boot.ini|nul; rm -rf $HOME `id`",
    '=HYPERLINK("http://example.invalid","cat")',
    "@SUM(A1) cat",
    "-2+3 cats, 'one'",
    "a\0red\x1b[2J\x07 cat\x7f\x9b2J",
    "a \u202egnp.exe\u202c \u2066cat",
    "a\u200bred\u200d\ufeff\u00ad cat",
    "👩\u200d🚀 🏳️\u200d🌈 猫 cat",
    "\u0301\u0323a\u0300\u0301\u0302 cat",
    "{{ 7 * 7 }} {% raw %} {0} %s %n",
    "\\input{/etc/passwd} $x$ 5% #1 ~^_",
    "[cat](javascript:alert(1)) ![x](http://example.invalid/x.png) **b**",
    "a\u2028cat\u2029on\u0085a\tmat",
    "שלום cat 62%",
    "\u202bقطة حمراء 12\u2069 \u2067red\u2068",
]
LONG = "a red cat " * 1_000
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@pytest.fixture(scope="module")
def encoder() -> HFTextEncoder:
    return tiny.encoder(num_hidden_layers=1, num_attention_heads=1, initializer_factor=8.0)


@pytest.mark.parametrize("engine", ["plain", "prefix"])
@pytest.mark.parametrize("attack", [Charmer(n_positions=2), LeafAttack(rho=4)], ids=lambda attack: attack.name)
def test_attacks_and_attack_sets(attack: Attack, engine: Any, encoder: HFTextEncoder, tmp_path: Path) -> None:
    results = attack(HOSTILE, Scorer(encoder, Drift("l2"), engine=engine), k=1, constraint=NoNewWords())
    assert [result.original for result in results] == HOSTILE
    assert all(result.distance <= 1 for result in results)
    assert any(result.distance == 1 for result in results)
    rows = [GivenAttack(prompt=r.original, perturbed=r.perturbed, source="tiny", k=1) for r in results]
    write_attacks(tmp_path / "set.jsonl", rows)
    assert read_attacks(tmp_path / "set.jsonl") == rows


@pytest.mark.parametrize("attack", [Charmer(n_positions=1), LeafAttack(rho=200)], ids=lambda attack: attack.name)
def test_a_prompt_of_ten_thousand_characters(attack: Attack, encoder: HFTextEncoder) -> None:
    (result,) = attack([LONG], Scorer(encoder, Drift("l2")), k=1)
    assert result.distance == 1
    assert result.truncated
    assert result.score > 0  # the edit stands where the encoder still reads


def test_a_megabyte_is_refused_at_once(encoder: HFTextEncoder) -> None:
    for attack in (Charmer(), LeafAttack()):
        with pytest.raises(ValueError, match="prompt 0 has 1,000,000 characters; 32,768 at most"):
            attack(["a red cat " * 100_000], Scorer(encoder, Drift("l2")), k=1)


def test_blank_prompts_are_refused(encoder: HFTextEncoder) -> None:
    unseen = ("\u200b", "\u200d\ufeff \u2060", "\u202e\u202c", "\u3164\u2800", "\ufe0f", "\x07")
    for blank in ("", " ", "\t\r\n", "\u00a0\u2003\u2028", *unseen):
        with pytest.raises(ValueError, match="prompt 1 is empty"):
            Charmer()(["a cat", blank], Scorer(encoder, Drift("l2")), k=1)


def result_row(encoder: str, protocol: str, source: str | None, k: int, **more: object) -> ResultRow:
    row: dict[str, object] = {
        "encoder": encoder,
        "baseline": None,
        "protocol": protocol,
        "source": source,
        "attack": "charmer",
        "k": k,
    }
    row |= {"constraint": "none", "metric": "scene_accuracy", "mean": 0.5, "ci_low": 0.1, "ci_high": 0.9, "n": 3}
    return ResultRow.model_validate({**row, "seeds": 1, **more})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run over the hostile prompts, by encoders with hostile labels."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    labels = [HOSTILE[0], HOSTILE[8]]
    folder = tmp_path / "run"
    with RunStore.open(
        folder, RunSpec({"pipeline": HOSTILE[1], "prompts": [*HOSTILE, LONG]}), command=HOSTILE[4]
    ) as store:
        for i, prompt in enumerate([*HOSTILE, LONG]):
            for encoder in labels:
                for protocol, source, k in (("clean", None, 0), ("adaptive", encoder, 1)):
                    unit, text = f"{encoder}/{protocol}/{prompt}", prompt + "x" * k
                    image = store.save_image(image_name(unit), Image.new("RGB", (8, 8), (i, k, 9)))
                    store.append("images", ImageRecord.model_validate({
                        "id": unit, "prompt_id": str(i), "prompt": text, "original": prompt, "encoder": encoder,
                        "protocol": protocol, "source": source, "k": k, "seed_index": 0, "image": image, "given": text,
                        "truncated": False,
                    }))  # fmt: skip
                    score = ScoreRecord(id=unit, scene_correct=not k, clip_score=20.0, drift=0.1 * k)
                    store.append("scores", score)
        places = [(label, *where) for label in labels for where in (("clean", None, 0), ("adaptive", label, 1))]
        store.write_results(RunResults(rows=[result_row(*place) for place in places]))
    return folder


def test_records_and_file_names(run: Path) -> None:
    read = [record.original for record in load_run(run).records("images", ImageRecord)]
    assert list(dict.fromkeys(read)) == [*HOSTILE, LONG]
    names = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    assert all(re.fullmatch(r"[a-z0-9_./-]+", name) for name in names)
    assert len([name for name in names if re.fullmatch(r"images/[0-9a-f]{32}\.png", name)]) == 4 * (len(HOSTILE) + 1)


def test_the_report_shows_them_as_text(run: Path) -> None:
    page = write_report(run).read_bytes().decode()
    tags = set(re.findall(r"<\s*([a-zA-Z]+)", page))
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "textarea"}
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', '""', page))
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    for prompt in [*HOSTILE, LONG]:
        assert prompt.strip() in text, prompt[:50]


def test_tables_for_spreadsheets_keep_them_and_run_none(tmp_path: Path) -> None:
    rows = [result_row(prompt, "transfer", prompt, 1, note=prompt) for prompt in [*HOSTILE, LONG]]
    write_results(tmp_path, RunResults(rows=rows))
    assert (tmp_path / "results.csv").read_bytes().decode() == results_csv(rows)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"] == [
        row.model_dump(exclude_unset=True) for row in rows
    ]
    read = list(csv.DictReader(io.StringIO(results_csv(rows), newline="")))
    for row, prompt in zip(read, [*HOSTILE, LONG], strict=True):
        for name in ("encoder", "source", "note"):
            assert not row[name].startswith(FORMULA)
            assert row[name].removeprefix("'") == visible(prompt).removeprefix("'")


FIGURES = {f"{kind}_{key}": 0.5 for kind in ("cosine", "drift", "accuracy") for key in ("clean", "typos", "leaf")}
COUNTS = {"steps": 1, "per_update": 2, "captions": 3, "held_out": 4, "truncated": 0}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_model_card_names_its_source_as_text(name: str) -> None:
    config = TextFAREConfig()
    card, plain = (
        model_card(text_card(source, config, COUNTS), config, FIGURES, FIGURES, COUNTS) for source in (name, "tiny")
    )
    assert card.count("\n") == plain.count("\n")  # it stays in its place
    assert card.encode().decode() == card
    prose = re.sub(r"(`+)[^`].*?\1", "", card, flags=re.DOTALL)  # what Markdown does not show as it is
    assert not re.search(r"<\w|\]\(javascript|!\[", prose)


@pytest.mark.parametrize("label", HOSTILE)
def test_tables_for_a_readme_and_a_paper(label: str) -> None:
    rows = [result_row(label, "clean", None, 0), result_row(label, "transfer", label, 1)]
    text = markdown(Results(rows))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table} == {4}
    assert not re.search(r"(?<!\\)<\w|(?<!\\)\]\(", text)
    for shown in (text, latex(Results(rows))):
        rightward = re.findall(r"[\u0590-\u06ff]+", shown)
        assert len(re.findall("\u2068[^\u2068\u2069]*\u2069", shown)) == shown.count("\u2068") == 2 * bool(rightward)
        assert re.sub(r"[\n\u2068\u2069]", "", shown).isprintable()
    paper = latex(Results(rows))
    assert "\\input" not in paper
    body = paper[paper.index(r"\toprule") : paper.index(r"\bottomrule")]
    assert not re.search(r"(?<!\\)[%#]", body)
    assert body.count(r" \\") == 3


@pytest.mark.parametrize("prompt", HOSTILE)
def test_the_terminal_is_not_commanded(prompt: str) -> None:
    screen = io.StringIO()
    Console(file=screen, width=1000, color_system=None).print(marked(prompt, f"x{prompt}"))
    text = screen.getvalue().rstrip("\n")
    rightward = any(0x590 <= ord(character) < 0x700 for character in prompt)
    assert (text[0] == "\u2068" and text[-1] == "\u2069") == rightward  # it does not reorder what stands beside it
    assert text.strip("\u2068\u2069").isprintable()


@pytest.mark.parametrize("label", HOSTILE)
def test_the_tables_of_an_experiment_set_their_names_apart(label: str) -> None:
    rows = [result_row(name, "transfer", label, 1) for name in ("original", label)]
    rows.append(result_row(label, "transfer", label, 1, baseline="original"))
    screen = io.StringIO()
    for matrix in matrices(rows, [METRICS["scene_accuracy"]]):
        print_matrix(Console(file=screen, width=2000, color_system=None), matrix)
    shown = screen.getvalue()
    named = len(re.findall("\u2068[^\u2068\u2069]*\u2069", shown))
    rightward = any(0x590 <= ord(character) < 0x700 for character in label)
    assert named == shown.count("\u2068") == shown.count("\u2069") == 4 * rightward  # two columns, a line in each table
    assert re.sub(r"[\n\u2068\u2069]", "", shown).isprintable()
