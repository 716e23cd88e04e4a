"""Every command of the documentation is one that works.

Always: each training command composes and passes the check, each `atlas` command parses, each link leads somewhere.
`make docs-check` (marker docs): the quick ones are run, in a folder with small files of the names that the pages use.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from core import cli
from core.compose import compose
from core.config import check

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAIN = re.compile(r"python -m domains\.(\w+)\.train( |$)")
# Minutes to hours: composed here, run by hand.
LONG = ("sweep=compare", "+experiment=", "-m ", "pretrain", "benchmarks")


def commands() -> list[tuple[str, str]]:
    """(page, command) of every inline or fenced command; a table row that starts with `data=` is a training command of
    the page's own field."""
    found = []
    for page in PAGES:
        text = page.read_text()
        fenced = "\n".join(re.findall(r"```(?:bash)?\n(.*?)```", text, re.S))
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for line in [*fenced.splitlines(), *inline]:
            line = line.split("  #")[0].strip().removeprefix(".venv/bin/")
            if line.startswith("data=") and " " in line:
                line = f"python -m domains.{page.stem}.train {line}"
            if (TRAIN.match(line) and not re.search(r"domains\.(FIELD|<)", line)) or line.startswith("atlas "):
                found.append((page.name, line))
    return sorted(set(found))


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """Small files under the names that the pages use."""
    letters = "ACDEFGHIKLMNPQRSTVWY"
    rows = [letters[i % 20 :] + letters[: i % 20] + letters[(i * 7) % 20 :] * (1 + i % 3) for i in range(60)]
    header = "sequence,target,fitness,localisation,set,validation"
    lines = []
    for i, s in enumerate(rows):
        lines.append(f"{s},{i * 0.1},{i * 0.1},{'ab'[i % 2]},{'train' if i < 45 else 'test'},{i % 9 == 0}")
    for name in ("assay.csv", "proteins.csv", "two_vs_rest.csv"):
        (tmp_path / name).write_text("\n".join([header, *lines]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_have_commands():
    assert len(commands()) > 15


@pytest.mark.parametrize("page, command", commands(), ids=lambda x: x[:70])
def test_command_is_sound(page, command):
    words = shlex.split(command)
    if words[0] == "atlas":
        cli._arguments(words[1:])
        return
    overrides = [w for w in words[3:] if w != "-m" and not w.startswith("--")]
    field = TRAIN.match(command)[1]
    check(compose(field, [w for w in overrides if "," not in w.split("=")[-1] or "[" in w]))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.docs
@pytest.mark.parametrize("page, command", commands(), ids=lambda x: x[:70])
def test_command_runs(page, command, own_files):
    if any(mark in command for mark in (*LONG, "RUN", "DIR", "outputs/")):
        pytest.skip("long, or on a finished run: tests/core/test_cli.py and the experiments run it")
    missing = [w for w in re.findall(r"=(\w+\.\w+)", command) if not (own_files / w).exists()]
    missing = [w for w in missing if w.endswith((".csv", ".fasta"))]
    missing += [w for w in re.findall(r"data\.path=([\w./]+)", command) if not (own_files / w).exists()]
    if missing:
        pytest.skip(f"{missing} is the reader's own; tests/domains/*/test_data_*.py read such files")
    words = shlex.split(command)
    if words[0] == "atlas":
        words = [sys.executable, "-m", "core.cli", *words[1:]]
    else:
        words = [sys.executable, *words[1:], "trainer.max_steps=3", "run.limit=12", "run.audit=warn"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
