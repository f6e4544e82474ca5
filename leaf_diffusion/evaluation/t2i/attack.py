"""Attack sets: the search, or a file's, recorded a few prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leaf_diffusion.attacks import Attack, AttackResult, Charmer
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.prompts import Prompt, edits
from leaf_diffusion.runs.scheduler import Advance, Batch, chunks, run_batches
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import AnyScorer
from leaf_diffusion.text.constraints import Constraint, constraint_from_name
from leaf_diffusion.text.edits import distance
from leaf_diffusion.world import seen_tokens

if TYPE_CHECKING:
    from leaf_diffusion.evaluation.t2i.setup import Setup
    from leaf_diffusion.runs import RunStore

PROMPTS_AT_ONCE = 8
"""Prompts of one attack call: what a killed run loses at most."""

Attacked = dict[tuple[str, int, str], str]
"""(source, k, prompt id) -> attacked prompt."""


def attack_all(setup: Setup, store: RunStore, advance: Advance) -> Attacked:
    """Search (or take from the given file) every attack set that the plan names; returns all attacked prompts."""
    plan = setup.plan
    by_text = {(row["source"], row["k"], row["prompt"]): row for row in setup.given_attacks}

    def batch(source: str, ks: Sequence[int], prompts: Sequence[Prompt]) -> Batch:
        def work() -> None:
            for row in _given(setup, source, ks, prompts, by_text) if by_text else search(setup, source, ks, prompts):
                store.append("attacks", row)

        return Batch([plan.attack_id(source, k, prompt) for prompt in prompts for k in ks], work)

    batches = [
        batch(source, [k for name, k in plan.sets() if name == source], prompts)
        for source in plan.sources
        for prompts in chunks(plan.prompts, setup.options.at_once(PROMPTS_AT_ONCE))
    ]
    run_batches(store, "attacks", batches, advance)
    done = {row["id"]: row["perturbed"] for row in store.records("attacks")}
    return {(source, k, p.id): done[plan.attack_id(source, k, p)] for source, k in plan.sets() for p in plan.prompts}


def find(
    attack: Attack, texts: Sequence[str], scorer: AnyScorer, ks: Sequence[int], constraint: Constraint | None, seed: int
) -> dict[int, list[AttackResult]]:
    """Results at every k; one search gives them all where the attack (Charmer) goes edit by edit."""
    if isinstance(attack, Charmer):
        return attack.path(texts, scorer, ks, constraint=constraint)
    return {k: attack(texts, scorer, k=k, constraint=constraint, seed=seed) for k in ks}


def search(setup: Setup, source: str, ks: Sequence[int], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Attack `prompts` on one source at every k; Charmer's rounds give all k from one search."""
    options, loaded = setup.options, setup.source(source)
    encoder = loaded.encoder
    scorer = loaded.scorer(Drift(options.objective, feature=setup.feature), options.precision)
    constraint = constraint_from_name(options.constraint)
    attack, texts = options.attack, [prompt.text for prompt in prompts]
    results, fingerprint = find(attack, texts, scorer, ks, constraint, options.seed), loaded.fingerprint
    rows = []
    for i, prompt in enumerate(prompts):
        for k in ks:
            rows.append(
                {
                    "unit": "attack",
                    "id": setup.plan.attack_id(source, k, prompt),
                    "prompt_id": prompt.id,
                    **attack_row(results[k][i], source, k, attack.label, options.constraint),
                    "fingerprint": fingerprint,
                    "unseen_tokens": unseen_share(encoder, results[k][i].token_ids) if options.world else None,
                    "shattered": shattered(encoder, prompt.text, results[k][i].perturbed),
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


def shattered(encoder: TextEncoder, original: str, perturbed: str) -> list[list[str]]:
    """The words of the perturbed prompt that the original does not have, as the encoder's tokenizer breaks them."""
    known = encoder.words(original)
    return [word for word in encoder.words(perturbed) if word not in known]


def unseen_share(encoder: TextEncoder, row: Sequence[int]) -> float:
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
                "shattered": shattered(first, prompt.text, perturbed),
            }
            identity = {"unit": "attack", "id": setup.plan.attack_id(source, k, prompt), "prompt_id": prompt.id}
            records.append({**unknown, **row, **measured, **identity})
    return records
