"""Conversion both ways: the same logits, the same weights, and clear words where it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModelWithProjection

from leaf_diffusion.cli.convert import CONFIG, WEIGHTS, convert, read_differently
from leaf_diffusion.encoders.convert import to_open_clip, to_transformers
from leaf_diffusion.encoders.convert_config import open_clip_config, transformers_config
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from tests import tiny

TEXTS = ["a red umbrella", "zwei Katzen, 猫"]


def model(act: str = "quick_gelu") -> CLIPModel:
    vision: tiny.Changes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "hidden_act": act}
    clip = tiny.clip(text={"num_hidden_layers": 3, "hidden_act": act}, vision=vision)
    with torch.no_grad():  # biases and gains that are not their neutral selves
        for parameter in clip.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


@torch.no_grad()
def logits(clip: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    ids = clip_tokenizer()(TEXTS, padding="max_length", return_tensors="pt").input_ids
    if isinstance(clip, CLIPModel):
        return clip(input_ids=ids, pixel_values=images).logits_per_image
    import open_clip

    image, text, scale = clip(images, open_clip.SimpleTokenizer()(TEXTS))
    return scale * image @ text.T


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_both_ways_have_the_same_logits(tmp_path: Path, act: str) -> None:
    import open_clip

    clip, images = model(act), torch.randn(3, 3, 16, 16)
    clip.save_pretrained(tmp_path / "hf")
    assert convert([str(tmp_path / "hf"), str(tmp_path / "oc")]) == 0
    config = json.loads((tmp_path / "oc" / CONFIG).read_text())["model_cfg"]
    assert config["quick_gelu"] is (act == "quick_gelu")
    other = open_clip.CLIP(**{k: v for k, v in config.items() if k != "quick_gelu"}, quick_gelu=config["quick_gelu"])
    other.load_state_dict(load_file(tmp_path / "oc" / WEIGHTS))
    wanted = logits(clip, images)
    torch.testing.assert_close(logits(other.eval(), images), wanted, rtol=1e-5, atol=1e-5)
    assert convert([str(tmp_path / "oc"), str(tmp_path / "back")]) == 0
    back = CLIPModel.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(logits(back, images), wanted, rtol=0, atol=0)
    assert back.config.text_config.hidden_act == back.config.vision_config.hidden_act == act
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in clip.state_dict().items())


def test_open_clips_own_loader_reads_the_folder(tmp_path: Path) -> None:
    import open_clip

    model().save_pretrained(tmp_path / "hf")
    convert([str(tmp_path / "hf"), str(tmp_path / "oc")])
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'oc'}")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(logits(loaded.eval(), images), logits(model(), images), rtol=1e-5, atol=1e-5)


def test_text_halves(tmp_path: Path) -> None:
    clip = model()
    tower = CLIPTextModelWithProjection(clip.config.text_config)
    state = clip.state_dict()
    tower.load_state_dict({key: state[key] for key in tower.state_dict()})
    tower.save_pretrained(tmp_path / "hf")
    convert([str(tmp_path / "hf"), str(tmp_path / "oc")])
    convert([str(tmp_path / "oc"), str(tmp_path / "back")])
    back = CLIPTextModelWithProjection.from_pretrained(tmp_path / "back")
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in tower.state_dict().items())
    flat = {key.removeprefix("text_model."): value for key, value in tower.state_dict().items()}
    assert to_open_clip(flat).keys() == to_open_clip(tower.state_dict()).keys()
    custom = {f"text.{key}": value for key, value in to_open_clip(state).items() if "visual" not in key}
    assert set(tower.state_dict()) <= set(to_transformers(custom))


def test_configurations_of_open_clips_models_survive_the_round() -> None:
    import open_clip

    for name in ("ViT-B-32", "ViT-L-14-quickgelu", "ViT-H-14", "ViT-bigG-14"):
        given = open_clip.get_model_config(name)
        back = open_clip_config(transformers_config(given))
        for part in ("text_cfg", "vision_cfg"):
            half = back[part]
            assert isinstance(half, dict)
            assert {key: half.get(key) for key in given[part]} == pytest.approx(given[part], rel=1e-4)
        assert back["quick_gelu"] == given.get("quick_gelu", False)
    with pytest.raises(ValueError, match="plain open_clip"):
        transformers_config(open_clip.get_model_config("RN50"))


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unet\.weight has no place in an open_clip"):
        to_open_clip({"unet.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="has no place in a transformers CLIP"):
        to_transformers({"visual.trunk.weight": torch.zeros(1)})
    file = tmp_path / "weights.safetensors"
    save_file({"logit_scale": torch.zeros(())}, file)
    with pytest.raises(ValueError, match="name its --architecture"):
        convert([str(file), str(tmp_path / "out")])
    with pytest.raises(ValueError, match="no architecture 'ViT-nowhere'"):
        convert([str(file), str(tmp_path / "out"), "--architecture", "ViT-nowhere"])
    with pytest.raises(ValueError, match="does not fit the architecture"):
        convert([str(file), str(tmp_path / "out"), "--architecture", "ViT-B-32"])
    with pytest.raises(ValueError, match="pickles are not opened"):
        convert([str(tmp_path / "weights.bin"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="not empty"):
        convert([str(file), str(tmp_path)])


def test_checkpoints_that_are_not_whole_are_refused_in_words() -> None:
    state = model().state_dict()
    del state["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"comes without text_model.encoder.layers.1.self_attn.k_proj.bias"):
        to_open_clip(state)
    for shape in ([], [0], [7, 2]):
        with pytest.raises(ValueError, match="cannot be split into query, key and value"):
            to_transformers({"transformer.resblocks.0.attn.in_proj_weight": torch.zeros(shape)})
    wrongs: list[Any] = [{}, [], {"text_cfg": 3}, {"text_cfg": {"width": None}, "embed_dim": 4}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="no model_cfg of an open_clip CLIP"):
            transformers_config(wrong)


def saved_open_clip(
    folder: Path,
    clip: torch.nn.Module,
    *,
    text: dict[str, object] | None = None,
    vision: dict[str, object] | None = None,
    preprocess: dict[str, object] | None = None,
    **more: object,
) -> Path:
    """The transformers CLIP as an open_clip folder with changed settings."""
    clip.save_pretrained(folder / "before")
    convert([str(folder / "before"), str(folder / "oc")])
    content = json.loads((folder / "oc" / CONFIG).read_text())
    content["model_cfg"]["text_cfg"] |= text or {}
    content["model_cfg"]["vision_cfg"] |= vision or {}
    content["model_cfg"] |= more
    content["preprocess_cfg"] |= preprocess or {}
    (folder / "oc" / CONFIG).write_text(json.dumps(content))
    return folder / "oc"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text": {"no_causal_mask": True}}, r"text_cfg\.no_causal_mask is True"),
        ({"text": {"pool_type": "last"}}, r"text_cfg\.pool_type 'last'"),
        ({"text": {"pool_type": "eos", "eos_id": 2}}, r"text_cfg\.pool_type 'eos' \(eos_id 2\)"),
        ({"text": {"embed_cls": True}}, r"text_cfg\.embed_cls"),
        ({"text": {"act_kwargs": {"approximate": "tanh"}}}, r"text_cfg\.act_kwargs"),
        ({"text": {"norm_kwargs": {"elementwise_affine": False}}}, r"text_cfg\.norm_kwargs"),
        ({"text": {"ls_init_value": 1e-4}}, r"text_cfg\.ls_init_value"),
        ({"text": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, r"text_cfg\.tokenizer_kwargs"),
        ({"text": {"hf_tokenizer_name": "bert-base-uncased"}}, r"text_cfg\.hf_tokenizer_name"),
        ({"text": {"unheard_of": 1}}, r"text_cfg\.unheard_of"),
        ({"vision": {"no_ln_pre": True}}, r"vision_cfg\.no_ln_pre"),
        ({"vision": {"pool_type": "avg"}}, r"vision_cfg\.pool_type"),
        ({"init_logit_bias": -10}, r"model_cfg\.init_logit_bias"),
        ({"multimodal_cfg": {"layers": 1}}, r"model_cfg\.multimodal_cfg"),
        ({"preprocess": {"resize_mode": "squash"}}, r"preprocess_cfg\.resize_mode"),
        ({"preprocess": {"interpolation": "random"}}, r"preprocess_cfg\.interpolation"),
        ({"preprocess": {"size": 32}}, r"preprocess_cfg\.size is 32"),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_name(
    tmp_path: Path, settings: dict[str, dict[str, object]], said: str
) -> None:
    folder = saved_open_clip(tmp_path, model(), **settings)
    with pytest.raises(ValueError, match=said):
        convert([str(folder), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_norms_and_preprocessing_go_both_ways(tmp_path: Path) -> None:
    import open_clip
    from transformers import CLIPImageProcessor

    from leaf_diffusion.encoders.image_encoder import load_image_encoder

    clip = model()
    for half in (clip.config.text_config, clip.config.vision_config):
        half.layer_norm_eps = 0.1
    clip = CLIPModel(clip.config).eval()
    mean = [0.5, 0.5, 0.5]
    side = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size=side, image_mean=mean, image_std=mean, resample=2
    )
    for name in ("before", "hf"):
        processor.save_pretrained(tmp_path / name)
        clip.save_pretrained(tmp_path / name)
    folder = saved_open_clip(tmp_path, clip)
    content = json.loads((folder / CONFIG).read_text())
    assert content["preprocess_cfg"]["mean"] == content["preprocess_cfg"]["std"] == mean
    assert content["preprocess_cfg"]["interpolation"] == "bilinear"
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(logits(loaded.eval(), images), logits(clip, images), rtol=1e-5, atol=1e-5)
    convert([str(folder), str(tmp_path / "back")])
    first, second = (load_image_encoder(tmp_path / name) for name in ("hf", "back"))
    assert first.fingerprint == second.fingerprint
    torch.testing.assert_close(
        logits(CLIPModel.from_pretrained(tmp_path / "back").eval(), images), logits(clip, images)
    )


def test_no_projection_is_invented(tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    tower = CLIPTextModel(model().config.text_config)
    tower.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"missing, such as text_projection\.weight"):
        convert([str(tmp_path / "bare"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_transformers_settings_that_open_clip_lacks() -> None:
    config = model().config
    for change, said in (
        ({"eos_token_id": 7}, "eos_token_id 7"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"hidden_act": "relu"}, "relu"),
    ):
        text = type(config.text_config)(**(config.text_config.to_dict() | change))
        with pytest.raises(ValueError, match=said):
            open_clip_config(text)


def test_captions_that_the_two_libraries_read_differently_are_counted() -> None:
    plain = ["a red cat", "two dogs, one ball"]
    assert read_differently(plain) == 0
    # an HTML entity, curly quotes, full width
    assert read_differently([*plain, "cats &amp; dogs", "a \u201cred\u201d cat", "a \uff52\uff45\uff44 cat"]) == 3


def test_the_names_of_a_training_on_several_processes_are_read() -> None:
    state = {"ln_final.weight": torch.ones(4), "positional_embedding": torch.ones(2, 4)}
    wrapped = {f"module.{key}": value for key, value in state.items()}
    assert to_transformers(wrapped).keys() == to_transformers(state).keys()
