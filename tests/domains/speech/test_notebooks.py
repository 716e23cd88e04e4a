"""The notebooks run from top to bottom, in a kernel of their own."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
NOTEBOOKS = sorted(Path(__file__).parents[3].glob("domains/speech/notebooks/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_STEPS", "4")
    monkeypatch.setenv("NOTEBOOK_OUT", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    root = Path(__file__).parents[3]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(root)}}).execute()
    assert (tmp_path / "lora" / "card.html").is_file()
    assert (tmp_path / "spoken" / "line2.wav").stat().st_size > 1000
