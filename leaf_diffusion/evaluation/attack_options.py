"""Options of `leaf-diffusion attack`, and what they say is attacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from leaf_diffusion.command_line import refuse_idle
from leaf_diffusion.diffusion.loading import load_for_text
from leaf_diffusion.diffusion.pipeline_encoder import PipelineEncoder
from leaf_diffusion.diffusion.pipeline_scorer import fast_scorer
from leaf_diffusion.encoders.base import Feature, Hidden, TextEncoder
from leaf_diffusion.encoders.features import Readout
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.evaluation.encoders import EncoderName
from leaf_diffusion.evaluation.options import AttackOptions, PromptOptions, resolve_device
from leaf_diffusion.scoring.objectives import Drift
from leaf_diffusion.scoring.scorer import AnyScorer, Scorer


@dataclass(frozen=True, kw_only=True)
class AttackPromptsOptions(AttackOptions, PromptOptions):
    """Find the worst prompts within k character edits of those in a file, on one text encoder or on all of a pipeline's."""

    help_group: ClassVar[str] = "the command"
    help_first: ClassVar[tuple[str, ...]] = ("prompts", "encoder", "attack", "k", "output")

    encoder: str = "world:original"
    """A source ("world:leaf", a folder, a Hub id) or LABEL=SOURCE; "+speller" puts spelling correction before it."""
    pipeline: str | None = None
    """In the place of --encoder: a diffusers pipeline of any class (a folder, a Hub id, "world"), whose text encoders are attacked
    together. Families that are known here (docs/guide/which-encoders.md) are attacked as their Leaf classes do it; of any other
    each candidate is encoded whole by its own encode_prompt, which is slow: --attack charmer:n_positions=5 takes few."""
    attacked_encoders: tuple[str, ...] = ()
    """Of a pipeline whose family is known: the text encoders that are attacked, by the names of the components (text_encoder,
    text_encoder_2). Default: all."""
    k: tuple[int, ...] = (1,)
    """Numbers of edits: of characters, or what the attack counts (slips, tokens, words)."""
    output: Path | None = None
    """The attack set (JSONL), which `leaf-diffusion evaluate --attacked-prompts` reads."""
    device: str = "auto"
    """auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:1, mps."""
    rows: int = 20
    """Rows of the table, the strongest attacks first; 0 for all."""
    config: Path | None = None
    """A YAML file with any of these options (underscores in names); the command line goes over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pipeline is None:
            refuse_idle(self, "is of the text encoders of a --pipeline", "attacked_encoders")
        else:
            refuse_idle(
                self,
                "is of one text encoder, and --pipeline has its own",
                "encoder",
                "feature",
                "objective",
                "precision",
            )

    @property
    def label(self) -> str:
        """What is attacked, as tables call it."""
        return self.pipeline or EncoderName.parse(self.encoder, world=True).label

    def loaded(self) -> tuple[AnyScorer, str]:
        """Load what is attacked: its scorer, and the fingerprint of all that is read."""
        device = resolve_device(self.device)
        if self.pipeline is not None:
            pipeline = load_for_text(self.pipeline, device=device)
            return fast_scorer(pipeline, self.attacked_encoders or None), PipelineEncoder(pipeline).fingerprint
        name = EncoderName.parse(self.encoder, world=True)
        encoder = load_text_encoder(name.source, defence=name.defence, device=device)
        scorer = Scorer(encoder, Drift(self.objective, feature=self.attacked(encoder)), precision=self.precision)
        return scorer, encoder.fingerprint

    def attacked(self, encoder: TextEncoder) -> Feature:
        """What of the embedding the attack moves."""
        if self.feature == "states":
            return Hidden(-1, "all")
        if self.feature == "readout":
            return Readout()
        if self.feature == "auto":
            return "projected" if encoder.has_projection else "pooled"
        if self.feature == "projected":
            encoder.require_projection()
        return self.feature
