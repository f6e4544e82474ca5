"""Attacks on a pipeline's own text encoders, all of them or some."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffusers import DiffusionPipeline
from torch import nn

from leaf_diffusion.attacks.base import Attack, AttackResult
from leaf_diffusion.attacks.exact_or_beam import ExactOrBeam
from leaf_diffusion.diffusion.families import family_of
from leaf_diffusion.diffusion.readings import sequence_encoder
from leaf_diffusion.encoders.base import Defence, TextEncoder
from leaf_diffusion.encoders.clip import HFTextEncoder, computes_on
from leaf_diffusion.scoring.mean import MeanScorer
from leaf_diffusion.scoring.objectives import Drift, Objective, objective_for
from leaf_diffusion.scoring.scorer import AnyScorer, Scorer
from leaf_diffusion.text.constraints import Constraint, constraint_from_name


class AttackedPipeline(DiffusionPipeline):
    """The half of a Leaf pipeline that reads and attacks; `diffusion.families` says which text encoders there are."""

    # class attributes, because an __init__ of its own would break from_pipe and save_pretrained
    _defence: Defence | None = None
    _projections: dict[str, nn.Linear] | None = None
    _names: dict[str, str] | None = None

    @property
    def encoders(self) -> list[TextEncoder]:
        """The text encoders as they stand, in the class's order (a refiner has the second alone), with their defence: CLIPs with
        their projection where it is known, others as the pipeline reads prompts with them.

        ValueError for a model in the place of a T5 or a language model that is not known here."""
        return list(self._towers(None).values())

    def _towers(self, wanted: Sequence[str] | None) -> dict[str, TextEncoder]:
        """The text encoders by their parts: all, or those of the names. ValueError for names of none."""
        family = family_of(self)
        present = [each for each in family.text_encoders if getattr(self, each.part) is not None]
        names = [each.part for each in present]
        if isinstance(wanted, str) or (wanted is not None and not wanted):
            raise ValueError(f'encoders={wanted!r}: give names in a list, such as ["text_encoder"], or None for all')
        if absent := [name for name in wanted or () if name not in names]:
            raise ValueError(
                f"this {type(self).__name__} has no text encoder {absent[0]!r}; it has: {', '.join(names) or 'none'}"
            )
        base = str(self.config.get("_name_or_path") or "pipeline")
        made: dict[str, TextEncoder] = {}
        for each in present:
            if wanted is not None and each.part not in wanted:
                continue
            alone = len(family.text_encoders) == 1
            name = (self._names or {}).get(each.part, base if alone else f"{base}/{each.part}")
            if each.kind != "clip":
                made[each.part] = sequence_encoder(self, each.part, name=name, defence=self._defence)
                continue
            module, tokenizer = getattr(self, each.part), getattr(self, each.tokenizer)
            projection = (self._projections or {}).get(each.part)
            if projection is not None:
                projection = projection.to(computes_on(module), module.dtype)
            made[each.part] = HFTextEncoder(module, tokenizer, name=name, defence=self._defence, projection=projection)
        return made

    def scorer(self, objective: Objective | None = None, *, encoders: Sequence[str] | None = None) -> AnyScorer:
        """What `attack` maximises; see there."""
        family, towers = family_of(self), self._towers(encoders)
        if not towers:
            raise ValueError(f"this {type(self).__name__} has no text encoder that could be attacked")
        asked = {
            part: objective_for(tower, objective) if objective else Drift("l2", feature=family.part(part).attacked)
            for part, tower in towers.items()
        }
        scorers = [(Scorer(tower, asked[part]), 1.0) for part, tower in towers.items()]
        return scorers[0][0] if family.text_encoders == family.clips and len(family.clips) == 1 else MeanScorer(scorers)

    def attack(
        self,
        prompts: Sequence[str],
        *,
        attack: Attack | None = None,
        k: int = 1,
        constraint: Constraint | str | None = "no-new-words",
        objective: Objective | None = None,
        encoders: Sequence[str] | None = None,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[AttackResult]:
        """Worst prompts within `k` edits, found on this pipeline's own text encoders (default attack: `ExactOrBeam()`), on all of
        them, or on those of the names in `encoders` ("text_encoder", "text_encoder_2", ...).

        The default objective is the squared L2 drift of what stands for each encoder. Of a CLIP that is what the class has of
        it: pooled features of CLIPTextModels (Stable Diffusion, SDXL's first, FLUX), projected ones of those with a projection
        (SDXL's second, both of SD3); so the same weights get the same attack, whatever projection an exchanged encoder brings
        along. Of a T5 or a language model it is what attention reads of its token states (`Readout()`).
        The score is the mean over the encoders, each relative to its own clean embedding, so that the larger does not drown the
        others; that of a Stable Diffusion, which has one CLIP, is the drift itself.

        `objective` takes the drift's place: `Drift("l2", feature="projected")`, `Drift("l2", feature=Hidden())` for the token
        states. It is a CLIP's: a T5 or a language model is asked for a drift of the same kind of its own feature, and ValueError
        says so where it can be asked for nothing of the kind (a target or a margin in CLIP's space). One on `Readout()` or
        `MeanState()` is for all.

        ValueError where the pipeline has no text encoder, or none of a name.
        """
        rule = constraint_from_name(constraint) if isinstance(constraint, str) else constraint
        scorer = self.scorer(objective, encoders=encoders)
        return list((attack or ExactOrBeam())(list(prompts), scorer, k=k, constraint=rule, seed=seed, on_step=on_step))
