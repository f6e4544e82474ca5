"""`leaf-diffusion certify`: certificates against reading every edit plainly, attacks through the defence, its file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from leaf_diffusion.attacks import Exhaustive
from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.defences import Canonical, CaptionModel
from leaf_diffusion.eval.certify import main
from leaf_diffusion.evaluation.tasks.certify import certify
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline
from leaf_diffusion.runs.certificates import Certificate, read_certificates
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text import NoNewWords, neighbours
from tests import tiny

PROMPTS = ["a red umbrella", "a red bat", "a zebra on the grass"]
RULE = NoNewWords()


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    captions = ["a red umbrella", "a red cat", "a red bat", "a zebra on the grass"] * 5
    return tiny.encoder(defence=Canonical(CaptionModel(captions)))


@pytest.fixture(scope="module")
def found(encoder: TextEncoder) -> list[Certificate]:
    return [certify(encoder, prompt, RULE) for prompt in PROMPTS]


def allowed(prompt: str) -> list[str]:
    edits = neighbours(prompt)
    return edits[RULE.allows(prompt, prompt, edits)].texts()


def test_every_allowed_edit_is_read(encoder: TextEncoder, found: list[Certificate]) -> None:
    for prompt, each in zip(PROMPTS, found, strict=True):
        texts, (clean,) = allowed(prompt), encoder.tokenize(encoder.preprocess([prompt]))
        same = [encoder.tokenize(encoder.preprocess([text]))[0] == clean for text in texts]
        assert (each.edits, each.undone, each.certified) == (len(texts), sum(same), all(same))
        assert sum(left.edits for left in each.left) == len(texts) - sum(same)
        for left in each.left:
            assert left.edit in texts
            (row,) = encoder.tokenize(encoder.preprocess([left.edit]))
            assert row != clean
            assert encoder.rows.text(row) == left.read
    assert [each.certified for each in found] == [True, False, True]
    assert "a red cat" in [left.read for left in found[1].left]


def test_an_attack_through_the_defence_agrees_with_every_certificate(
    encoder: TextEncoder, found: list[Certificate]
) -> None:
    for each, result in zip(found, Exhaustive()(PROMPTS, Scorer(encoder, Drift("l2")), constraint=RULE), strict=True):
        assert (result.score <= 1e-6) == each.certified
        if not each.certified:
            assert result.score > 1e-4
            assert result.perturbed in allowed(each.prompt)


def test_without_a_defence_nothing_is_certified() -> None:
    plain = certify(tiny.encoder(), "a red umbrella", RULE)
    assert plain.certified is False
    assert 0 < plain.undone < plain.edits  # capitals


def test_more_edits_are_drawn(encoder: TextEncoder) -> None:
    one = certify(encoder, "a red umbrella", RULE, 2, sample=50)
    assert (one.edits, one.sampled, one.certified, one.k) == (50, True, False, 2)
    assert 0 < one.undone < 50
    assert certify(encoder, "a red umbrella", None, 2, sample=0).certified is None
    assert one == certify(encoder, "a red umbrella", RULE, 2, sample=50)
    assert one != certify(encoder, "a red umbrella", RULE, 2, sample=50, seed=1)


def test_the_command_writes_lines_and_goes_on_behind_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prompts := tmp_path / "prompts.txt").write_text("a red cat\na blue key\n")
    output = tmp_path / "out" / "certificates.jsonl"
    words = ["--prompts", str(prompts), "--encoder", "world:original+canonical:world", "--output", str(output)]
    assert main(words) == 0
    whole = output.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["prompt"] for line in lines] == ["a red cat", "a blue key"]
    assert {"edits", "undone", "certified", "edit"} <= lines[0].keys()
    assert lines[0]["certified"] is False
    assert lines[0]["undone"] < lines[0]["edits"]
    page = output.with_suffix(".html").read_text()
    assert "a blue key" in page
    assert "edits undone" in page
    output.write_text(whole.splitlines()[0] + '\n{"prompt": "a bl')
    assert main(words) == 0
    assert output.read_text() == whole
    assert "2 prompts" in capsys.readouterr().out
    assert main([*words, "--constraint", "none"]) == 2
    assert "of another tokenizer, defence, constraint or k" in capsys.readouterr().err
    assert output.read_text() == whole


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--prompts FILE is needed"),
        (["--k", "0"], "--k must be at least 1"),
        (["--encoder", "world:original+canonical:no/such.txt"], "no/such.txt"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prompts := tmp_path / "prompts.txt").write_text("a red cat\n")
    assert main([*(["--prompts", str(prompts)] if words else []), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("line", ["[]", '{"prompt": "a"}', "no json"])
def test_a_foreign_output_is_refused_with_its_line(line: str, tmp_path: Path) -> None:
    (path := tmp_path / "c.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_certificates(path, "0" * 64)


@pytest.mark.slow
def test_certified_prompts_have_the_same_images_to_the_bit() -> None:
    encoder = load_text_encoder("world:leaf", defence="canonical:world")
    pipe = LeafStableDiffusionPipeline.from_pretrained("world", text_encoder="world:leaf", defence="canonical:world")
    pipe.set_progress_bar_config(disable=True)
    rng, tried = random.Random(0), 0
    for prompt in ["a painting of a red umbrella", "a photo of a blue guitar", "a red cat and a blue key"]:
        certificate = certify(encoder, prompt, RULE)
        left = {left.read for left in certificate.left}
        texts = [
            text
            for text in rng.sample(allowed(prompt), 60)
            if encoder.rows.text(encoder.tokenize(encoder.preprocess([text]))[0]) not in left
        ][:20]
        images = [
            pipe(text, generator=torch.Generator().manual_seed(7), num_inference_steps=8, output_type="pt").images
            for text in [prompt, *texts]
        ]
        tried += len(texts)
        assert all(torch.equal(image, images[0]) for image in images)
    assert tried == 60
