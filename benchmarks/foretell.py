"""Which feature of a misspelt prompt foretells a wrong image: what an attack shall move, and finetuning shall keep.

    python benchmarks/foretell.py --limit 640 --encoders world:original world:leaf

One random edit a prompt (no new words), one image of it, which the scene judge finds right or wrong. The score of a feature is the
squared distance from the clean prompt's over its squared norm; the figure is the area under the ROC curve of that score for
wrong images: 0.5 says nothing, 1 tells all. Intervals by resampling nouns. "denoiser" reads as the denoiser does: queries that its
cross-attention had in a few clean generations, with its own projections of keys and values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import mannwhitneyu
from torch import Tensor

from leaf_diffusion import NoNewWords, RandomTypos, Scorer, load_text_encoder
from leaf_diffusion.encoders import Hidden
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.features import Feature, MeanState, Readout
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline
from leaf_diffusion.world.captions import world_prompts
from leaf_diffusion.world.judge import SceneJudge

CONTENT = Hidden(-1, "content")
FEATURES: dict[str, Feature] = {
    "pooled, projected": "projected",
    "states place by place": Hidden(-1, "all"),
    "states place by place, content": CONTENT,
    "mean state": MeanState(),
    "mean state, content": MeanState(hidden=CONTENT),
    "readout of 64 queries": Readout(),
    "readout of 64 queries, content": Readout(hidden=CONTENT),
    "readout of 512 queries": Readout(512),
}
BATCH = 32


def generate(pipe: Any, texts: Sequence[str], seeds: Sequence[int], steps: int) -> list[Any]:
    """An image a text, each from its own noise."""
    images = list[Any]()
    for first in track(range(0, len(texts), BATCH), "images"):
        some = slice(first, first + BATCH)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
        images += pipe(
            list(texts[some]), generator=generators, num_inference_steps=steps, guidance_scale=3.0, output_type="pil"
        ).images
    return images


class DenoiserReadout:
    """What the cross-attention of a UNet reads from token states, with `queries` of each of its layers and heads."""

    def __init__(self, pipe: Any, prompts: Sequence[str], queries: int = 16) -> None:
        self.layers = [each for name, each in pipe.unet.named_modules() if name.endswith("attn2")]
        heard: dict[Any, list[Tensor]] = {layer: [] for layer in self.layers}
        hooks = [
            layer.to_q.register_forward_hook(lambda _, __, out, layer=layer: heard[layer].append(out.flatten(0, 1)))
            for layer in self.layers
        ]
        generate(pipe, prompts, range(len(prompts)), 10)
        for hook in hooks:
            hook.remove()
        rng = torch.Generator().manual_seed(0)
        every = [torch.cat(heard[layer]) for layer in self.layers]
        self.queries = [each[torch.randperm(len(each), generator=rng)[:queries]] for each in every]

    @torch.inference_mode()
    def __call__(self, states: Tensor) -> Tensor:
        """[n, t, width] to [n, layers * queries * width of the attention], each layer's brought to norm 1 on average."""
        found = list[Tensor]()
        for layer, queries in zip(self.layers, self.queries, strict=True):
            k, v = (
                project(states).unflatten(2, (layer.heads, -1)).transpose(1, 2) for project in (layer.to_k, layer.to_v)
            )
            q = queries.unflatten(1, (layer.heads, -1)).transpose(0, 1)
            read = torch.softmax(q @ k.transpose(2, 3) * layer.scale, -1) @ v
            found.append(read.flatten(1) / read.flatten(1).norm(dim=1).mean())
        return torch.cat(found, 1)


def scores(clean: Tensor, edited: Tensor) -> np.ndarray:
    """The relative squared distance of each row."""
    return ((edited - clean).square().sum(1) / clean.square().sum(1)).numpy()


def features(encoder: TextEncoder, texts: Sequence[str], what: Feature) -> Tensor:
    rows = encoder.tokenize(encoder.preprocess(texts))
    return torch.cat([encoder.features(rows[i : i + 100], what) for i in range(0, len(rows), 100)])


def area(values: np.ndarray, wrong: np.ndarray) -> float:
    """The area under the ROC curve: the chance that a wrong image's score is above a right one's."""
    if wrong.all() or not wrong.any():
        return float("nan")
    return float(mannwhitneyu(values[wrong], values[~wrong]).statistic / (wrong.sum() * (~wrong).sum()))


def intervals(
    columns: dict[str, np.ndarray], wrong: np.ndarray, clusters: Sequence[str], against: str
) -> Iterable[tuple[str, str, str]]:
    """Each feature's area with its interval, and its difference from that of `against`."""
    rng, names = np.random.default_rng(0), np.array(sorted(set(clusters)))
    members = {name: np.flatnonzero(np.array(clusters) == name) for name in names}
    draws = [np.concatenate([members[name] for name in rng.choice(names, len(names))]) for _ in range(500)]
    drawn = {key: np.array([area(values[some], wrong[some]) for some in draws]) for key, values in columns.items()}
    for key, values in columns.items():
        low, high = np.nanpercentile(drawn[key], [2.5, 97.5])
        less, more = np.nanpercentile(drawn[key] - drawn[against], [2.5, 97.5])
        yield key, f"{area(values, wrong):.3f} [{low:.3f}, {high:.3f}]", f"{less:+.3f} to {more:+.3f}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=640, help="prompts, one random edit each")
    parser.add_argument("--encoders", nargs="+", default=["world:original", "world:leaf"])
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    console, judge = Console(width=140), SceneJudge.load()
    prompts = world_prompts(options.limit, seed=11)
    texts, asked = [each.text for each in prompts], [each.scene for each in prompts]
    nouns = [scene.things[0].noun for scene in asked]
    for name in options.encoders:
        encoder = load_text_encoder(name)
        found = RandomTypos()(texts, Scorer(encoder), k=1, constraint=NoNewWords())
        edited = [each.perturbed for each in found]
        pipe: Any = LeafStableDiffusionPipeline.from_pretrained("world", text_encoder=encoder)
        pipe.set_progress_bar_config(disable=True)
        right = judge.correct(generate(pipe, edited, range(len(edited)), options.steps), asked)
        wrong = ~np.array(right)
        columns = {
            key: scores(features(encoder, texts, what), features(encoder, edited, what))
            for key, what in FEATURES.items()
        }
        read: Callable[[Tensor], Tensor] = DenoiserReadout(pipe, texts[:BATCH])
        whole = (encoder.context_length, -1)
        before, after = (features(encoder, each, Hidden(-1, "all")).unflatten(1, whole) for each in (texts, edited))
        columns["denoiser's own queries"] = scores(read(before), read(after))
        table = Table(title=f"{name}: {wrong.sum()} of {len(wrong)} images wrong after one random edit")
        for column in ("feature", "area under the ROC curve [95%, nouns]", "against the readout of 64 queries"):
            table.add_column(column)
        for row in intervals(columns, wrong, nouns, "readout of 64 queries"):
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
