"""LoRA adapters: merged whole, or refused by what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leaf_diffusion import load_text_encoder
from leaf_diffusion.encoders.adapter import WEIGHTS
from leaf_diffusion.tokens.tokenizer import clip_tokenizer
from tests import tiny

peft = pytest.importorskip("peft")
State = dict[str, torch.Tensor]


def adapted(folder: Path) -> torch.Tensor:
    """Write an adapter; what PEFT itself computes with it."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(tiny.tower(), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=torch.tensor([clip_tokenizer()("a cat").input_ids])).text_embeds


def test_a_whole_one_is_what_peft_computes(tmp_path: Path) -> None:
    wanted = adapted(tmp_path)
    encoder = load_text_encoder(tiny.tower(), tokenizer=clip_tokenizer(), adapter=tmp_path)
    torch.testing.assert_close(encoder.features(encoder.tokenize(["a cat"])).detach(), wanted, atol=1e-6, rtol=1e-5)


def without(part: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if part not in key}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without("layers.1"), "lacks 4 of 8 tensors"),
        (without("lora_B"), "lacks 4 of 8 tensors"),
        (without("lora_A"), "lacks 4 of 8 tensors"),
        (lambda state: state | {"base_model.model.other.lora_A.weight": torch.ones(1)}, "have no place"),
        (lambda state: state | {min(state): state[min(state)] * torch.nan}, "holds NaN or infinity"),
    ],
)
def test_half_of_one_is_refused(tmp_path: Path, edit: Callable[[State], State], said: str) -> None:
    adapted(tmp_path)
    save_file(edit(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=said):
        load_text_encoder(tiny.tower(), tokenizer=clip_tokenizer(), adapter=tmp_path)


@pytest.mark.parametrize(
    ("key", "whose"),
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "kohya's"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "diffusers'"),
    ],
)
def test_those_of_other_programs_are_named(tmp_path: Path, key: str, whose: str) -> None:
    file = tmp_path / "style.safetensors"
    save_file({key: torch.ones(2, 16)}, file)
    for adapter in (tmp_path, file):
        with pytest.raises(ValueError, match=f"is a LoRA in {whose} format"):
            load_text_encoder(tiny.tower(), tokenizer=clip_tokenizer(), adapter=adapter)


def test_a_megatron_configuration_is_no_code(tmp_path: Path) -> None:
    adapted(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {"megatron_config": {"a": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="megatron_config names code"):
        load_text_encoder(tiny.tower(), tokenizer=clip_tokenizer(), adapter=tmp_path)
