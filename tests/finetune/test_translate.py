"""Learnt tokens translated from one encoder to another, by hand-made towers and by the world's."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from leaf_diffusion import load_text_encoder
from leaf_diffusion.cli.main import main
from leaf_diffusion.encoders import HFTextEncoder, Hidden, TextEncoder
from leaf_diffusion.finetune.translate import TEMPLATES, read_tensors, translate_file, translate_token
from leaf_diffusion.world import pipeline_path
from tests import tiny

FEW = ("a photo of a {}", "{}", "a {} on a table")


def tower(seed: int = 0, width: int = 16, context: int = 24) -> HFTextEncoder:
    made = tiny.encoder(seed, name=f"tower {seed}", hidden_size=width, max_position_embeddings=context)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.mul_(3)  # far enough from linear
    return made


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def moved(encoder: HFTextEncoder) -> HFTextEncoder:
    """A finetuned copy: other blocks, another table."""
    other = tower()
    with torch.no_grad():
        for mine, given in zip(other.module.parameters(), encoder.module.parameters(), strict=True):
            mine.copy_(given + 0.1 * given.std() * torch.randn(given.shape, generator=torch.Generator().manual_seed(1)))
    return other


def stated(encoder: TextEncoder, vectors: torch.Tensor, before: str, behind: str) -> torch.Tensor:
    """Token states of a text with vectors in it, by giving the table rows for them."""
    left, right = encoder.tokenize([before])[0][:-1], encoder.tokenize([behind])[0][1:]
    table = encoder.token_embedding()
    embeds = torch.cat([table[left], vectors, table[right]])[None]
    return encoder.features_from_embeddings(embeds, [[*left, *[5] * len(vectors), *right]], Hidden(-1, "all"))


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_targets_states_come_nearer_to_the_sources(vectors: int) -> None:
    source, learnt = tower(), drawn(vectors, 16)
    target = moved(source)
    kept = target.fingerprint, source.fingerprint
    steps: list[None] = []
    found = translate_token(learnt, source, target, templates=FEW, steps=60, advance=lambda: steps.append(None))
    assert len(steps) == 60
    assert found.embedding.shape == learnt.shape
    assert found.after < 0.9 * found.before
    with torch.no_grad():  # the same figures by another way
        for vectors_given, figure in ((learnt, found.before), (found.embedding, found.after)):
            ratios = []
            for before, behind in (("a photo of a", ""), ("", ""), ("a", "on a table")):
                wanted = stated(source, learnt, before, behind)
                ratios.append(
                    (stated(target, vectors_given, before, behind) - wanted).pow(2).sum() / wanted.pow(2).sum()
                )
            assert figure == pytest.approx(float(torch.stack(ratios).mean()), rel=1e-4)
    assert (target.fingerprint, source.fingerprint) == kept
    assert all(parameter.grad is None for parameter in target.module.parameters())
    again = translate_token(learnt, source, target, templates=FEW, steps=60)
    assert torch.equal(again.embedding, found.embedding)


def test_the_same_encoder_needs_no_translation() -> None:
    learnt = drawn(16)
    found = translate_token(learnt, tower(), tower(), templates=FEW, steps=3)
    assert found.before == found.after == pytest.approx(0, abs=1e-9)
    assert torch.equal(found.embedding, learnt[None])


def test_a_word_of_the_world_is_found_again() -> None:
    source, target = load_text_encoder("world:original"), load_text_encoder("world:leaf")
    (word,) = source.tokenize(["umbrella"])[0][1:-1]
    found = translate_token(source.token_embedding()[word].detach()[None], source, target, steps=40)
    assert found.after < 0.5 * found.before


@pytest.mark.parametrize(
    ("learnt", "target", "how", "said"),
    [
        (torch.zeros(1, 8), tower(), {}, r"shape \(1, 8\) does not fit: tower 0 has vectors of 16"),
        (torch.zeros(1, 16), tower(width=32), {}, "tower 0 of 32"),
        (torch.zeros(0, 16), tower(), {}, "does not fit"),
        (torch.full((1, 16), float("nan")), tower(), {}, "not finite"),
        (torch.zeros(1, 16), tower(context=12), {}, "read texts differently"),
        (torch.zeros(1, 16), tower(), {"templates": ["a cat"]}, "needs one {}"),
        (torch.zeros(1, 16), tower(), {"templates": ["{} {}"]}, "needs one {}"),
        (torch.zeros(1, 16), tower(), {"templates": []}, "one template"),
        (torch.zeros(20, 16), tower(), {"templates": ["a long text about {}"]}, "of 24 tokens"),
        (torch.zeros(1, 16), tower(), {"steps": 0}, "steps"),
    ],
)
def test_what_does_not_fit_is_named(
    learnt: torch.Tensor, target: TextEncoder, how: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        translate_token(learnt, tower(), target, **how)  # type: ignore[arg-type]


def test_a_file_keeps_its_layout(tmp_path: Path) -> None:
    source, old, new = tower(), tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    tensors = {"clip_l": drawn(2, 16).half(), "clip_g": drawn(2, 16), "step": torch.ones(1)}
    save_file(tensors, old, {"name": "mine"})
    with pytest.raises(ValueError, match=r"clip_g \[2, 16\].*several vectors of that width: name one with --key"):
        translate_file(old, new, source, moved(source), templates=FEW, steps=2)
    with pytest.raises(ValueError, match="and no 'clip_x'"):
        translate_file(old, new, source, moved(source), key="clip_x", templates=FEW, steps=2)
    assert not new.exists()
    translate_file(old, new, source, moved(source), key="clip_l", templates=FEW, steps=30)
    written = load_file(new)
    assert written["clip_l"].dtype == torch.float16
    assert not torch.equal(written["clip_l"], tensors["clip_l"])
    assert torch.equal(written["clip_g"], tensors["clip_g"])
    with safe_open(new, "pt") as opened:
        assert opened.metadata() == {"name": "mine"}
    save_file({"<one>": drawn(16)}, old)  # a vector without an axis for several
    translate_file(old, tmp_path / "one.safetensors", source, moved(source), templates=FEW, steps=2)
    assert load_file(tmp_path / "one.safetensors")["<one>"].shape == (16,)


def test_the_command_writes_what_stock_diffusers_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.safetensors", tmp_path / "new" / "learned_embeds.safetensors"
    save_file({"<mine>": drawn(1, 128) * 0.05}, old)
    words = ["translate-token", str(old), str(new), "--source", "world:original", "--target", "world:leaf"]
    assert main([*words, "--steps", "3", "--templates", "a photo of a {}", "{}"]) == 0
    assert f"wrote {new}" in capsys.readouterr().out
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_path())
    pipeline.load_textual_inversion(str(new))
    assert "<mine>" in pipeline.tokenizer.get_added_vocab()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.safetensors", None, "no such file"),
        ("token.bin", b"PK\x03\x04", "is a pickle"),
        ("broken.safetensors", b"nothing", "is damaged, or no safetensors file"),
    ],
)
def test_wrong_files_are_told_first(
    name: str, content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    words = ["translate-token", str(tmp_path / name), str(tmp_path / "out.safetensors")]
    assert main([*words, "--source", "no/such/folder", "--target", "world:leaf"]) == 2
    assert said in capsys.readouterr().err


def test_a_pickled_token_can_be_read_after_the_conversion_that_is_told(tmp_path: Path) -> None:
    old, new = tmp_path / "old.pt", tmp_path / "old.safetensors"
    torch.save({"string_to_param": {"*": torch.nn.Parameter(drawn(2, 16))}, "name": "mine"}, old)
    with pytest.raises(ValueError, match="only safetensors are loaded") as refused:
        translate_file(old, tmp_path / "new.safetensors", tower(), tower())
    command = str(refused.value).partition("Convert it: ")[2]
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    assert read_tensors(new)[0]["*"].shape == (2, 16)


def test_templates_have_their_place() -> None:
    assert all(template.count("{}") == 1 for template in TEMPLATES)
