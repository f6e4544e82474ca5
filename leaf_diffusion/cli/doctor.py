"""`leaf-diffusion doctor`: versions, devices and files, and what cannot work here and why."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from leaf_diffusion.command_line import parse, printable, run_command
from leaf_diffusion.runs.files import probe
from leaf_diffusion.scoring.int8 import multiplies_int8
from leaf_diffusion.scoring.prefix_forest import multiplies_bfloat16
from leaf_diffusion.weights.files import read_header
from leaf_diffusion.world.paths import VARIABLE, weights_root

PACKAGE = "leaf-diffusion"
WITHOUT = {
    "bleu": "`invert` gives no BLEU",
    "data": "no dataset:NAME",
    "fid": "no conversion of the FID's Inception",
    "lora": "no LoRA is trained or merged (`finetune --lora-rank`, `--adapter`)",
    "track": "no --track",
    "xformers": "no --attention xformers",
}
"""What cannot be done without an extra."""
MARKS = {"good": "ok  ", "bad": "FAIL", "less": "--  "}


@dataclass(frozen=True)
class Finding:
    """good: works; bad: something that every installation needs does not; less: something optional is not there."""

    state: Literal["good", "bad", "less"]
    what: str
    said: str


@dataclass(frozen=True)
class Options:
    """Versions, devices and files: what works here, and what cannot and why. The exit status is 0 where all that is needed
    works, else 1."""


def packages() -> Iterator[Finding]:
    """The package's own requirements against what is installed; of extras one line each."""
    needs: dict[str, list[Requirement]] = {"": []}
    for text in metadata.requires(PACKAGE) or []:
        need = Requirement(text)
        extra = next((name for name in WITHOUT if need.marker and not need.marker.evaluate({"extra": ""})
                      and need.marker.evaluate({"extra": name})), None)  # fmt: skip
        if need.marker is None or extra:
            needs.setdefault(extra or "", []).append(need)
    for need in needs.pop(""):
        wrong = _lacks(need)
        yield Finding("bad" if wrong else "good", need.name, wrong or metadata.version(need.name))
    for extra, some in sorted(needs.items()):
        lacks = [f"{need.name} {wrong}" for need in some if (wrong := _lacks(need))]
        if lacks:
            said = f"{WITHOUT[extra]}: {', '.join(lacks)}; pip install '{PACKAGE}[{extra}]'"
        else:
            said = ", ".join(f"{need.name} {metadata.version(need.name)}" for need in some)
        yield Finding("less" if lacks else "good", f"extra {extra}", said)


def _lacks(need: Requirement) -> str:
    """Why a requirement is not met; "" where it is."""
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return "is not installed"
    return (
        "" if need.specifier.contains(version, prereleases=True) else f"{version} is installed, {need.specifier} needed"
    )


def imports() -> Iterator[Finding]:
    """Whether the large packages can be imported at all: builds that do not belong together fail here."""
    for name in ("torchvision", "transformers", "diffusers", "open_clip", "accelerate"):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken build raises
            yield Finding("bad", f"import {name}", f"{type(error).__name__}: {error}")


def devices() -> Iterator[Finding]:
    """What computes."""
    half = "bfloat16" if multiplies_bfloat16() else "int8" if multiplies_int8() else "nothing"
    said = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads; --precision screen screens in {half}"
    yield Finding("good", "cpu", said)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch is built without CUDA" if built is None else f"torch is built for CUDA {built} and sees no device"
        yield Finding("less", "cuda", f"{why}: all is computed on the CPU, real models take hours")
    for i in range(torch.cuda.device_count()):
        about, (free, total) = torch.cuda.get_device_properties(i), torch.cuda.mem_get_info(i)
        half = "bfloat16" if torch.cuda.is_bf16_supported(False) else "float16 and no bfloat16"
        yield Finding("good", f"cuda:{i}", f"{about.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {half}")
    if torch.backends.mps.is_available():
        yield Finding("good", "mps", "Apple GPU")


def world() -> Iterator[Finding]:
    """The embedded world's weights: each file's header read, its size held against it."""
    root, files = weights_root(), list[Path]()
    try:
        files = sorted(root.rglob("*.safetensors"))
        for file in files:
            read_header(file)
    except (OSError, ValueError) as error:
        yield Finding("bad", "embedded world", str(error))
        return
    where = f"{root} (of {VARIABLE})" if os.environ.get(VARIABLE) else "in the package"
    if files:
        size = sum(file.stat().st_size for file in files) / 2**20
        yield Finding("good", "embedded world", f"{len(files)} files of weights, {size:.0f} MiB, {where}")
    else:
        yield Finding("bad", "embedded world", f"no weights in {root}: reinstall, or `leaf-diffusion world build`")


def places() -> Iterator[Finding]:
    """Where runs are written, and whether the Hub may be asked."""
    here = Path.cwd()
    try:
        probe(here)
    except OSError as error:
        yield Finding("less", "this folder", f"cannot be written ({error}): give --output FOLDER, or go elsewhere")
    else:
        yield Finding("good", "this folder", f"can be written, {shutil.disk_usage(here).free / 2**30:.1f} GiB free")
    offline = [
        name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("", "0")
    ]
    said = f"{offline[0]} keeps it out: folders and what was downloaded before" if offline else "is asked for names"
    yield Finding("less" if offline else "good", "Hugging Face Hub", said)


SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "packages": packages,
    "imports": imports,
    "devices": devices,
    "files": world,
    "places": places,
}


def examine(words: Sequence[str]) -> int:
    """Print all findings; returns the exit status."""
    parse(Options, words, command="doctor")
    print(f"{PACKAGE} {metadata.version(PACKAGE)}, Python {platform.python_version()}, {platform.platform()}")
    found = [each for section in SECTIONS.values() for each in section()]
    width = max(len(each.what) for each in found)
    for each in found:
        print(f"{MARKS[each.state]}  {each.what:<{width}}  {printable(' '.join(each.said.split()))}")
    bad = [each.what for each in found if each.state == "bad"]
    print(f"cannot work as it is: {', '.join(bad)}" if bad else "all that is needed works")
    return 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("doctor", examine, argv)
