"""`leaf-diffusion attack`: attacked prompts for a text file of prompts, as a JSONL attack set and a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from leaf_diffusion.attacks import AttackResult, attack_from_name
from leaf_diffusion.encoders.base import Feature, Hidden
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.evaluation.folders import check_writable
from leaf_diffusion.evaluation.prompts import from_file, marked, named, write_attacks
from leaf_diffusion.evaluation.t2i.attack import attack_row
from leaf_diffusion.runs.scheduler import chunks
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.visible import isolated

AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """Find the worst prompts within k character edits of those in a file, on one text encoder."""

    prompts: Path
    """Text (one prompt a line), JSONL, CSV, TSV, Parquet, COCO captions, the Karpathy split, Flickr30k's token file, a
    pattern of such files, or dataset:NAME of Hugging Face datasets."""
    prompt_column: str | None = None
    """Where the prompts stand in records. Default: the first of prompt, caption, text, raw, sentence."""
    prompt_split: str | None = None
    """Only prompts of this split, where the file tells one."""
    encoder: str = "world:original"
    """A source ("world:leaf", a folder, a Hub id) or LABEL=SOURCE; "+speller" puts spelling correction before it."""
    attack: str = "charmer"
    """charmer, leaf, exhaustive (k=1 only), random-typos, tokens (whole tokens substituted); or everyday noise: keyboard,
    ocr, swapped-letters, missing-spaces, homoglyphs, punctuation, at random or, with worst- before the name, searched."""
    k: tuple[int, ...] = (1,)
    """Numbers of character edits."""
    n_positions: int = 20
    """Positions that Charmer keeps a round."""
    rho: int = 50
    """Candidates of the LEAF attack a round."""
    constraint: Literal["no-new-words", "published", "none"] = "no-new-words"
    objective: Literal["l2", "cosine"] = "l2"
    """What the attacker maximises: the drift of the prompt's embedding, squared L2 or 1 - cosine."""
    feature: Literal["pooled", "states"] = "pooled"
    """What drifts: the pooled (projected) embedding, or all 77 token states, which a denoiser is given."""
    precision: Literal["fp32", "screen"] = "fp32"
    """screen: candidates are scored in bfloat16 first, the best again in full; faster, and nearly always the same."""
    seed: int = 0
    limit: int | None = None
    output: Path | None = None
    """The attack set (JSONL), which `leaf-diffusion evaluate --attacked-prompts` reads."""
    device: str = "cpu"
    rows: int = 20
    """Rows of the table, the strongest attacks first; 0 for all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Attack the prompts of a file; returns the exit status."""
    console = Console()
    options = tyro.cli(AttackOptions, args=argv, prog="leaf-diffusion attack")
    try:
        if min(options.k, default=-1) < 0:
            raise ValueError(f"--k counts character edits and cannot be negative or missing, got {options.k}")
        found_there = from_file(options.prompts, options.prompt_column, options.prompt_split)
        prompts = [prompt.text for prompt in found_there][: options.limit]
        params = {"charmer": {"n_positions": options.n_positions}, "leaf": {"rho": options.rho}}
        attack = attack_from_name(options.attack, **params.get(options.attack, {}))
        if options.attack == "exhaustive" and max(options.k) > 1:
            raise ValueError("--attack exhaustive is exact for --k 1 only")
        if options.output is not None:
            check_writable(options.output.parent)
        name = EncoderName.parse(options.encoder, world=True)
        encoder = load_text_encoder(name.source, defence=name.defence, device=options.device)
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    pooled: Feature = "projected" if encoder.has_projection else "pooled"
    drift = Drift(options.objective, feature=Hidden(-1, "all") if options.feature == "states" else pooled)
    scorer = Scorer(encoder, drift, precision=options.precision)
    constraint = constraint_from_name(options.constraint)
    label = escape(isolated(name.label))
    found: dict[int, list[AttackResult]] = {k: [] for k in options.k}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"attacking {label}", total=len(prompts))
        for chunk in chunks(prompts, AT_ONCE):
            results = attack.path(chunk, scorer, options.k, constraint=constraint, seed=options.seed)
            for k in options.k:
                found[k] += results[k]
            progress.advance(task, len(chunk))
    if options.output is not None:
        rows = [
            attack_row(one, name.label, k, options.attack, options.constraint) for k in options.k for one in found[k]
        ]
        fingerprint = encoder.fingerprint
        write_attacks(options.output, [{**row, "fingerprint": fingerprint} for row in rows])
        console.print(f"attack set: {options.output} ({len(rows)} attacked prompts)", soft_wrap=True)
    for k in options.k:
        console.print(attack_table(found[k], f"{options.attack} on {label}, k={k}, {options.constraint}", options.rows))
        console.print(summary(found[k]))
    return 0


def attack_table(results: Sequence[AttackResult], title: str, rows: int) -> Table:
    """The strongest attacks: distance, score, queries and the prompt with its edits marked."""
    ordered = sorted(results, key=lambda result: -result.score)
    shown = ordered[: rows or None]
    table = Table(title=title, caption=f"{len(shown)} of {len(results)} prompts" if len(shown) < len(results) else None)
    for column in ("distance", "score", "queries"):
        table.add_column(column, justify="right")
    table.add_column("attacked prompt")
    table.add_column("edits")
    for result in shown:
        text = marked(result.original, result.perturbed) + (" [yellow](truncated)[/]" if result.truncated else "")
        edited = escape(named(result.original, result.perturbed)) or "unchanged"
        figures = (str(result.distance), f"{result.score:.4g}", str(result.queries))
        table.add_row(*figures, text, edited)
    return table


def summary(results: Sequence[AttackResult]) -> str:
    """One line: how many, how far, how strong; truncated and unchanged prompts are counted."""
    scores, far = [result.score for result in results], np.mean([result.distance for result in results])
    return (
        f"{len(results)} prompts: mean distance {far:.2f}, score mean {np.mean(scores):.4g} "
        f"(median {np.median(scores):.4g}, max {max(scores):.4g}), {sum(r.queries for r in results)} queries, "
        f"{sum(r.perturbed == r.original for r in results)} unchanged, {sum(r.truncated for r in results)} truncated"
    )


if __name__ == "__main__":
    sys.exit(main())
