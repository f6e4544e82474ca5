"""`leaf-diffusion swap-cost` cut to a few prompts on an untrained world, and its trainings on the shipped one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from leaf_diffusion.eval import swap_cost
from leaf_diffusion.eval.swap_cost import main
from leaf_diffusion.evaluation.swap_cost import files
from leaf_diffusion.evaluation.swap_cost.conditions import lengthened, token_prompts
from leaf_diffusion.evaluation.swap_cost.setup import Files, SwapCostOptions, load, pipeline_with
from leaf_diffusion.evaluation.swap_cost.training import BATCH, CONCEPT, TOKEN, flow_loss, has_style, said, styled
from leaf_diffusion.evaluation.swap_cost.training import train_style as train_style_lora
from leaf_diffusion.evaluation.swap_cost.training import train_token as train_token_embedding
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline
from leaf_diffusion.runs import load_run
from leaf_diffusion.runs.experiment_records import SwapImage
from leaf_diffusion.world import paths, pipeline_path
from leaf_diffusion.world.captions import SINGLE
from leaf_diffusion.world.diffusion import encode
from leaf_diffusion.world.scenes import BACKGROUNDS, Scene, Thing, held_out, pixels, render

SMALL = ["--limit", "2", "--train-steps", "1", "--steps", "2"]


class Condition(TypedDict):
    key: str
    truncated: dict[str, int]


class Results(TypedDict):
    """What is read here of results.json."""

    rows: list[dict[str, object]]
    conditions: list[Condition]


def results(folder: Path) -> Results:
    found: Results = json.loads((folder / "results.json").read_text())
    return found


def figure(value: object) -> float:
    assert isinstance(value, (int, float))
    return value


def means(folder: Path, **wanted: object) -> list[float]:
    rows = [r for r in results(folder)["rows"] if all(r[name] == value for name, value in wanted.items())]
    return [figure(r["mean"]) for r in rows]


@pytest.fixture(scope="module", autouse=True)
def short_translation() -> Iterator[None]:
    """Two steps in the place of two hundred."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "translate_file", partial(files.translate_file, steps=2))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "swap"
    assert main([*SMALL, "--encoders", "original", "leaf", "--output", str(folder)]) == 0
    return folder


def test_every_condition_is_measured_with_every_encoder(finished: Path) -> None:
    rows = results(finished)["rows"]
    places = {(r["condition"], r["encoder"]) for r in rows if r["metric"] == "scene_accuracy" and not r["baseline"]}
    keys = ("plain", "negative", "long", "token", "translated", "lora")
    assert places == {(key, label) for key in keys for label in ("original", "leaf")}
    assert {r["n"] for r in rows} == {2}
    assert {r["condition"] for r in rows if r["metric"] == "style"} == {"plain", "lora"}
    drift = [r for r in rows if r["metric"] == "drift"]
    assert {(r["encoder"], r["protocol"]) for r in drift} == {("original", "floor"), ("leaf", "clean")}
    assert all(r["baseline"] is None for r in drift)


def test_the_main_comparison_is_of_plain_prompts(finished: Path, declared: Callable[[Path], dict[str, Any]]) -> None:
    row = declared(finished)
    assert (row["encoder"], row["baseline"], row["metric"]) == ("leaf", "original", "scene_accuracy")
    assert row["condition"] == "plain"


def test_the_default_is_the_worlds_encoders() -> None:
    assert SwapCostOptions().resolved().encoders == ("original", "leaf", "typo-augmented")
    assert SwapCostOptions(encoders=("leaf", "original")).resolved().encoders == ("leaf", "original")


def test_another_encoder_and_another_noise_move_the_images(finished: Path) -> None:
    for key in ("plain", "negative", "long", "token", "translated", "lora"):
        assert means(finished, condition=key, encoder="leaf", metric="drift")[0] > 0
        assert means(finished, condition=key, protocol="floor", metric="drift")[0] > 0


def test_conditions_change_the_images(finished: Path) -> None:
    images = load_run(finished).records("images", SwapImage)

    def shown(key: str, protocol: str = "clean") -> dict[int, bytes]:
        mine = [one for one in images if (one.condition, one.encoder, one.protocol) == (key, "original", protocol)]
        return {one.number: (finished / one.image).read_bytes() for one in mine}

    plain = shown("plain")
    assert len(plain) == 2
    for key in ("negative", "long", "lora"):
        other = shown(key)
        assert other.keys() == plain.keys()
        assert all(other[name] != plain[name] for name in plain)
    assert shown("plain", "floor").keys() == plain.keys()


def test_only_the_longest_prompts_are_cut(finished: Path) -> None:
    cut = {each["key"]: each["truncated"] for each in results(finished)["conditions"]}
    assert cut.pop("long") == {"original": 1, "leaf": 1}
    assert cut == {key: {"original": 0, "leaf": 0} for key in ("plain", "negative", "token", "translated", "lora")}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_trains_nothing_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, "--encoders", "original", "leaf", "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(swap_cost.SwapCost, "score", interrupted)
        assert main(words) == 130
    monkeypatch.setattr(swap_cost, "train_file", interrupted)
    monkeypatch.setattr(swap_cost, "draw_series", interrupted)
    assert main(words) == 0
    assert results(tmp_path / "run")["rows"] == results(finished)["rows"]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_stock_diffusers_loads_what_was_trained(finished: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_path())
    file = finished / "token" / "learned_embeds.safetensors"
    pipeline.load_textual_inversion(str(file), token=TOKEN)
    number = pipeline.tokenizer.convert_tokens_to_ids(TOKEN)
    assert pipeline.tokenizer(f"a {TOKEN}").input_ids[2] == number
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[number], load_file(file)[TOKEN][0])
    pipeline.load_lora_weights(str(finished / "style"), weight_name="pytorch_lora_weights.safetensors")
    assert pipeline.get_list_adapters().keys() == {"unet"}


def test_the_folder_of_another_run_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "results.json").read_bytes()
    assert main([*SMALL, "--encoders", "original", "same=original", "--output", str(finished)]) == 2
    assert "another run" in capsys.readouterr().err
    assert (finished / "results.json").read_bytes() == before


@pytest.mark.slow
def test_a_users_prompts_and_files_the_same_encoder_costs_nothing_and_nothing_is_markup(
    finished: Path, tmp_path: Path
) -> None:
    hostile = "<script>alert(1)</script> [bold]'\"& {{ 7*7 }}"
    (tmp_path / "prompts.txt").write_text(hostile + "\na cat\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--encoders", "original", "<b>x</b>[/]=original"]
    words += ["--negative-prompt", "<img src=x onerror=alert(2)>", "--steps", "2", "--output", str(tmp_path / "run")]
    words += ["--textual-inversion", str(finished / "token" / "learned_embeds.safetensors"), "--token", "<mine>"]
    words += ["--prompt-with-token", "a <mine> <script>", "a photo of <mine>"]
    words += ["--lora", str(finished / "style" / "pytorch_lora_weights.safetensors")]
    assert main(words) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert not any(text in page for text in ("<script", "<b>x", "<img src=x", "http://", "https://", "javascript:"))
    measured = {(r["condition"], r["metric"]) for r in results(tmp_path / "run")["rows"]}
    assert ("plain", "clip_score") in measured
    assert ("token", "drift") in measured
    assert ("lora", "clip_score") in measured
    # nobody knows what a user's token shows, and no scene belongs to a user's prompt
    assert ("token", "clip_score") not in measured
    assert not any(metric in ("scene_accuracy", "style") for _, metric in measured)
    for key in ("plain", "negative", "long", "token", "translated", "lora"):
        assert means(tmp_path / "run", condition=key, protocol="clean", metric="drift") == [0.0]
    assert set(means(tmp_path / "run", baseline="original")) == {0.0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoders", "original"], "two or more"),
        (["--pipeline", "some/folder", "--encoders", "original"], "needs two or more --encoders"),
        (["--pipeline", "some/folder", "--encoders", "original", "leaf"], "needs --prompts FILE"),
        (["--train-steps", "0"], "--train-steps"),
        (["--seed", "-1"], "--seed"),
        (["--limit", "0"], "--limit"),
        (["--dtype", "float16"], "float32"),
        (["--token", "<x>"], "--textual-inversion FILE"),
        (["--lora", "missing.safetensors"], "no such file"),
        (["--lora", "{pickle}"], "only .safetensors"),
        (["--textual-inversion", "{other}"], "--prompt-with-token"),
        (
            ["--textual-inversion", "{other}", "--token", "<x>", "--prompt-with-token", "a cat"],
            "does not hold the token",
        ),
        (["--lora", "{other}"], "--lora"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lora.bin").write_bytes(b"\x80\x04.")
    save_file({"x": torch.zeros(1, 64)}, tmp_path / "other.safetensors")
    if "--encoders" not in words:
        words = [*words, "--encoders", "original", "same=original"]
    given = [word.format(other=tmp_path / "other.safetensors", pickle=tmp_path / "lora.bin") for word in words]
    folder = tmp_path / "run"
    try:
        status: Any = main([*given, "--output", str(folder)])
    except SystemExit as stopped:  # what the options themselves refuse, tyro reports in a box
        status = stopped.code
    assert status == 2
    shown = " ".join("".join(capsys.readouterr()).split())
    assert said in shown
    assert "Traceback" not in shown
    assert not folder.exists()


def test_files_that_do_not_fit_are_named_and_none_stays_behind(finished: Path, tmp_path: Path) -> None:
    setup = load(SwapCostOptions(encoders=("original", "same=original"), limit=1))
    narrow, fitting, broken = (tmp_path / f"{name}.safetensors" for name in ("narrow", "fitting", "broken"))
    save_file({"x": torch.zeros(1, 64)}, narrow)
    save_file({"x": torch.zeros(1, 128)}, fitting)
    broken.write_bytes(b"no safetensors")
    for given, message in (
        (Files(narrow, "<x>"), "does not fit"),
        (Files(fitting, "cat</w>"), "vocabulary"),
        (Files(broken, "<x>"), "broken"),
        (Files(lora=narrow), "--lora"),
        (Files(lora=broken), "broken"),
    ):
        with pytest.raises(ValueError, match=message), pipeline_with(setup, "original", given):
            pass
    with pipeline_with(setup, "original", Files(fitting, "<x>")) as pipeline:
        assert "<x>" in pipeline.tokenizer.get_vocab()
        assert len(pipeline.text_encoder.get_input_embeddings().weight) == len(pipeline.tokenizer)
    with pipeline_with(setup, "same", Files(lora=finished / "style" / "pytorch_lora_weights.safetensors")) as pipeline:
        assert pipeline.get_list_adapters()
    assert not setup.pipeline.get_list_adapters()
    assert "<x>" not in setup.pipeline.tokenizer.get_vocab()
    assert len(setup.encoders["same"].base.token_embedding()) == len(setup.pipeline.tokenizer)


def test_long_prompts_start_with_the_prompt_and_reach_their_length() -> None:
    encoder = LeafStableDiffusionPipeline.from_pretrained("world").encoder
    for tokens in (38, 77, 115):
        text = lengthened("a red car", tokens, encoder)
        assert text.startswith("a red car, as it was seen")
        assert len(encoder.rows([text])[0]) == tokens


def test_the_tokens_prompts_are_none_of_its_training() -> None:
    asked = token_prompts()
    trained = {said(t, TOKEN) for t in SINGLE["train"] if "{c} {n}" in t and "{b}" not in t}
    assert held_out(CONCEPT[1], CONCEPT[0])
    assert len({each.given for each in asked}) == len(asked) > 20
    assert not trained & {each.given for each in asked}
    assert all(TOKEN in (each.given or "") and " ".join(CONCEPT) in (each.caption or "") for each in asked)


def test_the_style_changes_the_wall_alone() -> None:
    for background in BACKGROUNDS:
        scene = Scene((Thing("crown", "blue"),), background)
        plain, other = render(scene), styled(scene)
        assert has_style(Image.fromarray(other))
        assert not has_style(Image.fromarray(plain))
        thing = np.abs(plain.astype(int) - (40, 75, 230)).sum(2) == 0
        assert thing.sum() > 50
        assert np.abs(other.astype(int) - plain)[thing].max() <= 1


@pytest.fixture
def shipped_world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trained pipeline that comes with the package."""
    monkeypatch.delenv(paths.VARIABLE)
    return LeafStableDiffusionPipeline.from_pretrained("world")


def denoising(pipeline: Any, images: list[np.ndarray], texts: list[str]) -> float:
    """The UNet's loss on images with captions, from the same noise at every call."""
    latents = encode(pipeline.vae, pixels(images)).clone()
    with torch.no_grad():
        states = pipeline.encode_prompt(texts, "cpu", 1, False)[0]
        losses = [flow_loss(pipeline.unet, latents, states, torch.Generator().manual_seed(i)) for i in range(2)]
    return float(torch.stack(losses).mean())


@pytest.mark.slow
def test_a_few_steps_teach_the_token_and_the_style(shipped_world: Any, tmp_path: Path) -> None:
    colour, noun = CONCEPT
    backgrounds = [name for name in BACKGROUNDS for _ in range(BATCH // 4)]
    mine = [render(Scene((Thing(noun, colour),), background)) for background in backgrounds]
    texts = [f"a photo of a {TOKEN}"] * len(mine)
    before = denoising(shipped_world, mine, texts)
    styled_ones = [styled(Scene((Thing("crown", "red"),), background)) for background in backgrounds]
    asked = ["a red crown"] * len(styled_ones)
    unstyled = denoising(shipped_world, styled_ones, asked)

    file = tmp_path / "token" / "learned_embeds.safetensors"
    train_token_embedding(shipped_world, file, steps=8, seed=0)
    assert TOKEN not in shipped_world.tokenizer.get_vocab()
    train_style_lora(shipped_world, tmp_path / "style", steps=8, seed=0)
    assert denoising(shipped_world, styled_ones, asked) == unstyled  # the pipeline itself stays as it was

    shipped_world.load_textual_inversion(str(file), token=TOKEN)
    assert denoising(shipped_world, mine, texts) < before
    shipped_world.load_lora_weights(str(tmp_path / "style"), weight_name="pytorch_lora_weights.safetensors")
    assert denoising(shipped_world, styled_ones, asked) < 0.9 * unstyled


def test_options_of_the_evaluation_follow() -> None:
    options = SwapCostOptions(limit=3, seed=5).evaluation()
    assert (options.limit, options.prompt_seed, options.protocols) == (3, 5, ())
    assert options.encoders == ("original", "leaf", "typo-augmented")
    assert (options.steps, options.guidance) == (15, 3.0)
