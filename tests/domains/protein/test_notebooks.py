"""The notebooks run from top to bottom."""

import pytest

from tests import notebooks


@pytest.mark.parametrize("path", notebooks.of("protein"), ids=lambda p: p.stem)
def test_notebook(path, tmp_path, monkeypatch):
    notebooks.execute(path, tmp_path, monkeypatch)
    assert (tmp_path / "new.csv").read_text().count("\n") >= 3
