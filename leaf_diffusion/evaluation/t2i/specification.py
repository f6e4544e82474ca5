"""What makes a run this run and no other: its identity, and the folder that keeps it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from leaf_diffusion.diffusion.families import configuration, frozen_parts
from leaf_diffusion.diffusion.speed import attention_of
from leaf_diffusion.encoders.sequence import SequenceTextEncoder
from leaf_diffusion.evaluation.t2i.judges import Judges
from leaf_diffusion.evaluation.t2i.setup import Setup
from leaf_diffusion.reports.costs import read_swap_cost
from leaf_diffusion.runs.results import SwapCosts
from leaf_diffusion.weights.fingerprints import fingerprint

NOT_IDENTITY = (
    "save_attacked_prompts",
    "batch_size",
    "attention",
    "channels_last",
    "compile",
    "distance_features",
    "swap_cost",
    "feature",
    "attacked_encoders",
    "t5",
    "prompts",
    "column",
    "split",
    "every_caption",
    "attacked_prompts",
    "limit",
)
"""Options that change no result, or that the identity holds in another form (texts and fingerprints)."""


def identity(setup: Setup, judges: Judges) -> dict[str, object]:
    """What decides the results besides the options, as JSON values."""
    options, pipeline = setup.options, setup.pipeline
    scheduler = {
        name: value if not isinstance(value, float) or math.isfinite(value) else str(value)  # JSON has no infinity
        for name, value in pipeline.scheduler.config.items()
        if not name.startswith("_")
    }
    # only what differs from the defaults, so that runs from before these options stay the runs they are
    more: dict[str, object] = {name: True for name in ("channels_last", "compile") if getattr(options, name)}
    first = next(iter(setup.encoders.values()))
    if len(first.attacked) < len(first.towers):
        more["attacked_encoders"] = sorted(set(options.attacked_encoders))
    if states := {str(each.own_feature) for each in first.towers if isinstance(each, SequenceTextEncoder)}:
        more["feature_of_states"] = sorted(states)
    if (attention := attention_of(pipeline)) != "sdpa":
        more["attention"] = attention
    if (space := judges.distances) is not None:
        more["distance_features"] = {"space": space.name, "weights": fingerprint(space.module)}
    return {
        "encoders": {label: one.fingerprint for label, one in setup.encoders.items()},
        "neutral": {label: one.fingerprint for label, one in setup.neutral.items()},
        "pipeline_weights": fingerprint(*frozen_parts(pipeline)),
        "pipeline_configuration": fingerprint(json.dumps(configuration(pipeline), sort_keys=True)),
        "judges": judges.fingerprints(),
        "scheduler": {"class": type(pipeline.scheduler).__name__, **scheduler},
        "feature": str(setup.feature),
        "feature_space": judges.space,
        "prompts": [prompt.text for prompt in setup.prompts],
        **more,
        "given_attacks": [[row.source, row.k, row.prompt, row.perturbed] for row in setup.given_attacks],
    }


def swap_costs(folder: Path, setup: Setup) -> SwapCosts:
    """What a swap-cost run recorded, checked: the same pipeline, the same baseline, the same encoders under their labels.

    Raises FileNotFoundError and ValueError.
    """
    found, settings = read_swap_cost(folder)
    if settings.pipeline_weights != fingerprint(*frozen_parts(setup.pipeline)):
        raise ValueError(f"--swap-cost {folder}: it was measured with another pipeline than {setup.options.pipeline}")
    theirs, mine = settings.encoders, {label: one.fingerprint for label, one in setup.encoders.items()}
    if other := [label for label in mine if label in theirs and theirs[label] != mine[label]]:
        raise ValueError(f"--swap-cost {folder}: its {other[0]!r} is another encoder than this run's")
    first = next(iter(mine))
    shared = [label for label in mine if label in theirs]
    based = {row.baseline for row in found.rows} - {None}
    if first not in shared or len(shared) < 2 or based != {first}:
        raise ValueError(
            f"--swap-cost {folder}: it compares {', '.join(theirs)}; needed is {first!r} as the first of its encoders and one "
            f"more of {', '.join(mine)}"
        )
    return found.model_copy(update={"rows": [row for row in found.rows if row.encoder in shared]})
