"""A module imports only from layers below its own, packages of one layer do not know each other, and no package holds a
circle of files."""

import ast
import shutil
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"_compat", "_help", "_spelling"},
    {"command_line"},
    {"text", "images", "weights"},
    {"tokens", "metrics", "runs"},
    {"encoders"},
    {"scoring"},
    {"attacks"},
    {"finetune", "diffusion", "reports"},
    {"world"},
    {"evaluation", "pipelines"},
    {"eval", "cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
TOP = {"eval", "cli"}
"""Scripts and commands know each other: a command calls a script, a script has its options read."""
ENTRY = {"__init__", "__main__"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file of every module and package."""
    found = {}
    for base, name in (
        ("leaf_diffusion", ""),
        ("pipelines", "pipelines"),
        ("eval", "eval"),
        ("benchmarks", "benchmarks"),
    ):
        for file in sorted((root / base).rglob("*.py")):
            parts = [*name.split("."), *file.relative_to(root / base).with_suffix("").parts]
            found[".".join(part for part in parts if part and part != "__init__") or "__init__"] = file
    return found


MODULES = modules()


def imported(file: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names that a file imports from the library, without "leaf_diffusion."; `at_run_time` leaves out those that
    stand inside of functions or are for the type checker alone."""
    return _imported(file, file.read_text(), at_run_time)


@lru_cache(maxsize=4000)
def _imported(file: Path, source: str, at_run_time: bool) -> set[str]:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree)) if not at_run_time else [n for n in tree.body if not isinstance(n, ast.If)]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = whole.removeprefix("leaf_diffusion.") in MODULES
                names.add(whole if known else node.module or "")
    wrong = names & {"pipelines", "eval"}
    assert not wrong, f"{file}: import leaf_diffusion.{', '.join(wrong)}, or each class exists twice"
    if file.parent.name == "benchmarks":
        names |= {f"leaf_diffusion.benchmarks.{name}" for name in names if f"benchmarks.{name}" in MODULES}
    return {name.removeprefix("leaf_diffusion.") for name in names if name.startswith("leaf_diffusion.")}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle (Tarjan's strongly connected components of two and more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def package_of(name: str) -> str:
    return name.partition(".")[0]


def test_every_package_has_its_layer() -> None:
    assert {package_of(name) for name in MODULES} - ENTRY <= {*RANK, "benchmarks"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if package_of(name) in RANK))
def test_imports_point_down(name: str) -> None:
    mine = package_of(name)
    for other in imported(MODULES[name]):
        theirs = package_of(other)
        if theirs in RANK and theirs != mine:
            assert RANK[theirs] < RANK[mine] or {theirs, mine} == TOP, f"{MODULES[name]} imports {other}"


def inside(known: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of its own package that it imports."""
    edges = {
        name: {o for o in imported(file) if o in known and package_of(o) == package_of(name)} - {name}
        for name, file in known.items()
    }
    # a package's __init__ gathers its files: what they import of each other stands in the files
    return {name: {o for o in others if known[o].name != "__init__.py"} for name, others in edges.items()}


def test_no_circle_of_files_inside_a_package() -> None:
    assert not circles(inside(MODULES))


def pair(package: str) -> list[str]:
    """Two modules of a package; neither imports the other, where there are such."""
    edges = inside(MODULES)
    mine = sorted(n for n, file in MODULES.items() if package_of(n) == package and file.name != "__init__.py")
    return next(([a, b] for a in mine for b in mine if a < b and a not in edges[b] and b not in edges[a]), mine[:2])


PACKAGES = [name for name, n in Counter(map(package_of, MODULES)).items() if n > 1 and name not in ENTRY]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("copied")
    for folder in ("leaf_diffusion", "pipelines", "eval", "benchmarks"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=lambda _, names: [n for n in names if is_data(n)])
    return tree


@pytest.mark.parametrize("package", PACKAGES)
def test_a_planted_circle_is_found(package: str, copied: Path) -> None:
    one, other = pair(package)
    known = modules(copied)
    before = {name: known[name].read_text() for name in (one, other)}
    for here, there in ((one, other), (other, one)):
        start = "" if package == "benchmarks" else "leaf_diffusion."
        where, _, what = f"{start}{there}".rpartition(".")
        line = f"import {what}" if package == "benchmarks" else f"from {where} import {what}"
        known[here].write_text(f"{before[here]}\n\ndef late() -> None:\n    {line}\n")
    assert any({one, other} <= {*group} for group in circles(inside(known)))
    for name, text in before.items():
        known[name].write_text(text)


def test_the_scripts_are_of_one_screen() -> None:
    scripts = [file for file in (ROOT / "eval").glob("*.py") if file.name != "__init__.py"]
    assert len(scripts) == 12
    assert max(len(file.read_text().splitlines()) for file in scripts) <= 110


def is_data(name: str) -> bool:
    return ("." in name and not name.endswith(".py")) or name == "__pycache__"


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
