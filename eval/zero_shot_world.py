"""The world's zero-shot text task under the exact worst single edit, and whether minimal pairs are told apart.

A caption "a photo of a {colour} {noun}" is classified among the 192 by the nearest class feature: the mean image
feature of that class's pictures (the world CLIP's image tower, which no finetuning touches). Every allowed edit is
scored (`Margin`), so robust accuracy is exact over the alphabet, and so is the accuracy against an attacker who tries q
random edits; Charmer's is measured beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval.query_curve import curve_points, curve_table, interval, plot, search
from leaf_diffusion.eval.setup import EncoderName, check_writable
from leaf_diffusion.world.captions import zero_shot_prompts
from leaf_diffusion.world.figures import zero_shot_anchors
from leaf_diffusion.world.scenes import MINIMAL_PAIRS

Classes = list[tuple[str, str, str]]


@dataclass(frozen=True)
class ZeroShotOptions:
    """Clean and exact robust zero-shot accuracy of the world's text encoders, accuracy over the number of an attacker's
    queries, and sensitivity to minimal pairs."""

    encoders: tuple[str, ...] = ("original", "leaf", "typo-augmented")
    """As in `leaf-diffusion evaluate`; the first is the baseline of the differences."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    limit: int | None = None
    """Number of captions, spread over the 192 classes. Default: all."""
    pictures: int = 8
    """Pictures a class behind each class feature."""
    output: Path = Path("runs/zero-shot-world.json")
    device: str = "cpu"


def sensitivity(encoder: TextEncoder, classes: Classes, anchors: Tensor) -> list[float]:
    """1 or 0 for each minimal pair, colour and direction: is the caption nearer to its own class than to the other's?

    The share is the sensitivity; an encoder that hears no difference between cat and hat comes out near 0.5.
    """
    index = {(noun, colour): i for i, (_, noun, colour) in enumerate(classes)}
    rows = encoder.tokenize(encoder.preprocess([text for text, _, _ in classes]))
    with torch.inference_mode():
        similarity = normalize(encoder.features(rows), dim=-1) @ anchors.to(encoder.device).T
    told = []
    for a, b in (pair for one, other in MINIMAL_PAIRS for pair in ((one, other), (other, one))):
        for colour in sorted({colour for _, _, colour in classes}):
            own, swapped = index[a, colour], index[b, colour]
            told.append(float(similarity[own, own] > similarity[own, swapped]))
    return told


def evaluate(encoders: dict[str, Any], options: ZeroShotOptions) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Result rows: each encoder's figures and the paired differences to those before it, in shares of 1; and the curve:
    accuracy over the number of queries, for random edits and for Charmer."""
    classes = zero_shot_prompts()
    n = min(options.limit or len(classes), len(classes))
    labels = [i * len(classes) // n for i in range(n)]
    anchors = zero_shot_anchors(per_class=options.pictures)
    values, curve = {}, list[dict[str, Any]]()
    for name, encoder in encoders.items():
        found = search(encoder, [text for text, _, _ in classes], labels, anchors, options.constraint)
        values[name] = {
            "clean_accuracy": [float(right) for right in found.right],
            "robust_accuracy": found.robust(),
            "sensitivity": sensitivity(encoder, classes, anchors),
        }
        curve += [{"encoder": name} | point for point in curve_points(found)]
    rows = []
    names = list(encoders)
    for i, name in enumerate(names):
        for metric, right in values[name].items():
            for baseline in [None, *names[:i]]:
                against = values[baseline][metric] if baseline else None
                rows.append({"encoder": name, "baseline": baseline, "metric": metric} | interval(right, against))
    return rows, curve


def main(argv: Sequence[str] | None = None) -> int:
    """Run the task and print it as a table; returns the exit status."""
    console = Console()
    options = tyro.cli(ZeroShotOptions, args=argv, prog="leaf-diffusion zero-shot-text")
    try:
        check_writable(options.output.parent)
        names = [EncoderName.parse(text, world=True) for text in options.encoders]
        encoders = {n.label: load_text_encoder(n.source, defence=n.defence, device=options.device) for n in names}
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    rows, curve = evaluate(encoders, options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    setting = {"constraint": options.constraint, "k": 1, "attack": "exhaustive margin"}
    prints = {label: encoder.fingerprint for label, encoder in encoders.items()}
    options.output.write_text(
        json.dumps({**setting, "fingerprints": prints, "rows": rows, "curve": curve}, indent=1) + "\n"
    )
    plot(curve, options.output.with_suffix(".svg"))
    table = Table(
        "encoder",
        "minus",
        "metric",
        "mean",
        "95% interval",
        "n",
        title=f"zero-shot, worst single edit, {options.constraint}",
    )
    for row in rows:
        interval = f"{row['ci_low']:.3f} .. {row['ci_high']:.3f}"
        table.add_row(
            row["encoder"], row["baseline"] or "", row["metric"], f"{row['mean']:.3f}", interval, str(row["n"])
        )
    console.print(table)
    console.print(curve_table(curve, list(encoders)))
    console.print(f"figures: {options.output}, the curve: {options.output.with_suffix('.svg')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
