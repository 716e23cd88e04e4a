"""`make demo`, shortened: every field trains its embedded model with LoRA beside its anchors; one report shows all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core import catalog
from tests.browser import needs_browser, pictures_loaded, tab

ROOT = Path(__file__).parents[1]
SHORT = ["trainer.max_steps=3", "run.limit=8", "run.audit=warn", "threads=1"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    for field in catalog.domains():
        words = [f"domains.{field}.train", "-m", "+experiment=demo", f"hydra.sweep.dir={folder / field}", *SHORT]
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{field}: {done.stderr[-2000:]}"
    words = ["-m", "core.cli", "report", str(folder)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(folder / "report.html") in done.stdout.splitlines()[-1]
    return folder


def test_make_demo_runs_every_field():
    fields = re.search(r"^FIELDS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert sorted(fields) == catalog.domains()


@needs_browser
def test_one_report_over_all_fields_opens_offline(demo):
    with tab(width=1280) as page:
        page.goto((demo / "report.html").as_uri())
        text = page.inner_text("body")
        for field in catalog.domains():
            assert f"{field} / " in text
        assert pictures_loaded(page) and "probe" in text and "scratch" in text
        for card in sorted(demo.rglob("card.html")):
            page.goto(card.as_uri())
            assert pictures_loaded(page), card
