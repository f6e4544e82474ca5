"""Reading the records of a run, checked and typed, against `json.loads` on the same lines.

    python benchmarks/records.py --records 100000

Both sides read one file in turn, several times, in one process; the figure is the ratio of their fastest turns (CPU
time). The typed side checks each line's checksum and every field.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

from leaf_diffusion.runs import RunSpec, RunStore, load_run
from leaf_diffusion.runs.log import encode
from leaf_diffusion.runs.records import ImageRecord


def write_run(folder: Path, number: int) -> Path:
    """A run with so many records of images; returns their file."""
    RunStore.open(folder, RunSpec({"attack": "charmer"})).close()
    path = folder / "records" / "images.jsonl"
    with path.open("wb") as file:
        for i in range(number):
            prompt = f"a red cat near a blue boat on the grass, number {i}"
            record = ImageRecord(
                id=f"leaf/adaptive/leaf/1/{i:08d}/0",
                prompt_id=f"{i:08d}",
                prompt=prompt.replace("cat", "caat"),
                original=prompt,
                encoder="leaf",
                protocol="adaptive",
                source="leaf",
                k=1,
                seed_index=0,
                given=prompt.replace("cat", "caat"),
                truncated=False,
                image=f"images/{i:024x}.png",
                sha256=hashlib.sha256(prompt.encode()).hexdigest(),
                size=100_000 + i,
            )
            file.write(encode(record.model_dump(exclude_unset=True)) + b"\n")
    return path


def seconds(read: Callable[[], Sequence[object]], number: int) -> float:
    """CPU time of reading everything once."""
    started = process_time()
    found = read()
    taken = process_time() - started
    assert len(found) == number
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder) / "run", options.records)
        plain, typed = list[float](), list[float]()
        for _ in range(options.turns):
            plain.append(seconds(lambda: [json.loads(line) for line in path.open("rb")], options.records))
            typed.append(seconds(lambda: load_run(path.parents[1]).records("images", ImageRecord), options.records))
    each = 1e6 / options.records
    print(f"plain json.loads {min(plain) * each:.1f} µs a record, typed {min(typed) * each:.1f} µs", end="; ")
    print(f"typed / plain {min(typed) / min(plain):.2f}")


if __name__ == "__main__":
    main()
