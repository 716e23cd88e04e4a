"""The notebooks run from top to bottom."""

import pytest

from tests import notebooks


@pytest.mark.parametrize("path", notebooks.of("speech"), ids=lambda p: p.stem)
def test_notebook(path, tmp_path, monkeypatch):
    notebooks.execute(path, tmp_path, monkeypatch, timeout=600)
    assert (tmp_path / "spoken" / "line2.wav").stat().st_size > 1000
