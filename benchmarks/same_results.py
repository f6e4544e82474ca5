"""Whether two versions of the code give the same results: `python benchmarks/same_results.py BEFORE AFTER`.

Both are folders of what the same commands left: run folders (results.json), attack sets (.jsonl), weights (.safetensors),
at any depth. For each file that stands in BEFORE, AFTER's is compared: rows by what they are of, texts exactly, numbers by
their largest difference. Exit status 1 where something is missing, or differs by more than --tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from leaf_diffusion.weights.files import load_weights

FIGURES = ("mean", "ci_low", "ci_high", "score", "clean_score")
NOT_COMPARED = ("fingerprint", "objective", "id", "prompt_id", "unit")
"""What an attack set says of itself, beside what was found; ids follow from it."""


def rows_of(path: Path) -> Iterator[Mapping[str, object]]:
    """The rows of results.json, or the lines of an attack set."""
    if path.suffix == ".jsonl":
        yield from (json.loads(line) for line in path.read_text().splitlines())
    else:
        yield from json.loads(path.read_text())["rows"]


def by_place(path: Path) -> dict[str, list[float | None]]:
    """What a row is of, texts and counts included -> its figures."""
    found = {}
    for row in rows_of(path):
        place = {name: value for name, value in row.items() if name not in (*FIGURES, *NOT_COMPARED)}
        figures = [row.get(name) for name in FIGURES]
        found[json.dumps(place, sort_keys=True)] = [float(x) if isinstance(x, int | float) else None for x in figures]
    return found


def compare_rows(before: Path, after: Path) -> tuple[int, int, int, float]:
    """(rows, missing, added, largest difference of a figure)"""
    old, new = by_place(before), by_place(after)
    largest = 0.0
    for place in old.keys() & new.keys():
        for a, b in zip(old[place], new[place], strict=True):
            differs = float("inf") if (a is None) != (b is None) else abs((a or 0.0) - (b or 0.0))
            largest = max(largest, differs)
    return len(old), len(old.keys() - new.keys()), len(new.keys() - old.keys()), largest


def compare_weights(before: Path, after: Path) -> tuple[int, int, int, float]:
    """(tensors, missing, added, largest difference of a weight)"""
    old, new = load_weights(before), load_weights(after)
    shared = old.keys() & new.keys()
    same = [(old[n], new[n]) for n in shared if old[n].shape == new[n].shape]
    largest = max((float((a.float() - b.float()).abs().max()) for a, b in same if a.numel()), default=0.0)
    misshapen = len(shared) - len(same)
    return len(old), len(old.keys() - new.keys()) + misshapen, len(new.keys() - old.keys()), largest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("file", "rows or tensors", "missing", "added", "largest difference")
    wrong = 0
    for path in sorted(options.before.rglob("*")):
        name = path.relative_to(options.before)
        if path.name != "results.json" and not (path.suffix == ".safetensors" or name.match("*.jsonl")):
            continue
        if "records" in name.parts or path.name == "training_log.jsonl":
            continue
        other = options.after / name
        if not other.is_file():
            table.add_row(str(name), "", "[red]the file is missing[/]", "", "")
            wrong += 1
            continue
        compare = compare_weights if path.suffix == ".safetensors" else compare_rows
        count, missing, added, largest = compare(path, other)
        fits = not missing and largest <= options.tolerance
        wrong += not fits
        mark = "" if fits else "[red]"
        table.add_row(f"{mark}{name}", str(count), str(missing), str(added), f"{largest:.3g}")
    Console(width=140).print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
