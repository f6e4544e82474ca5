"""The model card of a pipeline or encoder that an evaluation has measured, with the Hub's evaluation results."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from leaf_diffusion import __version__
from leaf_diffusion.metrics.bounds import under_attack
from leaf_diffusion.reports.results import METRICS, SETS, Results, sample_said, setting_of
from leaf_diffusion.runs import ResultRow, atomic_write, load_run

_TEMPLATE = """---
{metadata}
---

# {name}

{what}, measured with leaf_diffusion {version} (`leaf-diffusion evaluate`): {prompts} prompts, {seeds} image(s) each, attack
{attack}, constraint {constraint}. A figure under attack is {bound}. Intervals are of 95%, over prompts.

| measure | prompts | mean | 95% interval | n |
|---|---|---|---|---|
{table}

{meanings}
"""
_WHAT = {
    "diffusers": "A diffusers pipeline whose text encoder withstands misspelt and attacked prompts",
    "transformers": "A CLIP text encoder for diffusion models that withstands misspelt and attacked prompts",
}


def eval_results(run: str | Path, encoder: str) -> list[EvalResult]:
    """The figures of one encoder (its label in the run) in a finished run folder, none of them computed here.

    ValueError where the run is not finished or does not know the encoder.
    """
    titles = _titles(run)
    return [_result(row, titles[row.metric], _dataset(run)) for row in _rows(run, encoder)]


def write_card(folder: str | Path, run: str | Path, encoder: str, *, name: str, base_model: str | None = None) -> Path:
    """Write README.md, with the run's figures for `encoder`, into the folder of a saved pipeline or text encoder.

    `name`: what the model is called. `base_model`: the Hub id of what it was made from. Raises ValueError where the folder
    holds neither, or the run has no such figures.
    """
    folder = Path(folder)
    library = "diffusers" if (folder / "model_index.json").is_file() else "transformers"
    if not (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no pipeline and no encoder: save one there first")
    rows, settings = _rows(run, encoder), load_run(run).spec.settings
    data = ModelCardData(
        library_name=library,
        pipeline_tag="text-to-image" if library == "diffusers" else None,
        base_model=base_model,
        tags=["adversarial-robustness", "text-encoder", "leaf_diffusion"],
        model_name=_plain(name),
        eval_results=eval_results(run, encoder),
    )
    titles = _titles(run)
    used = list(dict.fromkeys(row.metric for row in rows))
    text = _TEMPLATE.format(
        metadata=data.to_yaml(),
        name=_plain(name),
        what=_WHAT[library],
        version=__version__,
        prompts=len(settings["prompts"]),
        seeds=settings["seeds"],
        attack=settings["attack"],
        constraint=settings["constraint"],
        bound=under_attack(),
        table="\n".join(_line(row, titles[row.metric]) for row in rows),
        meanings="\n".join(f"- {titles[metric]}: {METRICS[metric].meaning}." for metric in used),
    )
    atomic_write(folder / "README.md", text.encode())
    return folder / "README.md"


def _rows(run: str | Path, encoder: str) -> list[ResultRow]:
    """The encoder's own means (no differences, no floor of noise), clean first."""
    rows = load_run(run).results.rows
    if not rows:
        raise ValueError(f"{run} has no results yet: finish the evaluation first, with the same command")
    own = [row for row in rows if row.encoder == encoder and row.baseline is None and row.metric in METRICS]
    if not own:
        known = ", ".join(sorted({row.encoder for row in rows}))
        raise ValueError(f"{run} has no figures of {encoder!r}; its encoders are: {known}")
    swap = [row for row in own if row.protocol == "clean" and row.metric.startswith("drift")]  # not an attack's
    found = [row for row in own if row.mean is not None and row.protocol != "floor" and row not in swap]
    order = list(METRICS)
    return sorted(
        found,
        key=lambda row: (order.index(row.metric), row.protocol != "clean", setting_of(row.protocol, row.source, row.k)),
    )


def _dataset(run: str | Path) -> tuple[str, str]:
    spec = load_run(run).spec
    world = " of the embedded world" if spec.settings["pipeline"] == "world" else ""
    return f"leaf_diffusion-run-{spec.identity[:8]}", f"{len(spec.settings['prompts'])} prompts{world}"


def _titles(run: str | Path) -> dict[str, str]:
    """What each metric is called; a distance between sets says in which features it was measured."""
    results = Results.of(load_run(run))
    spaces = {key: f" ({_plain(results.space(key))})" if key in SETS else "" for key in METRICS}
    return {key: metric.title + spaces[key] for key, metric in METRICS.items()}


def _result(row: ResultRow, title: str, dataset: tuple[str, str]) -> EvalResult:
    names = ("protocol", "source", "attack", "constraint", "k", "ci_low", "ci_high", "n", "seeds")
    return EvalResult(
        task_type="text-to-image",
        dataset_type=dataset[0],
        dataset_name=dataset[1],
        metric_type=row.metric,
        metric_name=f"{title}, {setting_of(row.protocol, row.source, row.k).label}",
        metric_value=row.mean,
        metric_args={name: row.column(name) for name in names if row.column(name) is not None},
    )


def _line(row: ResultRow, title: str) -> str:
    metric = METRICS[row.metric]
    label = setting_of(row.protocol, row.source, row.k).label.replace("|", r"\|").replace("<", "&lt;")
    return f"| {title} | {label} | {metric.show(row.mean)} | {metric.show_interval(row)} | {sample_said([row])} |"


def _plain(name: str) -> str:
    """A name on one line that is neither Markdown nor HTML."""
    return " ".join(name.split()).translate(str.maketrans("<>|`*[]\\", "        ")).strip()
