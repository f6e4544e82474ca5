"""A module imports only from layers below its own; packages of one layer do not know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"_compat", "_help"},
    {"command_line"},
    {"text"},
    {"encoders", "metrics", "runs"},
    {"scoring"},
    {"attacks"},
    {"finetune", "reports"},
    {"world"},
    {"pipelines"},
    {"eval", "cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> list[tuple[str, Path]]:
    """(package of the layer table, file) of every module."""
    found = []
    for file in sorted((ROOT / "leaf_diffusion").rglob("*.py")):
        first = file.relative_to(ROOT / "leaf_diffusion").parts[0].removesuffix(".py")
        if first != "__init__":
            found.append((first, file))
    return found + [(name, file) for name in ("pipelines", "eval") for file in sorted((ROOT / name).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            names.add(node.module or "")
            if node.module == "leaf_diffusion":
                names.update(f"leaf_diffusion.{alias.name}" for alias in node.names)
    return names


def test_every_package_has_its_layer() -> None:
    assert {package for package, _ in modules()} <= set(RANK)


@pytest.mark.parametrize(("package", "file"), modules(), ids=lambda value: getattr(value, "stem", value))
def test_imports_point_down(package: str, file: Path) -> None:
    for name in imported(file):
        parts = name.split(".")
        assert parts[0] not in ("pipelines", "eval"), (
            f"{file}: import leaf_diffusion.{name}, or each class exists twice"
        )
        if parts[0] == "leaf_diffusion" and len(parts) > 1 and parts[1] in RANK and parts[1] != package:
            same_commands = {parts[1], package} == {"cli", "eval"}
            assert RANK[parts[1]] < RANK[package] or same_commands, f"{file} ({package}) imports {name}"
