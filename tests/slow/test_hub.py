"""Repositories with the files of the real ones, at tiny widths: what is loaded by a Hub name, what is fetched, what is said.

Each repository has what its model has on the Hub: pickled twins, a second precision, single files, exports of other
programs. None of these may be fetched.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, PreTrainedModel

from leaf_diffusion.encoders import clip_tokenizer
from tests import tiny
from tests.hub import Hub
from tests.pipelines.conftest import SIZES, Kind
from tests.pipelines.test_leaf_flux import flux_parts

pytestmark = pytest.mark.slow
UNWANTED = (".bin", ".ckpt", ".onnx", ".msgpack", ".h5", ".pt", ".png", ".md")
NAMES = {"sd": "runwayml/stable-diffusion-v1-5", "xl": "stabilityai/sdxl-base-1.0", "sd3": "stabilityai/sd3-medium"}
FLUX, CLIP, LAION, ROBUST = "bfl/FLUX.1-schnell", "openai/clip-vit", "laion/CLIP-ViT-H", "leaf/robust-clip"


def decoys(folder: Path) -> None:
    """What stands beside the safetensors on the Hub: pickles of the same weights, another precision, other programs'."""
    for file in list(folder.rglob("*.safetensors")):
        half = {name: each.half() if each.is_floating_point() else each for name, each in load_file(file).items()}
        save_file(half, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
        twin = "pytorch_model.bin" if file.name == "model.safetensors" else f"{file.stem}.bin"
        (file.parent / twin).write_bytes(b"\x80\x02 a pickle")
        (file.parent / "model.onnx").write_bytes(b"onnx")
    (folder / "README.md").write_text("a card")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"\x80\x02 a pickle")
    (folder / "flax_model.msgpack").write_bytes(b"flax")
    (folder / "tf_model.h5").write_bytes(b"tensorflow")


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: dict[str, Kind],
    folders: Callable[[Kind], Path],
    new_tower: Callable[..., PreTrainedModel],
) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    for kind, name in NAMES.items():
        shutil.copytree(folders(kinds[kind]), hub.folder(name), dirs_exist_ok=True)
    FluxPipeline(**flux_parts(new_tower)).save_pretrained(hub.folder(FLUX))
    model, tokenizer = tiny.clip(text=SIZES, projection_dim=64), clip_tokenizer()
    model.save_pretrained(hub.folder(CLIP))
    model.save_pretrained(hub.folder(LAION), max_shard_size="1MB")
    model.text_model.final_layer_norm.bias.data += 1
    model.save_pretrained(hub.folder(ROBUST))  # "use the base model's" tokenizer
    model.save_pretrained(hub.folder(CLIP, "older"))
    for name, revision in ((CLIP, "main"), (CLIP, "older"), (LAION, "main")):
        tokenizer.save_pretrained(hub.folder(name, revision))
    for name in (*NAMES.values(), FLUX, CLIP, ROBUST):
        decoys(hub.folder(name))
    only_fp16 = hub.folder("somebody/fp16-only")
    new_tower(CLIPTextModel).half().save_pretrained(only_fp16, variant="fp16")
    tokenizer.save_pretrained(only_fp16)
    pickled = hub.folder("somebody/pickled")
    shutil.copy(hub.folder(CLIP) / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x02 a pickle")
    cut = hub.folder("somebody/cut")
    shutil.copytree(hub.folder(LAION), cut, dirs_exist_ok=True)
    next(iter(sorted(cut.glob("model-*.safetensors")))).unlink()
    save_file({"a": torch.ones(1)}, hub.folder("somebody/no-config") / "model.safetensors")
    with hub.running():
        yield hub


PRELUDE = """
import json, sys
from leaf_diffusion import load_text_encoder
from leaf_diffusion import pipelines
from leaf_diffusion.cli.main import main
def told(call):
    try:
        print("RESULT " + json.dumps(call()), flush=True)
    except Exception as error:
        print("RESULT " + json.dumps(f"{type(error).__name__}: {error}"), flush=True)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(hub: Hub, cache: Path, *calls: str, offline: bool = False) -> list[object]:
    """What each call (an expression) came to in a process of its own that takes `hub` for the Hub."""
    code = PRELUDE + "\n".join(f"told(lambda: {call})" for call in calls)
    command, env = [sys.executable, "-c", code], hub.environment(cache, offline=offline)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    found = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(found) == len(calls), done.stdout + done.stderr
    print(done.stderr)  # shown where the test fails
    return found


@pytest.mark.parametrize("repository", [*NAMES.values(), FLUX])
def test_a_pipeline_is_loaded_without_what_it_does_not_need(hub: Hub, cache: Path, repository: str) -> None:
    leaf = {FLUX: "LeafFluxPipeline", NAMES["sd"]: "LeafStableDiffusionPipeline", NAMES["xl"]: "LeafStableDiffusionXLPipeline",
            NAMES["sd3"]: "LeafStableDiffusion3Pipeline"}[repository]  # fmt: skip
    hub.taken()
    # tiny SD3 has no T5, which the real one's card says to leave out like this
    without = ", text_encoder_3=None, tokenizer_3=None" if "sd3" in repository else ""
    load = f"pipelines.{leaf}.from_pretrained({repository!r}{without})"
    found = run(hub, cache, f"type({load}).__name__", f"len({load}.text_encoder.state_dict()) > 0")
    assert found == [leaf, True]
    files = hub.taken()
    assert files and not [file for file in files if file.endswith(UNWANTED) or ".fp16." in file]
    assert len(set(files)) == len(files)  # the second load takes nothing again
    half = run(
        hub, cache, f"str(pipelines.{leaf}.from_pretrained({repository!r}, variant='fp16'{without}).text_encoder.dtype)"
    )
    assert half == ["torch.float32"]  # as diffusers does without a dtype
    weights = [file for file in hub.taken() if file.endswith(".safetensors")]
    assert weights and all(".fp16." in file for file in weights)


def test_encoders_are_loaded_by_name(hub: Hub, cache: Path) -> None:
    hub.taken()
    sources = [f"{CLIP!r}", f"{CLIP!r}, revision='older'", f"{LAION!r}", f"{ROBUST!r}", f"{NAMES['sd']!r}",
               f"{NAMES['xl']!r}, subfolder='text_encoder_2'", "'somebody/fp16-only'"]  # fmt: skip
    calls = [f"load_text_encoder({source}).fingerprint" for source in sources]
    clip, older, laion, robust, *others = run(hub, cache, *calls)
    assert all(isinstance(each, str) and len(each) == 64 for each in (clip, older, laion, robust, *others)), others
    assert clip == laion and older == robust and clip != robust
    files = hub.taken()
    assert not [file for file in files if file.endswith(UNWANTED)]
    assert [file for file in files if ".fp16." in file] == ["somebody/fp16-only: model.fp16.safetensors"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("'nobody/nothing'", "FileNotFoundError.*no text encoder 'nobody/nothing'"),
        (f"{CLIP!r}, revision='never'", "FileNotFoundError.*never"),
        ("'somebody/pickled'", "pickle|no file named model.safetensors"),
        ("'somebody/cut'", "model-00001-of"),
        ("'somebody/no-config'", "there is no config.json"),
    ],
)
def test_what_is_missing_is_said(hub: Hub, cache: Path, source: str, said: str) -> None:
    (found,) = run(hub, cache, f"load_text_encoder({source}).fingerprint")
    assert isinstance(found, str) and re.search(said, found), found
    assert not [file for file in hub.taken() if file.endswith(UNWANTED)]


def test_offline_what_was_downloaded_is_loaded_and_the_rest_named(hub: Hub, tmp_path: Path) -> None:
    call = f"load_text_encoder({CLIP!r}).fingerprint"
    (before,) = run(hub, tmp_path, call)
    hub.taken()
    other = f"load_text_encoder({LAION!r}).fingerprint"
    pipe = f"type(pipelines.LeafStableDiffusionPipeline.from_pretrained({NAMES['sd']!r})).__name__"
    again, absent, no_pipeline = run(hub, tmp_path, call, other, pipe, offline=True)
    assert again == before
    assert "HF_HUB_OFFLINE is set, and it was not downloaded before" in str(absent)
    assert "HF_HUB_OFFLINE keeps the Hub out" in str(no_pipeline)
    assert hub.taken() == []


def test_commands_take_names(hub: Hub, cache: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"a photo of a red cat number {i}" for i in range(12)))
    tune = ["finetune", "--source", CLIP, "--captions", str(captions), "--output", str(tmp_path / "tuned"), "--max-steps",
            "1", "--batch-size", "4", "--rho", "2", "--device", "cpu"]  # fmt: skip
    draw = ["evaluate", "--pipeline", NAMES["sd"], "--prompts", str(captions), "--limit", "1", "--steps", "1", "--k", "1",
            "--attack", "random-typos", "--protocols", "adaptive", "--neutral-source", "none", "--encoders", "original",
            f"tuned={tmp_path / 'tuned'}", "--height", "8", "--width", "8", "--output", str(tmp_path / "run")]  # fmt: skip
    assert run(hub, cache, f"main({tune!r})", f"main({draw!r})") == [0, 0]
    assert (tmp_path / "run" / "report.html").is_file()
    assert not [file for file in hub.taken() if file.endswith(UNWANTED)]
