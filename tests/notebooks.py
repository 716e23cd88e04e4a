"""A field's notebooks run from top to bottom, in a kernel of their own."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def of(field: str) -> list[Path]:
    return sorted(ROOT.glob(f"domains/{field}/notebooks/*.ipynb"))


def execute(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *, steps: int = 4, timeout: int = 240) -> None:
    """Runs a notebook with so many training steps; its files go to `out`, a run card among them."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("NOTEBOOK_STEPS", str(steps))
    monkeypatch.setenv("NOTEBOOK_OUT", str(out))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert (out / "lora" / "card.html").is_file()
