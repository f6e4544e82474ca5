"""Any pipeline's text encoders as one, by its own `encode_prompt`: what is read of it, and attacks on that."""

import inspect
import json
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor
from transformers import PreTrainedModel

import leaf_diffusion
from leaf_diffusion.attacks import Charmer
from leaf_diffusion.diffusion.loading import load_for_text
from leaf_diffusion.diffusion.pipeline_encoder import PipelineEncoder, near, read_embedding
from leaf_diffusion.diffusion.pipeline_scorer import PipelineScorer
from leaf_diffusion.encoders.features import MeanState, Readout
from leaf_diffusion.eval.attack import main
from leaf_diffusion.text import Candidates
from tests.pipelines.conftest import KINDS, Kind
from tests.pipelines.languages import LANGUAGES
from tests.pipelines.test_leaf_flux import flux_parts

PROMPTS = ["a red umbrella", "two cats"]


def stock(kind: Kind) -> Any:
    return kind.stock(**kind.parts())


MAKERS: dict[str, Callable[[], Any]] = {
    **LANGUAGES,
    **{name: partial(stock, kind) for name, kind in KINDS.items()},
}


def told(returned: Any) -> list[Tensor]:
    """The tensors of the prompt, written out for each class by hand."""
    return [each[0] for each in returned if isinstance(each, Tensor)]


EXPECTED: dict[str, Callable[[Any, str], list[Tensor]]] = {
    "sd": lambda pipe, p: told(pipe.encode_prompt(p, "cpu", 1, False)),
    "xl": lambda pipe, p: told(pipe.encode_prompt(p, do_classifier_free_guidance=False)),
    "sd3": lambda pipe, p: told(pipe.encode_prompt(p, None, None, do_classifier_free_guidance=False)),
    "pixart": lambda pipe, p: masked(pipe.encode_prompt(p, do_classifier_free_guidance=False, max_sequence_length=300)),
    "sana": lambda pipe, p: masked(
        pipe.encode_prompt(
            p,
            do_classifier_free_guidance=False,
            complex_human_instruction=inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default,
        )
    ),
    "z-image": lambda pipe, p: pipe.encode_prompt(p, do_classifier_free_guidance=False)[0],
    "qwen-image": lambda pipe, p: masked(pipe.encode_prompt(p)),
}


def masked(returned: Any) -> list[Tensor]:
    states, mask = returned[:2]
    return [states[0] if mask is None else states[0][mask[0].bool()]]


@pytest.mark.parametrize("name", EXPECTED)
def test_it_gives_what_encode_prompt_gives_without_what_is_masked(name: str) -> None:
    pipe = MAKERS[name]()
    encoder = PipelineEncoder(pipe)
    for prompt, found in zip(PROMPTS, encoder(PROMPTS), strict=True):
        with torch.inference_mode():
            wanted = EXPECTED[name](pipe, prompt)
        given = [*found.states, *found.pooled]
        assert len(given) == len(wanted)
        for mine, theirs in zip(given, wanted, strict=True):
            assert torch.equal(mine, theirs.float())


def test_the_call_decides_what_the_signature_of_encode_prompt_leaves_open() -> None:
    pipe = LANGUAGES["sana"]()
    instructed, bare = PipelineEncoder(pipe), PipelineEncoder(pipe, complex_human_instruction=None)
    (a,), (b,) = instructed(PROMPTS[:1]), bare(PROMPTS[:1])
    assert not torch.equal(a.states[0], b.states[0])  # Sana's own call puts an instruction before the prompt


@pytest.mark.parametrize("name", [each for each in MAKERS if each != "sana"])
def test_prompts_encoded_together_are_what_each_is_by_itself(name: str) -> None:
    pipe, prompts = MAKERS[name](), ["a red umbrella", "two cats", "x", "a dog and a red umbrella on a beach"]
    together, alone = PipelineEncoder(pipe, batch_size=3), PipelineEncoder(pipe, batch_size=1)
    for _ in range(2):  # tried, then used
        for mine, theirs in zip(together(prompts), alone(prompts), strict=True):
            assert near(mine, theirs)
    assert together.batch_size == 3


def test_a_pipeline_whose_prompts_depend_on_their_neighbours_is_asked_one_at_a_time() -> None:
    pipe = LANGUAGES["z-image"]()
    encode = pipe.encode_prompt

    def leaking(prompt: list[str], **given: Any) -> Any:
        states, rest = encode(prompt, **given)
        mean = torch.stack([each.mean() for each in states]).mean()
        return [each + mean for each in states], rest

    pipe.encode_prompt = wraps(encode)(leaking)
    prompts = ["a red umbrella", "two cats", "x"]
    encoder = PipelineEncoder(pipe)
    with pytest.warns(UserWarning, match="prompts encoded together differ from those by themselves"):
        found = encoder(prompts)
    assert encoder.batch_size == 1
    assert all(map(near, found, PipelineEncoder(pipe, batch_size=1)(prompts)))


def test_flux_has_states_and_a_vector_and_no_places(new_tower: Callable[..., PreTrainedModel]) -> None:
    (found,) = PipelineEncoder(FluxPipeline(**flux_parts(new_tower)))(PROMPTS[:1])
    assert [tuple(each.shape) for each in found.states] == [(512, 32)]
    assert [tuple(each.shape) for each in found.pooled] == [(64,)]


def test_tensors_are_told_apart_by_their_shapes() -> None:
    states, vector = torch.randn(1, 3, 4), torch.randn(1, 4)
    mask, places = torch.tensor([[1, 1, 0]]), torch.zeros(3, 3)
    for returned in ((states, mask, None, None, vector, places), {"a": states, "b": mask.bool(), "c": [], "d": vector}):
        found = read_embedding(returned)
        assert [each.tolist() for each in found.states] == [states[0, :2].tolist()]
        assert [each.tolist() for each in found.pooled] == [vector[0].tolist()]
    assert [each.tolist() for each in read_embedding(([states[0]], [])).states] == [states[0].tolist()]
    several = torch.randn(2, 1, 3, 4)
    assert torch.equal(read_embedding(several).states[0], several.reshape(6, 4))
    for nothing in (None, torch.zeros(1, 3, dtype=torch.long), (places,)):
        assert read_embedding(nothing).states == read_embedding(nothing).pooled == ()


@pytest.mark.parametrize("name", [each for each in MAKERS if each != "sana"])  # whose instruction has 900 letters
def test_an_attack_on_any_pipeline_moves_what_its_denoiser_is_given(name: str) -> None:
    pipe = MAKERS[name]()
    (result,) = leaf_diffusion.attack(pipe, PROMPTS[:1], attack=Charmer(n_positions=1, alphabet="xz"), k=1)
    assert result.distance == 1
    assert result.score > result.clean_score == 0
    scorer = PipelineScorer(PipelineEncoder(pipe))
    texts = [result.perturbed, PROMPTS[0], PROMPTS[1]]
    (scores,) = scorer.bind(PROMPTS[:1])([Candidates.from_texts(texts)])
    assert float(scores[0]) == pytest.approx(result.score)
    assert float(scores[1]) == 0


def test_a_readout_does_not_ask_where_a_state_stands() -> None:
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    there = torch.ones(1, 5, dtype=torch.bool)
    for feature in (Readout(8), MeanState()):
        whole = feature(states, there)
        assert torch.allclose(whole, feature(states[:, torch.randperm(5)], there), atol=1e-6)
        assert not torch.allclose(whole, feature(states[:, :4], there[:, :4]))
        filled = torch.cat([states, torch.full((1, 2, 16), torch.nan)], 1)  # what stands behind the end says nothing
        assert torch.allclose(whole, feature(filled, torch.arange(7)[None] < 5), atol=1e-6)
    large = torch.cat([1000 * torch.ones(1, 1, 16), states], 1)
    read = Readout(8)(large, torch.ones(1, 6, dtype=torch.bool)).view(8, 16)
    assert (read - 1).norm() > 0.5 * read.norm()  # one huge state is not all that is read


def test_what_cannot_be_asked_is_refused() -> None:
    class Bare:
        @property
        def components(self) -> dict[str, object]:
            return {}

        def __call__(self) -> None: ...

    class Asking(Bare):
        def encode_prompt(self, prompt: str, song: str) -> None: ...

    class Deaf(Bare):
        def encode_prompt(self, image: str) -> None: ...

    with pytest.raises(ValueError, match="Bare has no encode_prompt"):
        PipelineEncoder(Bare())
    with pytest.raises(ValueError, match=r"asks for song, .*PipelineEncoder.pipeline, song=..."):
        PipelineEncoder(Asking())
    with pytest.raises(ValueError, match="takes no prompt; it takes: image"):
        PipelineEncoder(Deaf())
    with pytest.raises(ValueError, match="has no melody; it has: prompt, song"):
        PipelineEncoder(Asking(), melody="x")
    with pytest.raises(ValueError, match="gives nothing of 'a cat'"):
        PipelineEncoder(Asking(), song="x")(["a cat"])


def test_numbers_that_are_none_are_named() -> None:
    pipe = LANGUAGES["pixart"]()
    next(pipe.text_encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="PixArtSigmaPipeline: what it gives of 'a red umbrella' holds NaN"):
        PipelineEncoder(pipe)(PROMPTS[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("z-image")
    LANGUAGES["z-image"]().save_pretrained(folder)
    return folder


def test_the_command_attacks_a_pipeline_folder(folder: Path, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "attacked.jsonl"
    prompts.write_text("\n".join(PROMPTS))
    words = ["--pipeline", str(folder), "--prompts", str(prompts), "--output", str(output)]
    assert main([*words, "--attack", "leaf", "--attack.rho", "3"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    encoder = PipelineEncoder(load_for_text(folder))
    assert all(row["source"] == str(folder) and row["fingerprint"] == encoder.fingerprint for row in rows)
    (again,) = PipelineScorer(encoder).bind(PROMPTS[:1])([Candidates.from_texts([rows[0]["perturbed"]])])
    assert float(again[0]) == pytest.approx(rows[0]["score"])


def test_the_command_attacks_some_encoders_of_a_pipeline(
    new_tower: Callable[..., PreTrainedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = FluxPipeline(**flux_parts(new_tower))
    pipe.save_pretrained(tmp_path / "flux")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    words = ["--pipeline", str(tmp_path / "flux"), "--prompts", str(tmp_path / "prompts.txt"), "--attack", "leaf"]
    words += ["--attack.rho", "2", "--output", str(tmp_path / "attacked.jsonl"), "--attacked-encoders"]
    assert main([*words, "text_encoder"]) == 0
    (row,) = (json.loads(line) for line in (tmp_path / "attacked.jsonl").read_text().splitlines())
    (clean,), (moved,) = (PipelineEncoder(pipe)([row[name]]) for name in ("prompt", "perturbed"))
    drift = (moved.pooled[0] - clean.pooled[0]).square().sum() / clean.pooled[0].square().sum()
    assert row["score"] == pytest.approx(float(drift), rel=1e-4)
    assert main([*words, "text_encoder_3"]) == 2
    assert "no text encoder 'text_encoder_3'" in capsys.readouterr().err
    assert main(["--prompts", str(tmp_path / "prompts.txt"), "--attacked-encoders", "text_encoder"]) == 2
    assert "--attacked-encoders is of the text encoders of a --pipeline" in capsys.readouterr().err


def test_options_of_an_encoder_beside_a_pipeline_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    words = ["--pipeline", str(folder), "--prompts", str(tmp_path / "prompts.txt")]
    assert main([*words, "--encoder", "world:leaf"]) == 2
    assert "--encoder is of one text encoder" in capsys.readouterr().err


def test_code_that_a_pipeline_brings_is_not_run(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": ["mine", "Mine"]}))
    (tmp_path / "mine.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(ValueError, match=r"brings code of its own \(mine\)"):
        load_for_text(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "_class_name"}))
    with pytest.raises(ValueError, match="names no pipeline class"):
        load_for_text(tmp_path)
    assert isinstance(load_for_text(folder), DiffusionPipeline)
