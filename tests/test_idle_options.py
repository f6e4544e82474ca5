"""An option that nothing would read is refused, with what it belongs to, before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from leaf_diffusion.cli.main import main
from leaf_diffusion.finetune import TextFAREConfig

FILE = ["--prompts", "prompts.txt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack", *FILE, "--clusters", "label"], "--clusters"),  # it measures nothing
        (["certify", *FILE, "--sample", "5"], "--sample belongs to --k above 1"),
        (["evaluate", "--column", "text"], "--column belongs to --prompts FILE"),
        (["evaluate", "--every-caption"], "--every-caption belongs to --prompts FILE"),
        (["evaluate", "--clusters", "label"], "--clusters belongs to --prompts FILE"),
        (["evaluate", *FILE, "--two-objects", "0.5"], "--two-objects chooses among the world's own prompts"),
        (["evaluate", "--attacked-prompts", "attacked.jsonl", "--k", "1"], "--k is of a search"),
        (["evaluate", "--attacked-prompts", "attacked.jsonl", "--attack", "charmer"], "--attack is of a search"),
        (["textfare", "--split", "test"], "--split belongs to --prompts FILE"),
        (["textfare", *FILE, "--prompt-seed", "3"], "--prompt-seed is of the world's own prompts"),
        (["textfare", "--attacks", "leaf", "--n-positions", "5"], "--n-positions belongs to the attack charmer"),
        (["invert", "--clusters", "none"], "--clusters belongs to --prompts FILE"),
        (["retrieve", "--split", "test"], "--split belongs to --captions FILE"),
        (["retrieve", "--goals", "drift", "--toward", "images"], '--toward belongs to the goal "toward"'),
        (["zero-shot-text", "--encoders", "original", "--classes", "a", "b"], "--classes belongs to a --task of your own"),
        (["zero-shot-text", "--task", "texts.csv", "--images", "3"], "--images belongs to --anchors"),
        (["zero-shot-text", "--attacks", "leaf", "--n-positions", "3"], "--n-positions belongs to the attack charmer"),
        (["zero-shot-image", "--templates", "an image of a {}"], "--templates belongs to --images FOLDER"),
        (["both-domains", "--text-templates", "on {}"], "--text-templates belongs to --texts of your own"),
        (["ablate", "--column", "text"], "--column belongs to --captions"),
        (["ablate", "--task-split", "test"], "--task-split belongs to a --task of your own"),
        (
            ["swap-cost", "--pipeline", "x", "--encoders", "a", "b", *FILE, "--train-steps", "3"],
            "--train-steps is of the token and the LoRA that the world trains",
        ),
        (["report", "one", "other", "--tables", "latex"], "--tables belongs to the report of one run"),
        (["finetune", "--source", "world:original", "--captions", "c.txt", "--output", "o", "--held-out-split", "x"],
         "--held-out-split belongs to --held-out"),
        (["finetune-both", "--source", "world:original", "--pairs", "world:9", "--output", "o", "--column", "text"],
         "belong to a file"),
        (["convert", "folder", "out", "--architecture", "ViT-B-32"], "--architecture is of an open_clip source"),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else value.split()[0],
)  # fmt: skip
def test_it_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red cat\n")
    Path("attacked.jsonl").write_text('{"prompt": "a red cat", "perturbed": "a red ct", "source": "mine", "k": 1}\n')
    Path("folder").mkdir()
    assert main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attacked.jsonl", "folder", "prompts.txt"]


def test_epochs_beside_updates() -> None:
    with pytest.raises(ValueError, match="epochs=2 does nothing beside max_steps=5"):
        TextFAREConfig(max_steps=5, epochs=2)
    assert TextFAREConfig(epochs=2).epochs == 2
