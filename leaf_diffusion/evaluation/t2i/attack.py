"""Attack sets: the search, or a file's, recorded a few prompts at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from leaf_diffusion.attacks import kind_of
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.evaluation.attack_sets import attacked_text, edits, write_attacks
from leaf_diffusion.evaluation.prompts import Prompt
from leaf_diffusion.evaluation.t2i.plan import AttackUnit
from leaf_diffusion.runs.records import AttackRecord, parse
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.world import seen_tokens

if TYPE_CHECKING:
    from leaf_diffusion.evaluation.t2i.setup import Setup
    from leaf_diffusion.runs import RunStore

PROMPTS_AT_ONCE = 8
"""Prompts of one attack call: what a killed run loses at most."""
Found = Mapping[tuple[str, int], Mapping[str, object]]
"""(prompt, k) -> what the record of its attack says."""


def attack_units(setup: Setup, units: Sequence[AttackUnit]) -> list[AttackRecord]:
    """Search, or take from the given file, the attacked prompts of units of one source, each prompt at all of its k."""
    source, ks = units[0].source, list(dict.fromkeys(unit.k for unit in units))
    prompts = list({unit.prompt.id: unit.prompt for unit in units}.values())
    work = given if setup.given_attacks else search
    found = work(setup, source, ks, prompts)
    return [parse(AttackRecord, {"id": u.id, "prompt_id": u.prompt.id, **found[u.prompt.text, u.k]}) for u in units]


def save_attacks(setup: Setup, store: RunStore) -> None:
    """Write the attack sets, one after the other, to the file that the options name."""
    if setup.options.save_attacked_prompts is not None:
        sets = {place: number for number, place in enumerate(setup.plan.sets())}
        by_id = {each.id: each for each in store.records("attacks", AttackRecord)}
        rows = sorted((by_id[unit.id] for unit in setup.plan.attacks()), key=lambda each: sets[each.source, each.k])
        write_attacks(setup.options.save_attacked_prompts, rows)


def search(setup: Setup, source: str, ks: Sequence[int], prompts: Sequence[Prompt]) -> Found:
    """Attack `prompts` on one source at every k."""
    options, loaded = setup.options, setup.source(source)
    encoder = loaded.encoder
    scorer = loaded.scorer(Drift(options.objective, feature=setup.feature), options.precision)
    texts = [prompt.text for prompt in prompts]
    results = options.attack.path(texts, scorer, ks, constraint=options.rule(), seed=options.seed)
    return {
        (text, k): {
            **dict(attacked_text(results[k][i], source, k, options.attack.label, options.constraint)),
            "fingerprint": loaded.fingerprint,
            "unseen_tokens": unseen_share(encoder, results[k][i].token_ids) if options.world else None,
            "shattered": shattered(encoder, text, results[k][i].perturbed),
        }
        for i, text in enumerate(texts)
        for k in ks
    }


def shattered(encoder: TextEncoder, original: str, perturbed: str) -> list[list[str]]:
    """The words of the perturbed prompt that the original does not have, as the encoder's tokenizer breaks them."""
    known = encoder.words(original)
    return [word for word in encoder.words(perturbed) if word not in known]


def unseen_share(encoder: TextEncoder, row: Sequence[int]) -> float:
    """Share of a prompt's tokens (without begin and end of text) that the world's CLIP never read in training."""
    content = [token for token in row[1:] if token != encoder.rows.eos_id]
    return sum(token not in seen_tokens() for token in content) / len(content) if content else 0.0


def given(setup: Setup, source: str, ks: Sequence[int], prompts: Sequence[Prompt]) -> Found:
    """Attacked prompts of a file; what it does not say is None, distance and edits are measured."""
    unknown = dict.fromkeys(("attack", "constraint", "score", "clean_score", "queries", "success"))
    first = next(iter(setup.encoders.values())).base
    found: dict[tuple[str, int], Mapping[str, object]] = {}
    for prompt, k in ((prompt.text, k) for prompt in prompts for k in ks):
        row = setup.given_by_text[source, k, prompt]
        tokens = first.tokenize([row.perturbed])[0]
        measured = {
            "distance": kind_of(row.attack).measure(prompt, row.perturbed),
            "edits": edits(prompt, row.perturbed),
            "truncated": first.is_truncated([row.perturbed])[0],
            "unseen_tokens": unseen_share(first, tokens) if setup.options.world else None,
            "shattered": shattered(first, prompt, row.perturbed),
        }
        found[prompt, k] = {**unknown, **row.model_dump(exclude_unset=True), **measured}
    return found
