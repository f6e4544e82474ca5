"""The files that the conditions load and that a run makes itself: the world's token and LoRA, and translated tokens."""

from __future__ import annotations

from pathlib import Path

from leaf_diffusion.evaluation.swap_cost.conditions import Condition
from leaf_diffusion.evaluation.swap_cost.setup import NOTHING, pipeline_with
from leaf_diffusion.evaluation.swap_cost.training import train_style, train_token
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.finetune.translate import translate_file
from leaf_diffusion.runs.experiment_records import TrainedFile


def train_file(setup: Setup, condition: Condition, folder: Path, *, steps: int, seed: int) -> TrainedFile:
    """Train the token or the LoRA of a condition with the first encoder."""
    first, files = next(iter(setup.encoders)), condition.files
    with pipeline_with(setup, first, NOTHING) as pipeline:
        if files.embedding is not None:
            path = files.embedding
            train_token(pipeline, path, steps=steps, seed=seed)
        elif files.lora is not None:
            path = files.lora
            train_style(pipeline, path.parent, steps=steps, seed=seed)
        else:
            raise ValueError(f"the condition {condition.key} loads no file that could be trained")
    return TrainedFile(what=condition.key, encoder=first, file=str(path.relative_to(folder)))


def translate_token(setup: Setup, learnt: Condition, wanted: Condition, label: str, folder: Path) -> TrainedFile:
    """The token of `learnt`, translated from the first encoder for `label`, in the file that `wanted` loads."""
    source, target = learnt.files.embedding, wanted.files_of(label).embedding
    if source is None or target is None:
        raise ValueError(f"the conditions {learnt.key} and {wanted.key} load no token")
    target.parent.mkdir(parents=True, exist_ok=True)
    first = next(iter(setup.encoders.values()))
    translate_file(source, target, first.base, setup.encoders[label].base)
    return TrainedFile(what=wanted.key, encoder=label, file=str(target.relative_to(folder)))
