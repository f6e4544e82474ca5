"""Which folders and encoders a finetuning accepts, and that the number of processes does not matter."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.encoders.defences import Speller
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.anchors import AnchorDrift, embed, textfare_loss
from leaf_diffusion.finetune.checkpoint import append_log, cut_log
from leaf_diffusion.finetune.loop import new_optimiser
from leaf_diffusion.finetune.tower import trainable_copy
from leaf_diffusion.scoring import Drift, Scorer
from leaf_diffusion.text import Candidates
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from tests import tiny
from tests.shapes import unchecked

CAPTIONS = [
    f"a {c} {n} on a table" for c in ("red", "blue", "white") for n in ("cup", "dish", "key", "bell", "hat", "fish")
]
CONFIG = TextFAREConfig(attack="random-typos", batch_size=4, max_steps=2, warmup_steps=1, lr=1e-3)


@pytest.fixture(scope="module")
def tower() -> CLIPTextModelWithProjection:
    return tiny.tower(seed=1, **tiny.WIDER)


@pytest.fixture
def encoder(tower: CLIPTextModelWithProjection) -> HFTextEncoder:
    return HFTextEncoder(tower, clip_tokenizer(), name="tiny")


def test_a_finished_training_is_not_repeated_and_another_one_refused(encoder: HFTextEncoder, tmp_path: Path) -> None:
    finetune_text_encoder(encoder, CAPTIONS, tmp_path, CONFIG)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    finetune_text_encoder(encoder, CAPTIONS, tmp_path, CONFIG)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="captions"):
        finetune_text_encoder(encoder, [*CAPTIONS, "a new caption"], tmp_path, CONFIG)


def test_a_folder_with_another_model_is_left_alone(encoder: HFTextEncoder, tmp_path: Path) -> None:
    encoder.module.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="choose another folder"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path, CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "file", CONFIG)


def test_saved_in_half_precision(encoder: HFTextEncoder, tmp_path: Path) -> None:
    config = TextFAREConfig(**{**CONFIG.__dict__, "save_dtype": "float16"})
    state = load_file(finetune_text_encoder(encoder, CAPTIONS, tmp_path, config) / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}


def test_encoders_that_cannot_be_finetuned(tower: CLIPTextModelWithProjection, tmp_path: Path) -> None:
    defended = HFTextEncoder(tower, clip_tokenizer(), defence=Speller(["a", "red", "cup"]))
    with pytest.raises(ValueError, match="speller"):
        finetune_text_encoder(defended, CAPTIONS, tmp_path, CONFIG)


def test_settings_that_cannot_work_are_refused_before_training(encoder: HFTextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="warmup_steps=1400 does not end within the 6 steps"):
        finetune_text_encoder(
            encoder, CAPTIONS, tmp_path / "new", TextFAREConfig(warmup_steps=1400, batch_size=9, epochs=3)
        )
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        finetune_text_encoder(encoder, ["a cup", " "], tmp_path / "new", CONFIG)
    with pytest.raises(ValueError, match="0 held out"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "new", CONFIG, held_out=[])
    assert not (tmp_path / "new").exists()


def test_a_diverged_training_says_so(encoder: HFTextEncoder, tmp_path: Path) -> None:
    config = TextFAREConfig(**{**CONFIG.__dict__, "lr": 1e38, "warmup_steps": 0, "max_steps": 5})
    with pytest.raises(ValueError, match="lower lr"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path, config)


def test_trainings_of_several_precisions_in_one_process_and_without_the_callers_gradients(
    encoder: HFTextEncoder, tmp_path: Path
) -> None:
    moved = {}
    for precision in ("no", "bf16"):
        config = TextFAREConfig(**{**CONFIG.__dict__, "mixed_precision": precision})
        with torch.no_grad():
            folder = finetune_text_encoder(encoder, CAPTIONS, tmp_path / precision, config)
        state = load_file(folder / "model.safetensors")
        assert {value.dtype for value in state.values()} == {torch.float32}
        start = {key: value for key, value in encoder.module.state_dict().items() if "k_proj.bias" not in key}
        moved[precision] = torch.cat([(state[key] - value).flatten() for key, value in start.items()])
    assert not torch.equal(moved["no"], moved["bf16"])
    assert torch.cosine_similarity(moved["no"], moved["bf16"], dim=0) > 0.9
    config = TextFAREConfig(**{**CONFIG.__dict__, "mixed_precision": "fp16"})
    with pytest.raises(ValueError, match="needs a GPU"):
        finetune_text_encoder(encoder, CAPTIONS, tmp_path / "fp16", config)
    assert not (tmp_path / "fp16").exists()


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPTextModel and a projection"])
def test_the_trained_copy_is_the_text_half_of_any_clip(kind: str, tower: CLIPTextModelWithProjection) -> None:
    if kind == "CLIPModel":
        source = HFTextEncoder(tiny.clip(), clip_tokenizer())
    else:
        projection = torch.nn.Linear(16, 24, bias=False)
        source = HFTextEncoder(tiny.tower(CLIPTextModel), clip_tokenizer(), projection=projection)
    copied = HFTextEncoder(trainable_copy(source).eval(), clip_tokenizer())
    torch.testing.assert_close(embed(copied, CAPTIONS), embed(source, CAPTIONS))
    assert not {p.data_ptr() for p in copied.module.parameters()} & {p.data_ptr() for p in source.module.parameters()}


def test_nothing_but_matrices_decays(tower: CLIPTextModelWithProjection) -> None:
    optimiser = new_optimiser(tower, lr=1.0, weight_decay=0.5)
    decayed = {id(p) for group in optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in tower.named_parameters() if id(p) in decayed}
    assert "text_projection.weight" in names
    assert not any(name.endswith("bias") or "norm" in name or "token_embedding" in name for name in names)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(tower.parameters()))


def test_the_attack_maximises_the_loss(encoder: HFTextEncoder) -> None:
    other = tiny.encoder(name="anchor", **tiny.WIDER)
    targets = embed(other, CAPTIONS)
    found = [caption.replace("a", "q", 1) for caption in CAPTIONS]
    known = Scorer(encoder, AnchorDrift(targets)).bind(CAPTIONS)([Candidates.from_texts([t]) for t in found])
    general = Scorer(encoder, Drift("l2", anchor=other)).bind(CAPTIONS)([Candidates.from_texts([t]) for t in found])
    torch.testing.assert_close(torch.cat(known), torch.cat(general))
    torch.testing.assert_close(textfare_loss(embed(encoder, found), targets), torch.cat(known).mean())
    with pytest.raises(ValueError, match="do not fit"):
        unchecked(textfare_loss)(targets, targets[:, :3])


def test_the_log_is_cut_where_training_goes_on(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        append_log(tmp_path, {"step": step})
    with (tmp_path / "training_log.jsonl").open("a") as file:
        file.write('{"step": 3')
    cut_log(tmp_path, 10)
    assert (tmp_path / "training_log.jsonl").read_text() == '{"step": 0}\n{"step": 10}\n'
    cut_log(tmp_path, 0)
    assert (tmp_path / "training_log.jsonl").read_text() == ""


@pytest.mark.slow
def test_two_processes_end_where_one_does(encoder: HFTextEncoder, tmp_path: Path) -> None:
    folder, file = tmp_path / "tiny", tmp_path / "captions.txt"
    encoder.module.save_pretrained(folder)
    file.write_text("\n".join(CAPTIONS))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "leaf_diffusion.cli.finetune",
        "--source",
        str(folder),
        "--captions",
        str(file),
        "--device",
        "cpu",
    ]
    command += ["--output", str(tmp_path / "two"), "--batch-size", "2", "--max-steps", "2"]
    command += ["--rho", "3", "--warmup-steps", "1", "--lr", "1e-3"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    config = TextFAREConfig(rho=3, batch_size=4, max_steps=2, warmup_steps=1, lr=1e-3)
    # the folder holds no tokenizer, so both use CLIP's own; the same folder would continue, as the identity is equal
    one = finetune_text_encoder(encoder, CAPTIONS, tmp_path / "one", config)
    first, second = load_file(one / "model.safetensors"), load_file(tmp_path / "two" / "model.safetensors")
    start = {key: value for key, value in encoder.module.state_dict().items() if "k_proj.bias" not in key}
    moved = sum(float((first[key] - value).square().sum()) for key, value in start.items())
    assert sum(float((first[key] - second[key]).square().sum()) for key in start) < 1e-3 * moved
    assert finetune_text_encoder(encoder, CAPTIONS, tmp_path / "two", config) == tmp_path / "two"
