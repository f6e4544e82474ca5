from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaf_diffusion.attacks import LeafAttack
from leaf_diffusion.evaluation.attack_sets import GivenAttack, edits, marked, named, read_attacks, write_attacks
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.evaluation.prompts import Prompt, from_file, from_world
from leaf_diffusion.evaluation.t2i.options import parse
from leaf_diffusion.evaluation.t2i.plan import make_plan
from leaf_diffusion.evaluation.t2i.setup import load_prompts
from leaf_diffusion.world.figures import noise_seed

PROMPTS = ["a red hat", "a café near a black cat", "two dogs 🐕 on a boat"]


def test_the_command_line_goes_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("k: [1, 3]\nlimit: 7\nencoders: [original, leaf]\nattack: leaf\n")
    options = parse(["--config", str(path), "--limit", "9"])
    assert (options.k, options.limit, options.encoders, options.attack) == (
        (1, 3),
        9,
        ("original", "leaf"),
        LeafAttack(),
    )
    assert options.steps == 15
    assert options.neutral_source == "world:judge"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: many", "--steps takes INT, not 'many'"),
        ("colour: red", "colour"),
        ("[1, 2]", "list"),
        ("k: [1", "no YAML that can be read"),
        ("limit: " + "9" * 5000, "no YAML that can be read"),
        ("[" * 5000, "no YAML that can be read"),
        ("{1: 2, null: 3}", r"unknown options \['int', 'NoneType'\]"),
        ("k: [[1]]", "k takes a value or a list of values"),
        ("limit: 0x" + "f" * 5000, "limit: Exceeds the limit"),
        ("encoders: [--limit, '3']", "begins with -"),
    ],
)
def test_a_wrong_configuration_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"run\.yaml: .*{said}") as error:
        parse(["--config", str(path)])
    assert len(str(error.value)) < 2_000


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    value = "&a0 [1]"
    for i in range(1, 30):
        value = f"&a{i} [{value}{f', *a{i - 1}' * 9}]"
    path.write_text(f"k: {value}")
    with pytest.raises(ValueError, match=r"run\.yaml: k takes a value or a list of values"):
        parse(["--config", str(path)])


def test_switches_stand_in_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("dry_run: true\nevery_caption: false\n")
    options = parse(["--config", str(path)])
    assert (options.dry_run, options.every_caption) == (True, False)


@pytest.mark.parametrize(
    "argv",
    [
        ["--k", "-1"],
        ["--k", "0"],
        ["--attack", "exhaustive", "--k", "3"],
        ["--attack", "genetic:population=0"],
        ["--limit", "0"],
        ["--k", "1", "1"],
        ["--constraint", "maybe"],
        ["--counted", "2"],
        ["--two-objects", "0.6", "--three-objects", "0.6"],
    ],
)
def test_impossible_values_are_refused(argv: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{argv[-2]}|{argv[0]}"):
        parse(argv)


def test_shares_of_the_worlds_prompts() -> None:
    options = parse(["--two-objects", "0.5", "--three-objects", "0.5", "--counted", "1", "--limit", "20"])
    scenes = [prompt.scene for prompt in load_prompts(options.resolved(), [])]
    assert {len(scene.things) for scene in scenes} == {2, 3} and all(scene.relation == "beside" for scene in scenes)


def test_another_pipeline_needs_prompts() -> None:
    with pytest.raises(ValueError, match="--prompts"):
        parse(["--pipeline", "some/model"])


@pytest.mark.parametrize(
    ("text", "label", "source", "defence"),
    [
        ("leaf", "leaf", "world:leaf", None),
        ("world:leaf", "leaf", "world:leaf", None),
        ("original+speller", "original+speller", "world:original", "speller"),
        ("mine=/models/robust+speller", "mine", "/models/robust", "speller"),
        ("LEAF-CLIP/CLIP-ViT-L", "CLIP-ViT-L", "LEAF-CLIP/CLIP-ViT-L", None),
    ],
)
def test_encoder_names(text: str, label: str, source: str, defence: str | None) -> None:
    assert EncoderName.parse(text, world=True) == EncoderName(label, source, defence)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join([*PROMPTS, PROMPTS[0], "", ""]), encoding="utf-8")
    assert [prompt.text for prompt in from_file(path)] == PROMPTS
    path.write_text("one\n\ntwo\n")
    with pytest.raises(ValueError, match="line 2"):
        from_file(path)
    path.write_text("\n  \n")
    with pytest.raises(ValueError, match="no prompts"):
        from_file(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="UTF-8"):
        from_file(path)
    with pytest.raises(FileNotFoundError):
        from_file(tmp_path / "nowhere.txt")


@given(st.text(min_size=1, max_size=30), st.text(max_size=30))
def test_edits_lead_from_the_prompt_to_the_attacked_one(original: str, perturbed: str) -> None:
    built, at = "", 0
    for start, end, new in edits(original, perturbed):
        assert at <= start <= end
        built += original[at:start] + new
        at = end
    assert built + original[at:] == perturbed


def test_edits_are_marked_and_markup_in_prompts_is_text() -> None:
    assert marked("a [b] cat", "a [b] bat") == r"a \[b] [bold red]b[/]at"
    assert named("a red cat", "a rd xcot") == "-'e' at 3, +'x' at 6, 'a'→'o' at 7"


def test_what_would_command_the_terminal_is_shown_as_codes() -> None:
    assert marked("a\x1b[2J cat\u202e", "a\x1b[2J bat\u202e") == "a\\x1b[2J [bold red]b[/]at\\u202e"


def test_attack_sets_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sets" / "attacked.jsonl"
    rows = [GivenAttack(prompt="a cat\u2028here", perturbed="a bat\u2028here", source="x", k=1)]
    write_attacks(path, rows)
    assert read_attacks(path) == rows
    path.write_text(f"\ufeff{path.read_text(encoding='utf-8')}", encoding="utf-8")  # as Windows' editors save it
    assert read_attacks(path) == rows
    path.write_text("[" * 50_000)
    with pytest.raises(ValueError, match=r"attacked\.jsonl, line 1: no JSON"):
        read_attacks(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a cat", "source": "x", "k": 1}, "perturbed"),
        ({"prompt": "a cat", "perturbed": "a dog", "source": "x", "k": 1}, "3 edits"),
        ({"prompt": "a cat", "perturbed": " ", "source": "x", "k": 9}, "not empty"),
        ({"prompt": "a cat", "perturbed": "a \ud800at", "source": "x", "k": 1}, "half a surrogate pair"),
        ({"prompt": "a cat", "perturbed": "a bat", "source": "x", "k": True}, "whole number of edits"),
        ({"prompt": "a cat", "perturbed": "a bat", "source": "x", "k": [[]] * 9999}, "whole number of edits"),
    ],
)
def test_a_wrong_attack_set_is_refused_by_line(tmp_path: Path, row: dict[str, object], said: str) -> None:
    path = tmp_path / "attacked.jsonl"
    good = {"prompt": "a hat", "perturbed": "a bat", "source": "x", "k": 1}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=f"line 2.*{said}"):
        read_attacks(path)


@pytest.mark.parametrize(
    ("attack", "perturbed", "said"),
    [
        ("words", "two elephants on a carpet", "3 words"),
        ("words", "one cat on the rug", "2 words"),
        ("words", "one  cat  on a mat", "2 words"),
        ("ocr", "one cat on a rnat!", "3 edits"),
        ("worst-swapped-letters", "noe act on a mat", "4 edits"),
        ("textfooler", "one dog on a mat", "3 edits"),
    ],
)
def test_k_of_an_attack_set_counts_what_its_attack_counts(
    tmp_path: Path, attack: str, perturbed: str, said: str
) -> None:
    path = tmp_path / "attacked.jsonl"
    kept = {"words": "one hippopotamus on a mat", "ocr": "one cat on a rnat"}.get(attack, "one cat on a mat")
    row = {"prompt": "one cat on a mat", "source": "x", "k": 1, "attack": attack}
    path.write_text(json.dumps(row | {"perturbed": kept}))
    assert read_attacks(path)[0].perturbed == kept
    path.write_text(json.dumps(row | {"perturbed": perturbed}))
    with pytest.raises(ValueError, match=f"line 1: {said} lie between the two prompts, but k is 1"):
        read_attacks(path)


def test_noise_follows_from_prompt_and_index_alone() -> None:
    everything = from_world(12, 3, two=0.5)
    seeds = {prompt.id: noise_seed(prompt.id, 0) for prompt in everything}
    assert {prompt.id: noise_seed(prompt.id, 0) for prompt in from_world(5, 3, two=0.5)}.items() <= seeds.items()
    assert len({noise_seed(prompt.id, i) for prompt in everything for i in range(3)}) == 36


def test_the_plan_gives_every_encoder_the_same_attacks() -> None:
    plan = make_plan(
        [Prompt("a cat")],
        ["a", "b"],
        protocols=["adaptive", "transfer"],
        transfer_sources=["a", "j"],
        ks=(1, 2),
        seeds=2,
    )
    assert plan.sets() == [(s, k) for s in ("a", "b", "j") for k in (1, 2)]
    units = list(plan.images())
    assert len(units) == len({unit.id for unit in units}) == 2 * (2 + 4 + 8) + 1
    transferred = {(c.encoder, c.source, c.k) for c in plan.cells if c.protocol == "transfer"}
    assert transferred == {(e, s, k) for e in "ab" for s in "aj" for k in (1, 2)}
