"""Attack sets: the search, or a file's, recorded a few prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.attack_sets import attack_row, edits, write_attacks
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.t2i.plan import AttackUnit
from leaf_diffusion.reports.results import Row
from leaf_diffusion.runs.records import AttackRecord, parse
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.text.edits import distance
from leaf_diffusion.world import seen_tokens

if TYPE_CHECKING:
    from leaf_diffusion.evaluation.t2i.setup import Setup
    from leaf_diffusion.runs import RunStore

PROMPTS_AT_ONCE = 8
"""Prompts of one attack call: what a killed run loses at most."""


def attack_units(setup: Setup, units: Sequence[AttackUnit]) -> list[AttackRecord]:
    """Search, or take from the given file, the attacked prompts of units of one source, each prompt at all of its k."""
    source, ks = units[0].source, list(dict.fromkeys(unit.k for unit in units))
    prompts = list({unit.prompt.id: unit.prompt for unit in units}.values())
    work = given if setup.given_attacks else search
    found = {(row["prompt"], row["k"]): row for row in work(setup, source, ks, prompts)}
    return [parse(AttackRecord, {"id": u.id, "prompt_id": u.prompt.id, **found[u.prompt.text, u.k]}) for u in units]


def save_attacks(setup: Setup, store: RunStore) -> None:
    """Write the attack sets, one after the other, to the file that the options name."""
    if setup.options.save_attacked_prompts is not None:
        sets = {place: number for number, place in enumerate(setup.plan.sets())}
        by_id = {each.id: each for each in store.records("attacks", AttackRecord)}
        rows = sorted((by_id[unit.id] for unit in setup.plan.attacks()), key=lambda each: sets[each.source, each.k])
        write_attacks(setup.options.save_attacked_prompts, [each.model_dump(exclude_unset=True) for each in rows])


def search(setup: Setup, source: str, ks: Sequence[int], prompts: Sequence[Prompt]) -> list[Row]:
    """Attack `prompts` on one source at every k."""
    options, loaded = setup.options, setup.source(source)
    encoder = loaded.encoder
    scorer = loaded.scorer(Drift(options.objective, feature=setup.feature), options.precision)
    texts, fingerprint = [prompt.text for prompt in prompts], loaded.fingerprint
    results = options.attack.path(texts, scorer, ks, constraint=options.rule(), seed=options.seed)
    rows: list[Row] = []
    for i, prompt in enumerate(prompts):
        for k in ks:
            rows.append(
                {
                    **attack_row(results[k][i], source, k, options.attack.label, options.constraint),
                    "fingerprint": fingerprint,
                    "unseen_tokens": unseen_share(encoder, results[k][i].token_ids) if options.world else None,
                    "shattered": shattered(encoder, prompt.text, results[k][i].perturbed),
                }
            )
    return rows


def shattered(encoder: TextEncoder, original: str, perturbed: str) -> list[list[str]]:
    """The words of the perturbed prompt that the original does not have, as the encoder's tokenizer breaks them."""
    known = encoder.words(original)
    return [word for word in encoder.words(perturbed) if word not in known]


def unseen_share(encoder: TextEncoder, row: Sequence[int]) -> float:
    """Share of a prompt's tokens (without begin and end of text) that the world's CLIP never read in training."""
    content = [token for token in row[1:] if token != encoder.rows.eos_id]
    return sum(token not in seen_tokens() for token in content) / len(content) if content else 0.0


def given(setup: Setup, source: str, ks: Sequence[int], prompts: Sequence[Prompt]) -> list[Row]:
    """Attacked prompts of a file; what it does not say is None, distance and edits are measured."""
    unknown = dict.fromkeys(("attack", "constraint", "score", "clean_score", "queries", "success"))
    first = next(iter(setup.encoders.values())).base
    rows: list[Row] = []
    for prompt, k in ((prompt.text, k) for prompt in prompts for k in ks):
        row = setup.given_by_text[source, k, prompt]
        perturbed = row["perturbed"]
        tokens = first.tokenize([perturbed])[0]
        measured = {
            "distance": distance(prompt, perturbed),
            "edits": edits(prompt, perturbed),
            "truncated": first.is_truncated([perturbed])[0],
            "unseen_tokens": unseen_share(first, tokens) if setup.options.world else None,
            "shattered": shattered(first, prompt, perturbed),
        }
        rows.append({**unknown, **row, **measured})
    return rows
