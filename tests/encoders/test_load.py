"""load_text_encoder: every kind of source, and every way in which one can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from leaf_diffusion.encoders import load_text_encoder, sources
from leaf_diffusion.encoders.base import Feature, TextEncoder
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from tests import tiny
from tests.tiny import tower

TEXTS = ["a red umbrella", "an other one"]


def features(encoder: TextEncoder, what: Feature = "projected") -> torch.Tensor:
    return encoder.features(encoder.tokenize(TEXTS), what)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_folder_with_its_tokenizer(tmp_path: Path) -> None:
    model = tower()
    model.save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    encoder = load_text_encoder(tmp_path)
    assert torch.equal(features(encoder), features(load_text_encoder(model, tokenizer=clip_tokenizer())))
    assert encoder.name == str(tmp_path)
    assert not any(p.requires_grad for p in encoder.module.parameters())
    assert not encoder.module.training


def test_folder_without_tokenizer_has_clips(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    assert load_text_encoder(str(tmp_path)).tokenize(["a cat"]) == [[49406, 320, 2368, 49407]]


def test_whole_clip_folder_with_stale_projection_width(tmp_path: Path) -> None:
    clip = tiny.clip()
    clip.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["projection_dim"] = 512  # as in the published ViT-H
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_text_encoder(tmp_path)
    assert isinstance(encoder.module, CLIPTextModelWithProjection)
    torch.testing.assert_close(features(encoder), features(load_text_encoder(clip, tokenizer=clip_tokenizer())))


def test_pipeline_folder_and_subfolder(tmp_path: Path) -> None:
    model = tower(CLIPTextModel)
    model.save_pretrained(tmp_path / "text_encoder")
    clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    pooled = load_text_encoder(model, tokenizer=clip_tokenizer()).features([[49406, 320, 49407]], "pooled")
    encoder = load_text_encoder(tmp_path, subfolder="text_encoder")
    assert torch.equal(encoder.features([[49406, 320, 49407]], "pooled"), pooled)
    (tmp_path / "model_index.json").write_text("{}")
    assert torch.equal(load_text_encoder(tmp_path).features([[49406, 320, 49407]], "pooled"), pooled)
    assert isinstance(load_text_encoder(tmp_path).module, CLIPTextModel)


def test_a_module_needs_its_tokenizer_and_is_left_alone() -> None:
    model = tower()
    with pytest.raises(ValueError, match="pass tokenizer="):
        load_text_encoder(model)
    half = load_text_encoder(model, tokenizer=clip_tokenizer(), dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    assert features(half).dtype == torch.float32
    assert load_text_encoder(model, tokenizer=clip_tokenizer()).module is model


def test_half_precision_files_are_computed_in_float32(tmp_path: Path) -> None:
    tower().half().save_pretrained(tmp_path)
    assert load_text_encoder(tmp_path).dtype == torch.float32
    assert load_text_encoder(tmp_path, dtype=torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match="unknown dtype 'fp17'"):
        load_text_encoder(tmp_path, dtype="fp17")


def toy(name: str) -> tuple[PreTrainedModel, CLIPTokenizer]:
    return tower(), clip_tokenizer()


def test_registered_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LOADERS", dict(sources._LOADERS))
    sources.register("toy", f"{__name__}:toy")
    encoder = load_text_encoder("toy:anything", defence="speller")
    assert encoder.name == "toy:anything"
    assert encoder.preprocess(["a red umbrela"]) == ["a red umbrella"]
    with pytest.raises(ValueError, match="no revision or subfolder"):
        load_text_encoder("toy:anything", revision="main")
    with pytest.raises(ValueError, match="unknown defence 'moat'; known: canonical, speller, visible"):
        load_text_encoder("toy:anything", defence="moat")
    with pytest.raises(ValueError, match="prefix without"):
        sources.register("a:b", "c:d")


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "wrold:leaf", "nobody/nothing"])
def test_missing_models(source: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"no text encoder '{source}'(.|\n)*Hugging Face Hub(.|\n)*world:original"
    ):
        load_text_encoder(source)


def test_pickles_are_refused(tmp_path: Path) -> None:
    tiny.text_config().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors"):
        load_text_encoder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_text_encoder(tmp_path)


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    save_file({"text_projection.weight": torch.zeros(8, 16)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tensors of .* are missing"):
        load_text_encoder(tmp_path)


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match='model_type "gpt2" is no text encoder'):
        load_text_encoder(tmp_path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft against transformers 5
def test_adapter_is_merged_into_a_copy(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tower()
    before = features(load_text_encoder(model, tokenizer=clip_tokenizer())).clone()
    lora = peft.get_peft_model(
        tower(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    lora.save_pretrained(tmp_path / "lora")
    encoder = load_text_encoder(model, tokenizer=clip_tokenizer(), adapter=tmp_path / "lora")
    ids = clip_tokenizer()(TEXTS, padding=True, return_tensors="pt").input_ids
    torch.testing.assert_close(features(encoder), lora.eval()(input_ids=ids).text_embeds)
    plain = load_text_encoder(model, tokenizer=clip_tokenizer())
    assert torch.equal(features(plain), before)
    assert not torch.allclose(features(encoder), before)
    assert encoder.fingerprint != plain.fingerprint
    assert encoder.name.endswith("+lora")
    bare = load_text_encoder(tower(CLIPTextModel), tokenizer=clip_tokenizer(), adapter=tmp_path / "lora")
    assert not torch.allclose(features(bare, "pooled"), features(plain, "pooled"))
    torch.testing.assert_close(features(bare, "pooled"), features(encoder, "pooled"))
    with pytest.raises(ValueError, match="tensors have no place"):
        load_text_encoder(tower(num_hidden_layers=1), tokenizer=clip_tokenizer(), adapter=tmp_path / "lora")


def test_missing_or_pickled_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(FileNotFoundError, match="neither a folder nor on the Hugging Face Hub"):
        load_text_encoder(tower(), tokenizer=clip_tokenizer(), adapter="nobody/lora")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors not found"):
        load_text_encoder(tower(), tokenizer=clip_tokenizer(), adapter=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model_type": "clip_text_model", "hidden_size": 0}']
)
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    tower().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_text_encoder(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings"])
def test_a_configuration_far_larger_than_the_weights_is_refused_before_anything_is_built(
    tmp_path: Path, name: str
) -> None:
    tower().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 10**9}))
    with pytest.raises(ValueError, match=r"config.json describes a tower of .* weights"):
        load_text_encoder(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:100], whole[:-1], b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} is damaged"):
            load_text_encoder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 3}'])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    tower().save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}: the tokenizer in it cannot be read"):
        load_text_encoder(tmp_path)


def test_a_token_of_an_absurd_id_is_refused(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["cat</w>"] = 10**9  # written out, it would be a file of gigabytes
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a token of id 1000000000"):
        load_text_encoder(tmp_path)


def test_code_beside_the_weights_is_refused_and_nobody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    tower().save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"{tmp_path}: config.json cannot be used .*custom code"):
        load_text_encoder(tmp_path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft against transformers 5
def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(tower(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path)
    right = (tmp_path / "adapter_config.json").read_bytes()
    for content in (b"", b"[]", b'{"peft_type": 3}', right.replace(b'"LORA"', b'"x"')):
        (tmp_path / "adapter_config.json").write_bytes(content)
        with pytest.raises(ValueError, match=str(tmp_path)):
            load_text_encoder(tower(), tokenizer=clip_tokenizer(), adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(right)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(ValueError, match=rf"{tmp_path}: the adapter cannot be merged"):
        load_text_encoder(tower(), tokenizer=clip_tokenizer(), adapter=tmp_path)


def changed(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object], **config: object) -> None:
    """The model in the folder with edited weights and configuration."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))


def lose(part: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: [state.pop(key) for key in list(state) if part in key]


def spoil(state: dict[str, torch.Tensor]) -> None:
    state[max(state)].view(-1)[0] = float("nan")


@pytest.mark.parametrize(
    ("edit", "config", "said"),
    [
        (lose("layers.1.mlp"), {}, r"4 tensors .* missing, .*layers\.1\.mlp"),
        (lose("text_projection"), {}, r"1 tensors .* missing, such as text_projection"),
        (lose("nothing"), {"num_hidden_layers": 1}, r"16 tensors .* too many, .*layers\.1\."),
        (lose("nothing"), {"num_hidden_layers": 3}, r"16 tensors .* missing, .*layers\.2\."),
        (lose("nothing"), {"max_position_embeddings": 60}, r"position_embedding.weight: \[77, 16\] there, \[60, 16\]"),
        (spoil, {}, "'text_projection.weight' holds NaN or infinity"),
        (lambda state: state.update(extra=torch.ones(1)), {}, r"1 tensors .* too many, such as extra"),
        (lose("nothing"), {"attn_implementation": "somebody/kernels"}, "the kernel 'somebody/kernels'"),
    ],
)
def test_weights_are_whole_and_the_configurations(
    tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], object], config: dict[str, object], said: str
) -> None:
    tower().save_pretrained(tmp_path)
    changed(tmp_path, edit, **config)
    with pytest.raises(ValueError, match=said):
        load_text_encoder(tmp_path)


def test_position_ids_of_old_versions_are_no_weights(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    wanted = features(load_text_encoder(tmp_path))
    changed(tmp_path, lambda state: state.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    assert torch.equal(features(load_text_encoder(tmp_path)), wanted)


def test_a_stored_projection_is_used_whatever_the_configuration_calls_the_tower(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    wanted = features(load_text_encoder(tmp_path))
    changed(tmp_path, lambda state: None, architectures=["CLIPTextModel"])
    assert torch.equal(features(load_text_encoder(tmp_path)), wanted)


def test_half_precision_alone_is_read(tmp_path: Path) -> None:
    tower().half().save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "model.safetensors").exists()
    assert load_text_encoder(tmp_path).dtype == torch.float32
    with_name = features(load_text_encoder(tmp_path))
    torch.testing.assert_close(
        with_name, features(load_text_encoder(tower(), tokenizer=clip_tokenizer())), atol=2e-2, rtol=0
    )


def test_a_module_of_nan_is_refused() -> None:
    model = tower()
    spoil(model.state_dict())
    with pytest.raises(ValueError, match=r"CLIPTextModelWithProjection: the tensor .* holds NaN"):
        load_text_encoder(model, tokenizer=clip_tokenizer())


def test_an_index_and_its_files_are_read(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path, max_shard_size="2MB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(
        features(load_text_encoder(tmp_path)), features(load_text_encoder(tower(), tokenizer=clip_tokenizer()))
    )
