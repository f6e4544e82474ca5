"""What is installed is what is on disk, in the versions that were tested."""

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import leaf_diffusion

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_list_is_what_is_on_disk() -> None:
    on_disk = {"leaf_diffusion", "leaf_diffusion.pipelines", "leaf_diffusion.eval"}
    inits = (ROOT / "leaf_diffusion").rglob("__init__.py")
    on_disk |= {".".join(init.parent.relative_to(ROOT).parts) for init in inits}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "leaf_diffusion").rglob("*.py")}
    assert folders <= on_disk


def test_constraints_satisfy_the_ranges() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[canonicalize_name(name)] = version
    extras = PROJECT["project"]["optional-dependencies"]
    for text in PROJECT["project"]["dependencies"] + extras["dev"] + extras["lora"]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if not name.startswith("types-"):
            assert name in pinned, f"{name} has no tested version in constraints.txt"
            assert requirement.specifier.contains(pinned[name]), text


def test_version_is_said_once() -> None:
    assert leaf_diffusion.__version__ == PROJECT["project"]["version"]


def test_importing_the_package_is_light() -> None:
    code = "import sys, leaf_diffusion; sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    assert all(getattr(leaf_diffusion, name) for name in leaf_diffusion.__all__)
