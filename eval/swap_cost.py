"""What does a robust text encoder cost on clean prompts, and with the files that people load into a Stable Diffusion?

Plain prompts, negative prompts, long ones, a token learnt by textual inversion and a LoRA, both made for the encoder
that is replaced. Runs as `leaf-diffusion swap-cost` and as `python eval/swap_cost.py`; --help lists the options.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leaf_diffusion.diffusion.families import frozen_parts
from leaf_diffusion.evaluation.swap_cost.conditions import Condition, make_conditions
from leaf_diffusion.evaluation.swap_cost.measure import draw_condition, measure, result_rows, save_images, series
from leaf_diffusion.evaluation.swap_cost.setup import NOTHING, SwapCostOptions, load, pipeline_with
from leaf_diffusion.evaluation.swap_cost.training import train_style, train_token
from leaf_diffusion.evaluation.t2i.judges import Judges, load_judges
from leaf_diffusion.evaluation.t2i.setup import Setup, check_writable
from leaf_diffusion.evaluation.t2i.specification import weights_fingerprint
from leaf_diffusion.evaluation.terminal import quiet
from leaf_diffusion.finetune.translate import STEPS, translate_file
from leaf_diffusion.reports.pages.swap_cost import Figures, page, table
from leaf_diffusion.runs import RunSpec, atomic_write, environment

ELSEWHERE = ("output", "device", "batch_size", "encoders", "prompts", "textual_inversion", "lora")
"""Options that change no result, or that the identity holds in another form (texts and fingerprints)."""


def specification(setup: Setup, judges: Judges, options: SwapCostOptions) -> RunSpec:
    """What decides the results."""
    conditions, _ = make_conditions(setup, options, Path())
    files = {"textual_inversion": options.textual_inversion, "lora": options.lora}
    return RunSpec(
        {
            "experiment": "swap-cost",
            **{name: value for name, value in asdict(options).items() if name not in ELSEWHERE},
            **{name: path and hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
            "encoders": {label: one.fingerprint for label, one in setup.encoders.items()},
            "pipeline_weights": weights_fingerprint(*frozen_parts(setup.pipeline)),
            "steps": setup.options.steps,
            "guidance": setup.options.guidance,
            "feature_space": judges.space,
            "prompts": {each.key: [[asked.given, asked.negative] for asked in each.prompts] for each in conditions},
        }
    )


def run_folder(options: SwapCostOptions, spec: RunSpec) -> Path:
    """The run's folder, there and writable; ValueError where it holds another run, OSError where it cannot be made."""
    folder = options.output or Path("runs") / f"swap-cost-{spec.identity[:8]}"
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / "spec.json"
    if there.exists() and json.loads(there.read_text()).get("identity") != spec.identity:
        raise ValueError(f"--output {folder} holds another run; choose another folder")
    atomic_write(there, json.dumps(spec.to_dict(), indent=1, ensure_ascii=False).encode())
    return folder


def evaluate(
    setup: Setup, judges: Judges, options: SwapCostOptions, folder: Path, console: Console
) -> tuple[list[Condition], dict[Any, Any], dict[str, Any]]:
    """Train what the world lacks, translate the token, draw, measure: the conditions, the values by series, the results but for the frame."""
    conditions, left_out = make_conditions(setup, options, folder)
    labels = list(setup.encoders)
    by_key = {condition.key: condition for condition in conditions}
    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    measured: dict[Any, Any] = {}
    cut: dict[str, dict[str, int]] = {}
    trained = {"token": options.textual_inversion is None, "lora": options.lora is None}
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as bars:
        for key in (key for key in by_key if trained.get(key)):
            bar = bars.add_task("token" if key == "token" else "style", total=options.train_steps)
            file = by_key[key].files.embedding or by_key[key].files.lora
            assert file is not None
            with pipeline_with(setup, labels[0], NOTHING) as pipeline:
                train, where = (train_token, file) if key == "token" else (train_style, file.parent)
                train(
                    pipeline, where, steps=options.train_steps, seed=options.seed, advance=lambda b=bar: bars.advance(b)
                )
        if "translated" in by_key:
            learnt = by_key["token"].files.embedding
            assert learnt is not None
            for label, files in by_key["translated"].own.items():
                bar = bars.add_task("translate", total=STEPS)
                towers = [setup.encoders[name].base for name in (labels[0], label)]
                assert files.embedding is not None
                files.embedding.parent.mkdir(exist_ok=True)
                translate_file(learnt, files.embedding, *towers, advance=lambda b=bar: bars.advance(b))
        total = sum(len(series(condition, labels)) * len(condition.prompts) for condition in conditions)
        bar = bars.add_task("images", total=total)
        for condition in conditions:
            drawn, cut[condition.key] = draw_condition(setup, condition, options.seed, lambda n: bars.advance(bar, n))
            save_images(folder, condition.prompts, drawn)
            style = condition.key in ("plain", "lora") and "lora" in by_key and trained["lora"]
            measured |= measure(condition, drawn, judges, style)
    described = [
        {
            "key": condition.key,
            "title": condition.title,
            "about": condition.about,
            "truncated": cut[condition.key],
            "prompts": [{"given": asked.given, "negative": asked.negative} for asked in condition.prompts],
        }
        for condition in conditions
    ]
    rows = result_rows(measured, labels[0])
    return conditions, measured, {"rows": rows, "conditions": described, "left_out": left_out}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the encoders, print the table, write results.json and swap-cost.html; returns the exit status."""
    import transformers  # after leaf_diffusion, which repairs what it imports

    console = Console()
    quiet()
    transformers.utils.logging.set_verbosity_error()  # notices on long prompts and on resized tables, both on purpose
    try:
        options = tyro.cli(SwapCostOptions, args=argv, prog="leaf-diffusion swap-cost")
        with console.status("loading and checking"):
            setup = load(options)
            judges = load_judges(setup.options)
            spec = specification(setup, judges, options)
            folder = run_folder(options, spec)
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    conditions, measured, found = evaluate(setup, judges, options, folder, console)
    labels = list(setup.encoders)
    arguments = sys.argv[1:] if argv is None else list(argv)
    results = {
        "identity": spec.identity,
        "facts": {
            "prompts": len(setup.prompts),
            "encoders": ", ".join(labels),
            "pipeline": options.pipeline,
            "sampling steps": setup.options.steps,
            "seed": options.seed,
        },
        "environment": environment(shlex.join(["leaf-diffusion", "swap-cost", *arguments])),
        "feature_space": judges.space,
        **found,
    }
    atomic_write(folder / "results.json", f"{json.dumps(results, indent=1, ensure_ascii=False)}\n".encode())
    atomic_write(folder / "swap-cost.html", page(results, conditions, measured, labels, folder).encode())
    console.print(table(Figures(found["rows"]), conditions, labels))
    for condition in found["conditions"]:
        for label, n in condition["truncated"].items():
            if n:
                console.print(f"{condition['title']}: {n} of {len(condition['prompts'])} cut by {label}", markup=False)
    for sentence in found["left_out"]:
        console.print(sentence, markup=False)
    console.print(f"page: {folder / 'swap-cost.html'}", soft_wrap=True, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
