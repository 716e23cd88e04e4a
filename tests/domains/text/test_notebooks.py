"""The notebooks run from top to bottom."""

import pytest

from tests import notebooks


@pytest.mark.parametrize("path", notebooks.of("text"), ids=lambda p: p.stem)
def test_notebook(path, tmp_path, monkeypatch):
    notebooks.execute(path, tmp_path, monkeypatch)
    assert (tmp_path / "answers.jsonl").read_text().count("\n") >= 2
