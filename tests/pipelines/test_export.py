"""`leaf-diffusion export`: what it writes is read back by diffusers, open_clip, transformers and safetensors."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from leaf_diffusion.cli.main import main as cli
from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.convert import to_open_clip
from leaf_diffusion.encoders.export import export_checkpoint, export_text_encoder
from leaf_diffusion.encoders.single_file import load_single_file
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from leaf_diffusion.weights.pickles import conversion

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind


@pytest.fixture
def checkpoint(
    kinds: dict[str, Kind], single_file: Callable[[Kind, Mapping[str, object]], dict[str, torch.Tensor]], tmp_path: Path
) -> Callable[..., Path]:
    """A float16 checkpoint of SD or XL, with metadata."""

    def write(name: str, **metadata: str) -> Path:
        tensors = single_file(kinds[name], kinds[name].parts())
        half = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        save_file(half, tmp_path / f"{name}.safetensors", {"format": "pt"} | metadata)
        return tmp_path / f"{name}.safetensors"

    return write


def wrapped(module: torch.nn.Module) -> TextEncoder:
    return load_text_encoder(module, tokenizer=clip_tokenizer())


@pytest.mark.parametrize(("name", "part"), [("sd", "text_encoder"), ("xl", "text_encoder"), ("xl", "text_encoder_2")])
def test_a_checkpoint_with_another_text_encoder(
    kinds: dict[str, Kind],
    folders: Callable[[Kind], Path],
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    name: str,
    part: str,
) -> None:
    kind, old, output = kinds[name], checkpoint(name), tmp_path / "out" / "robust.safetensors"
    new = kind.new_tower(part)
    new.save_pretrained(tmp_path / "robust")
    before = old.read_bytes()
    assert cli(["export", str(tmp_path / "robust"), str(output), "--checkpoint", str(old)]) == 0
    assert old.read_bytes() == before
    was, now = load_file(old), load_file(output)
    changed = {key for key in was if not torch.equal(was[key], now[key])}
    first = {"sd": "cond_stage_model.transformer.", "xl": "conditioner.embedders.0.transformer."}[name]
    prefix = first if part == "text_encoder" else "conditioner.embedders.1.model."
    own = {key for key in was if key.startswith(prefix) and not key.endswith(("position_ids", "logit_scale"))}
    assert changed == own
    assert was.keys() == now.keys() and all(was[key].dtype == now[key].dtype for key in was)

    # diffusers' own reader, the configuration from the folder of the same pipeline
    config = folders(kind)
    extra = {"add_watermarker": False} if name == "xl" else {"safety_checker": None}
    read = kind.stock.from_single_file(str(output), config=str(config), local_files_only=True, **extra)
    parts = kind.parts()
    weights = new if part == "text_encoder_2" else new.text_model
    state = {key.removeprefix("text_model."): value.half() for key, value in weights.state_dict().items()}
    for key, value in getattr(read, part).state_dict().items():
        assert torch.equal(value.half(), state[key.removeprefix("text_model.")]), key
    parts[part] = weights
    expected = {
        key: value.half().float() if isinstance(value, torch.nn.Module) else value for key, value in parts.items()
    }
    assert np.array_equal(kind.image(read.to(torch.float32)), kind.image(kind.stock(**expected)))
    assert not np.array_equal(kind.image(read), kind.image(kind.stock(**kind.parts())))


def test_hashes_of_the_old_weights_do_not_stay(
    kinds: dict[str, Kind], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    old = checkpoint("sd", **{"modelspec.hash_sha256": "ab" * 32, "modelspec.title": "Ein Bär"})
    export_checkpoint(wrapped(kinds["sd"].new_tower("text_encoder")), old, tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.title": "Ein Bär"}
    assert (tmp_path / "new.safetensors").stat().st_size == old.stat().st_size


@pytest.mark.parametrize("projected", [True, False])
def test_a_text_encoder_alone(tmp_path: Path, new_tower: Callable[..., PreTrainedModel], projected: bool) -> None:
    tower = new_tower(CLIPTextModelWithProjection if projected else CLIPTextModel, seed=5)
    tower.save_pretrained(tmp_path / "robust")
    file = tmp_path / "clip_l.safetensors"
    assert cli(["export", str(tmp_path / "robust"), str(file)]) == 0
    state = load_file(file)
    assert "text_model.encoder.layers.0.mlp.fc1.weight" in state  # by which ComfyUI knows a CLIP-L
    assert all(value.dtype == torch.float16 for value in state.values())
    assert ("text_projection.weight" in state) is projected
    assert {key for key in state if not key.startswith("text_model.")} <= {"text_projection.weight"}
    rows = torch.tensor(clip_tokenizer()(["a red umbrella"]).input_ids)
    read = load_text_encoder(file)  # heads, activation and tokenizer from the shapes
    expected = tower.half().float()(rows)
    assert torch.equal(read.module(rows).last_hidden_state, expected.last_hidden_state)
    assert read.has_projection is projected


def test_a_large_tower_has_gelu_and_clip_gs_blocks(tmp_path: Path, new_tower: Callable[..., PreTrainedModel]) -> None:
    sizes = {"intermediate_size": 4, "num_hidden_layers": 31}
    wrong = new_tower(seed=5, **sizes)  # QuickGELU
    with pytest.raises(ValueError, match="activation quick_gelu, but loaders run such a file with gelu"):
        export_text_encoder(wrapped(wrong), tmp_path / "clip_g.safetensors")
    assert not list(tmp_path.iterdir())
    right = new_tower(seed=5, hidden_act="gelu", **sizes)
    export_text_encoder(wrapped(right), tmp_path / "clip_g.safetensors", dtype=torch.float32)
    assert "text_model.encoder.layers.30.mlp.fc1.weight" in load_file(tmp_path / "clip_g.safetensors")
    read = load_text_encoder(tmp_path / "clip_g.safetensors")
    assert read.module.config.hidden_act == "gelu"
    assert all(torch.equal(value, read.module.state_dict()[key]) for key, value in right.state_dict().items())


def test_the_embedded_worlds_heads_are_kept(tmp_path: Path) -> None:
    world = load_text_encoder("world:leaf")
    assert world.module.config.num_attention_heads != world.module.config.hidden_size // 64
    export_text_encoder(world, tmp_path / "leaf.safetensors", dtype=torch.float32)
    assert load_text_encoder(tmp_path / "leaf.safetensors").fingerprint == world.fingerprint


def test_open_clip_towers(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=64, quick_gelu=True, vision_cfg={"layers": 1, "width": 64, "patch_size": 8, "image_size": 16},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    ).eval()  # fmt: skip
    encoder = load_text_encoder(model, tokenizer=open_clip.SimpleTokenizer())
    export_text_encoder(encoder, tmp_path / "clip_l.safetensors", dtype=torch.float32)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "whole.safetensors")
    rows = encoder.tokenize(["a red umbrella"])
    for file in ("clip_l.safetensors", "whole.safetensors"):
        found = load_text_encoder(tmp_path / file)
        torch.testing.assert_close(found.features(rows), encoder.features(rows).detach(), rtol=1e-4, atol=1e-5)


def test_stable_diffusion_2_and_3(tmp_path: Path, new_tower: Callable[..., PreTrainedModel]) -> None:
    new, old = (new_tower(seed=seed, hidden_act="gelu") for seed in (1, 2))
    stored = {f"cond_stage_model.model.{key}": value for key, value in to_open_clip(old.state_dict()).items()}
    save_file(stored | {"other": torch.ones(2)}, tmp_path / "sd2.safetensors")
    export_checkpoint(wrapped(new), tmp_path / "sd2.safetensors", tmp_path / "new2.safetensors")
    expected = to_open_clip(new.state_dict())
    read = load_file(tmp_path / "new2.safetensors")
    assert all(torch.equal(read[f"cond_stage_model.model.{key}"], value) for key, value in expected.items())
    # diffusers keeps one block less, which is the one that is never run
    shorter = new_tower(seed=1, hidden_act="gelu", num_hidden_layers=2)
    export_checkpoint(wrapped(shorter), tmp_path / "sd2.safetensors", tmp_path / "shorter.safetensors")
    read = load_file(tmp_path / "shorter.safetensors")
    last = "cond_stage_model.model.transformer.resblocks.{}.mlp.c_fc.weight"
    assert torch.equal(read[last.format(2)], stored[last.format(2)])
    assert torch.equal(
        read[last.format(1)], to_open_clip(shorter.state_dict())["transformer.resblocks.1.mlp.c_fc.weight"]
    )

    first, second = new_tower(seed=3), new_tower(seed=4, hidden_size=128, num_attention_heads=2, hidden_act="gelu")
    first.text_projection.weight.copy_(torch.eye(64))
    stored = {f"text_encoders.clip_l.transformer.{key}": value for key, value in first.state_dict().items()}
    stored |= {f"text_encoders.clip_g.transformer.{key}": value for key, value in second.state_dict().items()}
    save_file(stored, tmp_path / "sd3.safetensors")
    said = export_checkpoint(wrapped(new_tower(seed=9)), tmp_path / "sd3.safetensors", tmp_path / "new3.safetensors")
    assert "CLIP-L of SD3" in said
    read = load_file(tmp_path / "new3.safetensors")
    table = "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight"
    assert torch.equal(read[table], new_tower(seed=9).text_model.embeddings.token_embedding.weight)
    assert torch.equal(read["text_encoders.clip_l.transformer.text_projection.weight"], torch.eye(64))
    with pytest.raises(ValueError, match=r"several text encoders, text_encoder \(CLIP-L of SD3\), text_encoder_2"):
        load_text_encoder(tmp_path / "sd3.safetensors")
    loaded = load_text_encoder(tmp_path / "sd3.safetensors", subfolder="text_encoder_2")
    assert torch.equal(loaded.module.text_projection.weight, second.text_projection.weight)


def test_what_cannot_be_written_is_told_before_anything_is(
    kinds: dict[str, Kind],
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    new_tower: Callable[..., PreTrainedModel],
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, output = checkpoint("xl"), tmp_path / "new.safetensors"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"does not fit .*CLIP-L of SDXL: .*\[49408, 64\] in the file, \[49408, 192\]"):
        export_checkpoint(wrapped(new_tower(hidden_size=192, num_attention_heads=3)), old, output)
    with pytest.raises(ValueError, match="activation gelu"):
        export_checkpoint(wrapped(new_tower(hidden_act="gelu")), old, output)
    with pytest.raises(ValueError, match="does not fit"):
        export_checkpoint(wrapped(new_tower()), old, output, part="text_encoder_2")
    with pytest.raises(ValueError, match=r"name it new\.ckpt\.safetensors"):
        export_checkpoint(wrapped(new_tower()), old, tmp_path / "new.ckpt")
    other = clip_tokenizer()
    other.add_tokens(["<leaf>"])
    grown = new_tower(vocab_size=49409)
    with pytest.raises(ValueError, match="a tokenizer that is not CLIP's"):
        export_text_encoder(load_text_encoder(grown, tokenizer=other), output)
    huge = new_tower()
    huge.text_model.final_layer_norm.weight.fill_(1e6)
    with pytest.raises(ValueError, match=r"final_layer_norm.weight has values that torch.float16 cannot hold"):
        export_checkpoint(wrapped(huge), old, output)
    assert sorted(tmp_path.iterdir()) == before
    assert cli(["export", "world:original", str(old)]) == 2
    assert "is there already" in capsys.readouterr().err
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(old.read_bytes()[:-100])
    assert cli(["export", "world:original", str(output), "--checkpoint", str(cut)]) == 2
    assert "cut.safetensors is damaged" in capsys.readouterr().err
    assert cli(["export", "world:original", str(output), "--checkpoint", "no/such.safetensors"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    kinds: dict[str, Kind], checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import leaf_diffusion.encoders.export as export

    old = checkpoint("sd")
    before = sorted(tmp_path.iterdir())
    new = wrapped(kinds["sd"].new_tower("text_encoder"))
    usage = type("Usage", (), {"free": 10})
    with monkeypatch.context() as patched:
        patched.setattr(export.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="MB free, the copy takes"):
            export_checkpoint(new, old, tmp_path / "new.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(export.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "disk full")))
        with pytest.raises(OSError, match="disk full"):
            export_checkpoint(new, old, tmp_path / "new.safetensors")
    assert sorted(tmp_path.iterdir()) == before
    left = tmp_path / ".new.safetensors.killed.tmp"
    left.write_bytes(b"half")
    export_checkpoint(new, old, tmp_path / "new.safetensors")
    assert not left.exists()


def test_pickles_are_refused_with_a_command_that_works(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(checkpoint("sd"))
    pickle = tmp_path / "a model's.ckpt"
    shared = tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    torch.save({"state_dict": tensors | {"again": shared}, "global_step": 7}, pickle)
    output = tmp_path / "new.safetensors"
    assert cli(["export", "world:original", str(output), "--checkpoint", str(pickle)]) == 2
    told = capsys.readouterr().err
    command = conversion((pickle, pickle.with_suffix(".safetensors")))
    assert command in told
    with pytest.raises(ValueError, match="is a pickle"):
        load_text_encoder(pickle)
    words = shlex.split(command)
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    assert load_file(pickle.with_suffix(".safetensors")).keys() == tensors.keys() | {"again"}


def test_damaged_headers_are_named(tmp_path: Path, new_tower: Callable[..., PreTrainedModel]) -> None:
    """A byte of the header changed anywhere: the file is read, or refused by its name."""
    whole, file = tmp_path / "whole.safetensors", tmp_path / "spoilt.safetensors"
    export_text_encoder(wrapped(new_tower(seed=5, num_hidden_layers=1)), whole)
    data = bytearray(whole.read_bytes())
    end, random, refused = 8 + int.from_bytes(data[:8], "little"), np.random.default_rng(0), []
    for place in [0, 3, 7, *random.integers(8, end, 40)]:
        was, data[place] = data[place], int(random.integers(32, 127))
        file.write_bytes(data)
        data[place] = was
        try:
            load_single_file(file, None, torch.float32)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all("spoilt.safetensors" in message for message in refused)
