"""The type checker sees through the names that setuptools maps: a wrong call in a copy is found."""

from pathlib import Path

import pytest

from tests.typecheck import ROOT, mypy, stage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "wrong"),
    [
        ("eval", "from leaf_diffusion.eval.textfare import main\n\nmain(argv=1.5)\n"),
        (
            "pipelines",
            "from leaf_diffusion.pipelines import LeafFluxPipeline as Flux\n\nFlux.from_pretrained('folder', adapter=1.5)\n",
        ),
    ],
)
def test_a_wrong_call_is_seen(folder: str, wrong: str, tmp_path: Path) -> None:
    tree = stage(tmp_path / "typed")
    link = tree / "leaf_diffusion" / folder
    link.unlink()
    link.mkdir()
    for file in (ROOT / folder).glob("*.py"):
        (link / file.name).symlink_to(file)
    (link / "wrong.py").write_text(f'"""A call that does not fit."""\n\n{wrong}')
    found = mypy(tree, f"leaf_diffusion.{folder}")
    assert found.returncode == 1
    assert f"{folder}/wrong.py:5: error" in found.stdout.replace("\\", "/")
