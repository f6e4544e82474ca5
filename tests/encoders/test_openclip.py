"""The towers of open_clip, against open_clip's own encode_text."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from leaf_diffusion.encoders import load_text_encoder
from leaf_diffusion.encoders.base import Hidden
from leaf_diffusion.encoders.openclip import OpenCLIPTextEncoder, load_openclip
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

TEXTS = ["a red umbrella", "", "Café 😀 &amp; tea", "many words " * 60]


def model(cls: type[torch.nn.Module] = open_clip.CLIP, **text: object) -> torch.nn.Module:
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=16)
    settings = {"width": 32, "heads": 2, "layers": 3, **text}
    return cls(24, vision, CLIPTextCfg(**settings)).eval()


@pytest.mark.parametrize("cls", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_features_are_those_of_open_clip(cls: type[torch.nn.Module]) -> None:
    clip = model(cls)
    encoder = OpenCLIPTextEncoder(clip)
    ids = SimpleTokenizer()(TEXTS)
    rows = encoder.tokenize(TEXTS)
    assert [row + [0] * (77 - len(row)) for row in rows] == ids.tolist()
    torch.testing.assert_close(encoder.features(rows), clip.encode_text(ids), rtol=1e-4, atol=1e-5)
    assert encoder.is_truncated(TEXTS) == [False, False, False, True]
    assert encoder.features(rows, "pooled").shape == (4, 32)


def test_custom_and_plain_tower_agree() -> None:
    plain, custom = model(), model(open_clip.CustomTextCLIP)
    custom.text.load_state_dict(
        {key: value for key, value in plain.state_dict().items() if key in custom.text.state_dict()}
    )
    rows = OpenCLIPTextEncoder(plain).tokenize(TEXTS)
    torch.testing.assert_close(
        OpenCLIPTextEncoder(custom.text).features(rows), OpenCLIPTextEncoder(plain).features(rows)
    )


def test_hidden_states_and_embeddings() -> None:
    clip = model(open_clip.CustomTextCLIP)
    encoder = OpenCLIPTextEncoder(clip)
    rows, ids = encoder.tokenize(TEXTS), SimpleTokenizer()(TEXTS)
    own = clip.text.forward_intermediates(ids, output_fmt="NLC")["text_intermediates"]
    for layer in (-2, 1):
        expected = own[layer if layer < 0 else layer - 1].flatten(1)
        torch.testing.assert_close(encoder.features(rows, Hidden(layer, "all")), expected, rtol=1e-4, atol=1e-5)
    embeds = encoder.token_embedding()[ids]
    torch.testing.assert_close(
        encoder.features_from_embeddings(embeds, rows, Hidden(-1, "all")), encoder.features(rows, Hidden(-1, "all"))
    )


def test_a_transformers_tokenizer_serves_too() -> None:
    encoder = load_text_encoder(model(), tokenizer=clip_tokenizer())
    assert isinstance(encoder, OpenCLIPTextEncoder)
    assert encoder.tokenize(["a red cat"]) == OpenCLIPTextEncoder(model()).tokenize(["a red cat"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"no_causal_mask": True}, "not causal"),
        ({"embed_cls": True}, "class token"),
        ({"pool_type": "last"}, "pools 'last'"),
        ({"vocab_size": 1000}, "embeds 1000 tokens"),
        ({"pool_type": "eos", "eos_id": 2}, "not the tokenizer's end-of-text"),
    ],
)
def test_other_towers_are_refused(text: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OpenCLIPTextEncoder(model(open_clip.CustomTextCLIP, **text))


def test_fingerprint_ignores_the_image_half() -> None:
    clip = model()
    encoder = OpenCLIPTextEncoder(clip)
    first = encoder.fingerprint
    with torch.no_grad():
        clip.visual.conv1.weight += 1
    assert encoder.fingerprint == first
    with torch.no_grad():
        clip.ln_final.bias += 1
    assert encoder.fingerprint != first


def test_named_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="should read openclip:ARCHITECTURE/PRETRAINED"):
        load_text_encoder("openclip:no-such-model/openai")
    with pytest.raises(FileNotFoundError, match="neither a file nor one of the tags"):
        load_openclip("ViT-B-32/nothing")
    pickle = tmp_path / "weights.pt"
    pickle.write_bytes(b"")
    with pytest.raises(ValueError, match="comes as a pickle"):
        load_openclip(f"ViT-B-32/{pickle}")
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    small = open_clip.create_model("ViT-S-32-alt")
    save_file({key: value.contiguous() for key, value in small.state_dict().items()}, weights)
    encoder = load_text_encoder(f"openclip:ViT-S-32-alt/{weights}")
    ids = SimpleTokenizer()(["a red cat"])
    torch.testing.assert_close(
        encoder.features(encoder.tokenize(["a red cat"])), small.eval().encode_text(ids), rtol=1e-4, atol=1e-4
    )
