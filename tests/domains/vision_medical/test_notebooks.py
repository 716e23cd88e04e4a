"""The notebooks run from top to bottom."""

import pytest

from tests import notebooks


@pytest.mark.parametrize("path", notebooks.of("vision_medical"), ids=lambda p: p.stem)
def test_notebook(path, tmp_path, monkeypatch):
    notebooks.execute(path, tmp_path, monkeypatch, steps=3)
    assert (tmp_path / "masks" / "patient.png").is_file()
