"""What a swap-cost run keeps, and its copy in another run's results."""

from __future__ import annotations

from leaf_diffusion.runs.records import Count, Number, Typed


class CostRow(Typed):
    """One metric of an encoder under one condition."""

    condition: str
    encoder: str
    protocol: str
    metric: str
    baseline: str | None
    mean: Number | None
    ci_low: Number | None
    ci_high: Number | None
    n: Count


class Condition(Typed):
    """What else a pipeline is given."""

    key: str
    title: str


class GivenPrompt(Typed):
    """A prompt as it is given."""

    given: str
    negative: str | None = None


class MeasuredCondition(Condition):
    """A condition with all that its page says. truncated: how many prompts each encoder cut."""

    about: str
    truncated: dict[str, int]
    prompts: list[GivenPrompt]


class SwapCosts(Typed):
    """The costs of a swap, and what they were measured with."""

    rows: list[CostRow]
    conditions: list[Condition]
