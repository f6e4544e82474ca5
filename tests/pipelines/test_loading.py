"""How each Leaf pipeline is loaded: names, folders, single files, variants, types, adapters; and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, PreTrainedModel

from leaf_diffusion.encoders import clip_tokenizer, load_text_encoder
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline, LeafStableDiffusionXLPipeline

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = (
        {key.removeprefix("text_model."): value for key, value in each.state_dict().items()} for each in (one, other)
    )
    return all(torch.equal(a[key], b[key]) for key in a.keys() & b.keys()) and len(a.keys() & b.keys()) > 10


def test_what_a_leaf_pipeline_saves_is_stock(kind: Kind, folders: Callable[[Kind], Path], tmp_path: Path) -> None:
    new = {part: kind.new_tower(part) for part in kind.towers}
    leaf = kind.leaf.from_pretrained(folders(kind), **kind.load, **new)
    leaf.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == kind.stock.__name__
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]
    expected = kind.image(leaf)
    loaders = [kind.stock, DiffusionPipeline, AutoPipelineForText2Image]
    alone = {name: value for name, value in kind.load.items() if value is None or value is False}
    for loader in loaders:
        loaded = loader.from_pretrained(tmp_path, **(alone if loader is DiffusionPipeline else kind.load))
        assert type(loaded) is kind.stock
        assert np.array_equal(kind.image(loaded), expected)
    assert type(kind.leaf.from_pretrained(tmp_path, **kind.load)) is kind.leaf
    assert not np.array_equal(kind.image(kind.stock.from_pretrained(folders(kind), **kind.load)), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtypes_reach_a_swapped_encoder(kind: Kind, folders: Callable[[Kind], Path], dtype: str | torch.dtype) -> None:
    new = kind.new_tower(kind.towers[-1])
    leaf = kind.leaf.from_pretrained(folders(kind), dtype=dtype, **kind.load, **{kind.towers[-1]: new})
    found = {name: part.dtype for name, part in leaf.components.items() if isinstance(part, torch.nn.Module)}
    assert set(found.values()) == {torch.bfloat16}
    assert new.dtype == torch.float32
    assert kind.image(leaf).shape == (1, *kind.image(leaf).shape[1:])
    again = kind.leaf.from_pipe(leaf, dtype=torch.bfloat16, **{kind.towers[0]: kind.new_tower(kind.towers[0])})
    assert getattr(again, kind.towers[0]).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="unknown dtype 'half-ish'"):
        kind.leaf.from_pretrained(folders(kind), dtype="half-ish", **kind.load)


def test_variants(kind: Kind, folders: Callable[[Kind], Path], tmp_path: Path) -> None:
    kind.stock.from_pretrained(folders(kind), **kind.load).to(dtype=torch.float16).save_pretrained(
        tmp_path, variant="fp16"
    )
    leaf = kind.leaf.from_pretrained(tmp_path, variant="fp16", dtype=torch.float32, **kind.load)
    stock = kind.stock.from_pretrained(tmp_path, variant="fp16", dtype=torch.float32, **kind.load)
    assert np.array_equal(kind.image(leaf), kind.image(stock))
    plain = kind.leaf.from_pretrained(tmp_path, variant="fp16", **kind.load)  # the stock class would mix types here
    assert np.array_equal(kind.image(plain), kind.image(stock))
    with pytest.raises(ValueError, match="variant=bf16"):
        kind.leaf.from_pretrained(tmp_path, variant="bf16", **kind.load)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft against transformers 5
@pytest.mark.parametrize("index", [0, 1])
def test_an_adapter_on_each_tower(kind: Kind, folders: Callable[[Kind], Path], tmp_path: Path, index: int) -> None:
    peft = pytest.importorskip("peft")
    if index == len(kind.towers):
        with pytest.raises(ValueError, match="no text_encoder_2 that could be exchanged"):
            kind.leaf.from_pretrained(folders(kind), adapter_2=tmp_path, **kind.load)
        return
    part, argument = kind.towers[index], ("adapter", "adapter_2")[index]
    base = kind.leaf.from_pretrained(folders(kind), **kind.load)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    torch.manual_seed(0)
    lora = peft.get_peft_model(getattr(kind.leaf.from_pretrained(folders(kind), **kind.load), part), config).eval()
    lora.save_pretrained(tmp_path / "lora")
    leaf = kind.leaf.from_pretrained(folders(kind), **{argument: tmp_path / "lora"}, **kind.load)
    rows = torch.tensor(clip_tokenizer()(["a red umbrella"]).input_ids)
    expected = lora(input_ids=rows).last_hidden_state
    torch.testing.assert_close(getattr(leaf, part)(rows).last_hidden_state, expected)
    for other in kind.towers:
        assert same_weights(getattr(leaf, other), getattr(base, other)) is (other != part)
    shared = kind.leaf.from_pipe(base, **{argument: tmp_path / "lora"})
    assert np.array_equal(kind.image(shared), kind.image(leaf))
    assert not np.array_equal(kind.image(base), kind.image(leaf))


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_single_files(
    kinds: dict[str, Kind],
    folders: Callable[[Kind], Path],
    single_file: Callable[[Kind, Mapping[str, object]], dict[str, torch.Tensor]],
    tmp_path: Path,
    name: str,
) -> None:
    kind = kinds[name]
    file = tmp_path / "model.safetensors"
    save_file(single_file(kind, kind.parts()), file)
    leaf = kind.leaf.from_single_file(file, config=str(folders(kind)), local_files_only=True, **kind.load)
    assert type(leaf) is kind.leaf
    stock = kind.stock.from_pretrained(folders(kind), **kind.load)
    assert np.array_equal(kind.image(leaf), kind.image(stock))
    new = kind.new_tower(kind.towers[-1])
    new.save_pretrained(tmp_path / "new")
    options = {"config": str(folders(kind)), "dtype": "float16", kind.towers[-1]: tmp_path / "new"}
    swapped = kind.leaf.from_single_file(file, **options, **kind.load)
    assert getattr(swapped, kind.towers[-1]).dtype == swapped.unet.dtype == torch.float16
    assert same_weights(getattr(swapped, kind.towers[-1]), new.half())
    # a file without text encoders takes the given one as it is
    bare = {key: value for key, value in load_file(file).items() if not key.startswith(("cond_stage", "conditioner"))}
    save_file(bare, tmp_path / "bare.safetensors")
    given = {part: kind.parts()[part] for part in kind.towers}
    config = str(folders(kind))
    leaf = kind.leaf.from_single_file(tmp_path / "bare.safetensors", config=config, **given, **kind.load)
    assert np.array_equal(kind.image(leaf), kind.image(stock))
    with pytest.raises(FileNotFoundError, match="Give config=FOLDER"):
        kind.leaf.from_single_file(file)
    with pytest.raises(ValueError, match=rf"is a file, no folder: load it with {kind.leaf.__name__}.from_single_file"):
        kind.leaf.from_pretrained(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        kind.leaf.from_single_file(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"model.ckpt is a pickle.*python -c"):
        kind.leaf.from_single_file("https://huggingface.co/some/model/blob/main/model.ckpt")


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_single_files_of_another_depth_or_with_holes(
    kinds: dict[str, Kind],
    folders: Callable[[Kind], Path],
    single_file: Callable[[Kind, Mapping[str, object]], dict[str, torch.Tensor]],
    tmp_path: Path,
    name: str,
) -> None:
    kind, file = kinds[name], tmp_path / "model.safetensors"
    whole = single_file(kind, kind.parts())
    tower = next(key for key in whole if key.endswith("layers.2.mlp.fc1.bias"))
    holes = ("model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_in.bias", tower)
    more = {
        "UNet2DConditionModel": "model.diffusion_model.input_blocks.9.0.in_layers.0.bias",
        "AutoencoderKL": "first_stage_model.encoder.down.7.block.0.norm1.bias",
        "text_encoder": tower.replace("layers.2", "layers.3"),
    }
    for said, tensors in [
        *((r"missing", {key: value for key, value in whole.items() if key != hole}) for hole in holes),
        *((rf"{part}.* of the configuration", whole | {key: torch.ones(4)}) for part, key in more.items()),
    ]:
        save_file(tensors, file)
        with pytest.raises(ValueError, match=said):
            kind.leaf.from_single_file(file, config=str(folders(kind)), local_files_only=True, **kind.load)


def test_pickled_folders_are_refused_with_a_command_that_works(
    kinds: dict[str, Kind], folders: Callable[[Kind], Path], tmp_path: Path
) -> None:
    kind = kinds["sd"]
    folder = tmp_path / "old"
    shutil.copytree(folders(kind), folder)
    for file in folder.rglob("*.safetensors"):
        old = file.with_suffix(".bin").name
        torch.save(load_file(file), file.with_name(f"pytorch_{old}" if old == "model.bin" else old))
        file.unlink()
    with pytest.raises(ValueError, match="only pickled weights") as refused:
        kind.leaf.from_pretrained(folder)
    words = shlex.split(str(refused.value).partition("Convert them: ")[2])
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    stock = kind.stock.from_pretrained(folders(kind))
    assert np.array_equal(kind.image(kind.leaf.from_pretrained(folder)), kind.image(stock))
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    given = kind.leaf.from_pretrained(folder, unet=stock.unet)  # a part that is given is not read
    assert np.array_equal(kind.image(given), kind.image(stock))


def test_what_is_not_there_says_what_to_do(
    kinds: dict[str, Kind], folders: Callable[[Kind], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = LeafStableDiffusionPipeline.from_pretrained
    with pytest.raises(FileNotFoundError, match=r"no pipeline 'no/such': .*HF_HUB_OFFLINE keeps the Hub out"):
        load("no/such")
    with pytest.raises(FileNotFoundError, match=r"local_files_only=True keeps the Hub out"):
        load("no/such", local_files_only=True)
    with pytest.raises(FileNotFoundError, match=r"the folder .*/nowhere does not exist"):
        load("./nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no model_index.json"):
        load(tmp_path)
    kinds["sd"].new_tower("text_encoder").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"it holds an encoder, which is given as text_encoder="):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no text encoder 'no/such': HF_HUB_OFFLINE is set"):
        load("world", text_encoder="no/such")
    with pytest.raises(ValueError, match='"world" is a StableDiffusionPipeline'):
        LeafStableDiffusionXLPipeline.from_pretrained("world")
    with pytest.raises(ValueError, match=r"is a StableDiffusionXLPipeline, .*: use LeafStableDiffusionXLPipeline"):
        load(folders(kinds["xl"]))
    with pytest.raises(ValueError, match="use_safetensors=False would open pickles"):
        load("world", use_safetensors=False)
    (tmp_path / "model_index.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"model_index.json is damaged"):
        load(tmp_path)


def test_sd3_keeps_clip_ls_pooled_state_unprojected(
    kinds: dict[str, Kind], folders: Callable[[Kind], Path], new_tower: Callable[..., PreTrainedModel]
) -> None:
    kind = kinds["sd3"]
    new = kind.new_tower("text_encoder")  # with a projection of its own, as every robust CLIP-L has
    leaf = kind.leaf.from_pretrained(folders(kind), text_encoder=new, **kind.load)
    assert torch.equal(leaf.text_encoder.text_projection.weight, torch.eye(64))
    assert same_weights(leaf.text_encoder.text_model, new.text_model)
    unprojected = kind.new_tower("text_encoder")
    unprojected.text_projection.weight.copy_(torch.eye(64))
    stock = kind.stock(**kind.parts() | {"text_encoder": unprojected})
    assert np.array_equal(kind.image(leaf), kind.image(stock))
    wide = kind.new_tower("text_encoder", projection_dim=32)  # which cannot matter, as it is not used
    assert (
        kind.leaf.from_pretrained(folders(kind), text_encoder=wide, **kind.load).text_encoder.config.projection_dim
        == 64
    )
    bare = load_text_encoder(new_tower(CLIPTextModel, seed=5), tokenizer=clip_tokenizer())
    swapped = kind.leaf.from_pretrained(folders(kind), text_encoder=bare, **kind.load)
    assert torch.equal(swapped.text_encoder.text_projection.weight, torch.eye(64))


Edit = Callable[[dict[str, torch.Tensor], str], object]
EDITS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda state, key: state.pop(key), "1 tensors of .* are missing, such as"),
    "left over": (lambda state, key: state.update({"somewhere.weight": torch.ones(3)}), "1 tensors of .* are too many"),
    "no number": (lambda state, key: state[key].mul_(torch.nan), "holds NaN or infinity"),
    "another shape": (lambda state, key: state.update({key: torch.ones(3)}), "shape"),
}


@pytest.mark.parametrize("part", ["text_encoder", "denoiser", "vae"])
@pytest.mark.parametrize("edit", EDITS)
def test_a_part_that_is_not_whole_is_refused(
    kind: Kind, folders: Callable[[Kind], Path], tmp_path: Path, part: str, edit: str
) -> None:
    part = ("transformer" if kind.name == "sd3" else "unet") if part == "denoiser" else part
    shutil.copytree(folders(kind), tmp_path / "pipeline")
    (file,) = (tmp_path / "pipeline" / part).glob("*.safetensors")
    state = load_file(file)
    change, said = EDITS[edit]
    change(state, max(key for key in state if key.endswith("weight") and state[key].ndim > 1))
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=said):
        kind.leaf.from_pretrained(tmp_path / "pipeline", **kind.load)
