"""The work of a run: attack sets, then pictures. Each unit goes to the records as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from PIL import Image

from leaf_diffusion.attacks import AttackResult, Charmer, attack_from_name
from leaf_diffusion.encoders.base import Tower
from leaf_diffusion.eval.plan import PictureUnit, content_id
from leaf_diffusion.eval.prompts import Prompt, edits
from leaf_diffusion.eval.setup import Setup
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline
from leaf_diffusion.runs import RunStore
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import Scorer
from leaf_diffusion.text.constraints import constraint_from_name
from leaf_diffusion.text.edits import distance
from leaf_diffusion.world import seen_tokens
from leaf_diffusion.world.figures import noise_seed

T = TypeVar("T")
Advance = Callable[[int], None]
PROMPTS_AT_ONCE = 8
"""Prompts of one attack call: what a killed run loses at most."""

Attacked = dict[tuple[str, int, str], str]
"""(source, k, prompt id) -> attacked prompt."""


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def attack_all(setup: Setup, store: RunStore, advance: Advance) -> Attacked:
    """Search (or take from the given file) every attack set that the plan names; returns all attacked prompts."""
    plan, done = setup.plan, {row["id"]: row for row in store.records("attacks")}
    found: Attacked = {}
    by_text = {(row["source"], row["k"], row["prompt"]): row for row in setup.given_attacks}
    for source in plan.sources:
        ks = [k for name, k in plan.sets() if name == source]
        open_ = [p for p in plan.prompts if any(plan.attack_id(source, k, p) not in done for k in ks)]
        for chunk in chunks(open_, PROMPTS_AT_ONCE):
            rows = _given(setup, source, ks, chunk, by_text) if by_text else search(setup, source, ks, chunk)
            for row in rows:
                if row["id"] not in done:
                    store.append("attacks", row)
                    done[row["id"]] = row
                    advance(1)
    for source, k in plan.sets():
        for prompt in plan.prompts:
            found[source, k, prompt.id] = done[plan.attack_id(source, k, prompt)]["perturbed"]
    return found


def search(setup: Setup, source: str, ks: Sequence[int], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Attack `prompts` on one source at every k; Charmer's rounds give all k from one search."""
    options, encoder = setup.options, setup.source(source)
    scorer = Scorer(encoder, Drift(options.objective, feature=setup.feature))
    constraint = constraint_from_name(options.constraint)
    params = {"n_positions": options.n_positions} if options.attack == "charmer" else {}
    attack, texts = attack_from_name(options.attack, **params), [prompt.text for prompt in prompts]
    if isinstance(attack, Charmer):
        results = attack.path(texts, scorer, ks, constraint=constraint)
    else:
        results = {k: attack(texts, scorer, k=k, constraint=constraint, seed=options.attack_seed) for k in ks}
    rows = []
    for i, prompt in enumerate(prompts):
        for k in ks:
            rows.append(
                {
                    "unit": "attack",
                    "id": setup.plan.attack_id(source, k, prompt),
                    "prompt_id": prompt.id,
                    **attack_row(results[k][i], source, k, options.attack, options.constraint),
                    "fingerprint": encoder.fingerprint,
                    "unseen_tokens": unseen_share(encoder, results[k][i].token_ids) if options.world else None,
                }
            )
    return rows


def attack_row(result: AttackResult, source: str, k: int, attack: str, constraint: str) -> dict[str, Any]:
    """One line of an attack set."""
    values = asdict(result)
    del values["token_ids"], values["original"]
    return {
        "prompt": result.original,
        **values,
        "source": source,
        "k": k,
        "attack": attack,
        "constraint": constraint,
        "edits": edits(result.original, result.perturbed),
    }


def unseen_share(encoder: Tower, row: Sequence[int]) -> float:
    """Share of a prompt's tokens (without begin and end of text) that the world's CLIP never read in training."""
    content = [token for token in row[1:] if token != encoder.rows.eos_id]
    return sum(token not in seen_tokens() for token in content) / len(content) if content else 0.0


def _given(
    setup: Setup,
    source: str,
    ks: Sequence[int],
    prompts: Sequence[Prompt],
    rows: dict[tuple[str, int, str], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Records of attacked prompts from a file; what the file does not say is None, distance and edits are measured."""
    unknown = dict.fromkeys(("attack", "constraint", "score", "clean_score", "queries", "success"))
    first = next(iter(setup.encoders.values())).base
    records = []
    for prompt in prompts:
        for k in ks:
            row = rows[source, k, prompt.text]
            perturbed = row["perturbed"]
            tokens = first.tokenize([perturbed])[0]
            measured = {
                "distance": distance(prompt.text, perturbed),
                "edits": edits(prompt.text, perturbed),
                "truncated": first.is_truncated([perturbed])[0],
                "unseen_tokens": unseen_share(first, tokens) if setup.options.world else None,
            }
            identity = {"unit": "attack", "id": setup.plan.attack_id(source, k, prompt), "prompt_id": prompt.id}
            records.append({**unknown, **row, **measured, **identity})
    return records


def draw_all(setup: Setup, store: RunStore, attacked: Attacked, advance: Advance) -> None:
    """Draw every planned picture. One that another unit already drew (same weights, text, noise) is used again."""
    done = {row["id"] for row in store.records("pictures")}
    drawn = {row["image"] for row in store.records("pictures")}
    by_weights: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for unit in setup.plan.pictures():
        if unit.id not in done:
            row, weights = _picture_row(setup, unit, attacked)
            by_weights.setdefault(weights, {}).setdefault(row["image"], []).append(row)
    bases = {one.base.fingerprint: one.base for one in setup.encoders.values()}
    for weights, wanted in by_weights.items():
        for image in [image for image in wanted if image in drawn]:
            advance(_append(store, wanted.pop(image)))
        if not wanted:
            continue
        pipeline = with_encoder(setup.pipeline, bases[weights])
        for batch in chunks(list(wanted.values()), setup.options.batch_size):
            pictures = draw(pipeline, [rows[0]["given"] for rows in batch], [rows[0]["seed"] for rows in batch], setup)
            for rows, picture in zip(batch, pictures, strict=True):
                store.save_image(rows[0]["image"], picture)
                advance(_append(store, rows))


def with_encoder(pipeline: Any, encoder: Tower) -> Any:
    """The pipeline around another text encoder; the rest is shared."""
    swapped = LeafStableDiffusionPipeline.from_pipe(pipeline, text_encoder=encoder)
    swapped.set_progress_bar_config(disable=True)
    return swapped


def draw(pipeline: Any, texts: Sequence[str], seeds: Sequence[int], setup: Setup) -> list[Image.Image]:
    """One picture a text, each from a CPU generator of its own."""
    options = setup.options
    pictures: list[Image.Image] = pipeline(
        list(texts),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        height=options.height,
        width=options.width,
    ).images
    return pictures


def _picture_row(setup: Setup, unit: PictureUnit, attacked: Attacked) -> tuple[dict[str, Any], str]:
    cell, prompt = unit.cell, unit.prompt
    text = prompt.text if cell.source is None else attacked[cell.source, cell.k, prompt.id]
    loaded = setup.encoders[cell.encoder]
    given, seed, weights = (
        loaded.encoder.preprocess([text])[0],
        noise_seed(prompt.id, unit.seed_index),
        loaded.base.fingerprint,
    )
    row = {
        "unit": "picture",
        "id": unit.id,
        "prompt_id": prompt.id,
        "prompt": text,
        "original": prompt.text,
        **asdict(cell),
        "seed_index": unit.seed_index,
        "seed": seed,
        "image": f"images/{content_id(weights=weights, given=given, seed=seed)}.png",
        "given": given,
        "truncated": loaded.base.is_truncated([given])[0],
    }
    return row, weights


def _append(store: RunStore, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        store.append("pictures", row)
        count += 1
    return count
