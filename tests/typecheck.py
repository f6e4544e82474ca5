"""mypy over the library, the scripts, the pipelines and the tests, under the names that they are installed with.

`eval/` and `pipelines/` become `leaf_diffusion.eval` and `leaf_diffusion.pipelines` by a mapping of setuptools that mypy does
not know: it would take all that comes from there for `Any`. So it reads a tree of links. `python tests/typecheck.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stage(tree: Path) -> Path:
    """A tree of links at `tree` in which every package has the name that it is imported by."""
    shutil.rmtree(tree, ignore_errors=True)
    package = tree / "leaf_diffusion"
    package.mkdir(parents=True)
    for path in [*(ROOT / "leaf_diffusion").iterdir(), ROOT / "eval", ROOT / "pipelines"]:
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    (tree / "tests").symlink_to(ROOT / "tests")
    return tree


def mypy(tree: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    """Run mypy on packages of a staged tree, with the project's settings."""
    settings, cache = ROOT / "pyproject.toml", ROOT / ".mypy_cache"
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(cache)]
    command += [word for name in packages for word in ("-p", name)]
    # nothing but the tree: an installed leaf_diffusion would be found first
    env = {**os.environ, "MYPYPATH": ""}
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)


def main() -> int:
    done = mypy(stage(ROOT / "build" / "typed"), "leaf_diffusion", "tests")
    print(done.stdout + done.stderr, end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
