"""The gallery notebook runs from top to bottom, offline, and is kept with small outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parent.parent / "notebooks" / "gallery.ipynb"


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[object]:
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [out["data"][kind] for cell in cells for out in cell.outputs if kind in out.get("data", {})]


@pytest.mark.slow
def test_gallery_runs_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(PATH, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(PATH.parent)}}
    ).execute()
    assert outputs(notebook, "image/jpeg")
    assert any("<ins" in str(html) for html in outputs(notebook, "text/html"))


def test_gallery_is_kept_executed_and_small() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    assert PATH.stat().st_size < 300_000
    assert outputs(notebook, "image/jpeg"), "run the notebook and save it with its outputs"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
