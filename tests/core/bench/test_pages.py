"""Run card and report: they say what the numbers say, ask nothing of the network, and a browser agrees."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from core.bench import plots, result
from core.bench.card import write_card
from core.bench.report import report
from core.bench.result import MetricRecord
from core.errors import DataError
from tests.browser import needs_browser, pictures_loaded, tab
from tests.core.bench import synthetic

VOID = {"meta", "img", "br", "input", "hr", "link"}
XMLNS = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


class Page(HTMLParser):
    """Open tags, text, links and ids of a page; `faults` lists tags that do not close in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.stack, self.faults, self.links, self.ids, self.words = path, [], [], [], [], []
        self.feed(path.read_text())
        self.faults += self.stack
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("href", "src", "xlink:href", "action", "srcset")]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag == "script":
            self.faults.append("script")

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(f"/{tag}")

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)


def check(path: Path) -> Page:
    """Sound HTML, self-contained, below 300 KB; every link leads to a file that is there."""
    page, source = Page(path), path.read_text()
    assert page.faults == [] and len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"https?://[^\s\"'<>)]+", source)) <= XMLNS
    assert not re.search(r"url\((?!#)|@import|javascript:|\bon\w+=", source)
    assert len(source.encode()) < 300_000
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith(("data:image/", "data:audio/")):
            assert (path.parent / link).is_file(), link
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    runs = synthetic.sweep(folder, seeds=(0, 1), methods=("none", "full", "scratch", "lora", "bitfit", "pfeiffer"))
    synthetic.add_files(folder / "lora_s0")
    for run in runs:
        write_card(run)
    return folder


# ---------------------------------------------------------------------- card


def test_card_says_what_the_numbers_say(folder):
    page = check(folder / "lora_s0" / "card.html")
    record = result.read(folder / "lora_s0")
    line = record.headline()
    assert f"lora reaches q3 {line.value:.3f} [{line.ci95[0]:.3f}, {line.ci95[1]:.3f}]: better than probe" in page.text
    for fact in ("16,384", "2.01 %", "118 MiB", "8 of 8", "relative error 3.1e-07", "one_hot_window", "62 %",
                 "read in its own forward", "4, chosen on", record.command, "attn.q", "9,712"):  # fmt: skip
        assert fact in page.text, fact
    assert "synthetic data" not in page.text


def test_the_verdict_turns_with_the_numbers(tmp_path):
    """The same run beside a probe that is far above it reads `worse`."""
    for method, shift in (("none", 0.2), ("lora", 0.0)):
        rows = [{**row, "score": row["score"] * 0.5 + shift} for row in synthetic.rows("lora", 0)]
        score = synthetic.metric(rows)
        synthetic.write_run(tmp_path / method, method, metrics={"test": {"q3": score}},
                            primary={"name": "q3", "split": "test", "value": score.value})  # fmt: skip
        (tmp_path / method / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ": worse than probe" in check(write_card(tmp_path / "lora")).text


def test_card_compares_only_with_the_same_question(folder, tmp_path):
    synthetic.write_run(tmp_path / "lora")
    synthetic.write_run(tmp_path / "other split", "none", split_hash="another")
    synthetic.write_run(tmp_path / "other base", "none", backbone="another")
    synthetic.write_run(tmp_path / "failed", "none", status="failed")
    page = check(write_card(tmp_path / "lora"))
    assert "than probe" not in page.text and "Not here yet: probe, full" in page.text


def test_twin_data_is_named_in_the_title(tmp_path):
    synthetic.write_run(tmp_path / "a", data_kind="twin", data="twin")
    source = write_card(tmp_path / "a").read_text()
    assert re.search(r"<title>[^<]*synthetic[^<]*</title>", source) and "synthetic data</span>" in source
    report(tmp_path)
    assert re.search(r"<title>[^<]*synthetic[^<]*</title>", (tmp_path / "report.html").read_text())


def test_failed_card_shows_the_error(tmp_path):
    error = {
        "class": "DataError",
        "code": 3,
        "where": "a.csv:7",
        "got": "<nan> & more",
        "allowed": "a number",
        "fix": "",
    }
    synthetic.write_run(tmp_path / "a", status="failed", error=error, metrics={}, primary=None)
    page = check(write_card(tmp_path / "a"))
    assert "failed after 200 steps" in page.text
    assert all(word in page.text for word in ("DataError, exit code 3", "a.csv:7", "<nan> & more", "a number"))


def test_bare_records_make_a_page(tmp_path):
    """Nothing but the required fields, in every status: no zero is shown for what is unknown."""
    for status in ("running", "done", "failed", "interrupted"):
        result.write(tmp_path / status, result.Record(run_id="a", status=status))
        page = check(write_card(tmp_path / status))
        assert status in page.text and not re.search(r"\b0\b", page.text)


def test_what_users_write_is_text_not_html(tmp_path):
    evil = "<script>alert(1)</script>"
    synthetic.write_run(tmp_path / "a", data=evil, command=evil, options={"note": evil})
    synthetic.add_files(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text(evil)
    (tmp_path / "a" / "audit.json").write_text(
        json.dumps({"facts": {evil: evil}, "warnings": [evil], "errors": [evil]})
    )
    plots_folder = tmp_path / "a" / "plots"
    (plots_folder / "picture.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{evil}</svg>')
    assert check(write_card(tmp_path / "a")).text.count(evil) >= 6  # an SVG inside <img> runs no script


def test_large_pictures_are_linked_not_embedded(tmp_path):
    synthetic.write_run(tmp_path / "a")
    synthetic.add_files(tmp_path / "a")
    (tmp_path / "a" / "plots" / "huge.png").write_bytes(b"x" * 400_000)
    page = check(write_card(tmp_path / "a"))
    assert "plots/huge.png" in page.links and "strip worst protein" in page.text


def test_broken_files_are_named(tmp_path):
    synthetic.write_run(tmp_path / "a")
    for name, text in (("audit.json", "{"), ("baselines.json", '{"m": 3}'), ("metrics.csv", "step,split\n1,train\n")):
        (tmp_path / "a" / name).write_text(text)
        with pytest.raises(DataError, match=name):
            write_card(tmp_path / "a")
        (tmp_path / "a" / name).unlink()


def test_pictures_are_reproducible_and_small(tmp_path):
    synthetic.write_run(tmp_path / "a")
    synthetic.add_files(tmp_path / "a")
    first = [plots.training_curve(tmp_path / "a" / "metrics.csv", tmp_path / f"{i}.svg", score="q3") for i in "ab"]
    assert first[0].read_bytes() == first[1].read_bytes() and first[0].stat().st_size < 30_000
    source = first[0].read_text()
    assert "best 0." in source and "202" not in re.sub(r"[\d.]*\d{2}\.\d+", "", source)  # text stays text; no date


# ---------------------------------------------------------------------- report


def test_report_answers_first_and_counts_every_cell(folder):
    page = check(report(folder))
    assert page.text.index("lora leads with q3") < page.text.index("seeds")
    assert "better than probe" in page.text and "0.532x its saved bytes" in page.text
    with open(folder / "report.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["label"] for row in table] == [
        "majority", "one_hot_window", "probe", "full", "scratch", "lora", "pfeiffer", "bitfit"
    ]  # fmt: skip
    lora = next(row for row in table if row["label"] == "lora")
    values = [result.read(folder / f"lora_s{seed}").primary.value for seed in (0, 1)]
    assert float(lora["value"]) == pytest.approx(sum(values) / 2) and lora["seeds"] == "0 1"
    assert float(lora["low"]) < float(lora["value"]) < float(lora["high"]) and lora["vs_probe_verdict"] == "better"
    assert float(lora["gap_closed"]) == pytest.approx(0.9, abs=0.06) and lora["runs"] == "lora_s0 lora_s1"
    markdown = (folder / "report.md").read_text()
    assert all(f"| {row['label'].replace('_', ' ')} | {float(row['value']):.3f} |" in markdown for row in table)


def test_trials_choose_but_are_not_scores(folder):
    page = check(report(folder))
    assert "edge of those tried, so the score may be too low: full" in page.text  # its best lr is the smallest tried
    with open(folder / "report.csv", newline="") as file:
        assert not any("trials/" in row["runs"] for row in csv.DictReader(file))


def test_failed_and_missing_cells_keep_their_place(tmp_path):
    synthetic.sweep(tmp_path, seeds=(0, 2), methods=("none", "ia3"))
    synthetic.write_run(tmp_path / "lora_s0", "lora", 0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    text = check(report(tmp_path)).text
    assert "TrainingError (code 5): step 41: loss nan" in text and "unreadable result.json" in text
    assert re.search(r"lora 2 protein .* not run", text) and "3 failed or missing" in text
    assert "One seed only: lora, ia3" in text and "Anchor missing: full" in text


def test_seeds_that_draw_their_own_training_rows_are_one_question(tmp_path):
    """Twin data: the split differs by seed, the test rows do not. Another split at the same seed stays apart."""
    for method in ("none", "lora"):
        for seed in (0, 1):
            synthetic.write_run(tmp_path / f"{method}{seed}", method, seed, split_hash=f"split of seed {seed}")
    synthetic.write_run(tmp_path / "other", "lora", 1, split_hash="fewer labels")
    assert "2 questions" in check(report(tmp_path)).text
    with open(tmp_path / "report.csv", newline="") as file:
        assert sorted(row["seeds"] for row in csv.DictReader(file)) == ["0 1", "0 1", "1"]


def test_broken_predictions_leave_the_score_and_take_the_verdict(tmp_path):
    for method in ("none", "lora"):
        synthetic.write_run(tmp_path / method, method)
    (tmp_path / "lora" / "predictions.jsonl").write_text("{")
    text = check(report(tmp_path)).text
    assert "predictions.jsonl:1" in text and "lora leads with q3 0.635" in text and "better than probe" not in text


def test_no_verdict_without_a_test(tmp_path):
    """Five groups can never reach p < 0.05: the word is `untested`, however large the difference."""
    for method in ("none", "lora"):
        synthetic.write_run(tmp_path / method, method, items=10)
    report(tmp_path)
    with open(tmp_path / "report.csv", newline="") as file:
        lora = next(row for row in csv.DictReader(file) if row["label"] == "lora")
    assert lora["vs_probe_verdict"] == "untested" and float(lora["vs_probe_difference"]) > 0.05


def test_lower_is_better_turns_everything(tmp_path):
    for method, error in (("none", 0.9), ("full", 0.4), ("lora", 0.5), ("bitfit", 0.7)):
        rows = [{**row, "score": error + row["score"] / 10} for row in synthetic.rows(method, 0)]
        line = MetricRecord(value=sum(row["score"] for row in rows) / len(rows), higher_is_better=False, n=len(rows))
        synthetic.write_run(tmp_path / method, method, metrics={"test": {"mae": line}},
                            primary={"name": "mae", "split": "test", "value": line.value})  # fmt: skip
        (tmp_path / method / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = check(report(tmp_path)).text
    assert "lora leads with mae" in text and "better than probe, worse than full" in text
    assert "better than probe" in check(write_card(tmp_path / "bitfit")).text


def test_a_question_without_a_gap_says_so(tmp_path, monkeypatch):
    """Full fine-tuning no better than the probe, scratch no worse than full: the reader must not overlook it."""
    monkeypatch.setattr(synthetic, "METHODS", {m: (0.0, *synthetic.METHODS[m][1:]) for m in synthetic.METHODS})
    for method in ("none", "full", "scratch", "lora"):
        synthetic.write_run(tmp_path / method, method)
    text = check(report(tmp_path)).text
    assert "Full fine-tuning is tied with the probe here: there is no gap for an adapter to close." in text
    assert "Scratch is tied with full: no gain from pretraining seen." in text


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no result\.json"):
        report(tmp_path)


# ---------------------------------------------------------------------- browser


@needs_browser
def test_a_browser_opens_card_and_report_offline(folder):
    pages = [report(folder), folder / "lora_s0" / "card.html"]
    with tab() as page:
        for path in pages:
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390  # on a phone only tables scroll
            assert pictures_loaded(page)
        page.goto(pages[0].as_uri())
        assert page.locator(".tabs figure:visible").count() == 1
        page.get_by_text("time per step", exact=True).first.click()
        assert "time per step, ms" in page.locator(".tabs figure:visible").inner_text()
        page.locator(".tabs figure:visible svg a").first.click()
        assert page.url.endswith("card.html")


@needs_browser
def test_a_card_plays_sound(folder, tmp_path):
    """A second of silence beside the pictures, as a player that knows its length."""
    run = tmp_path / "lora"
    synthetic.write_run(run)
    (run / "plots").mkdir(exist_ok=True)
    header = b"RIFF" + (36 + 16000).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (1).to_bytes(2, "little") * 2 + (8000).to_bytes(4, "little") + (16000).to_bytes(4, "little")
    header += (2).to_bytes(2, "little") + (16).to_bytes(2, "little") + b"data" + (16000).to_bytes(4, "little")
    (run / "plots" / "after_training.wav").write_bytes(header + bytes(16000))
    with tab() as page:
        page.goto(write_card(run).as_uri())
        player = page.locator("audio")
        assert player.count() == 1 and "after training" in page.locator("figure", has=player).inner_text()
        page.evaluate("document.querySelector('audio').load()")
        page.wait_for_function("document.querySelector('audio').readyState >= 1")
        assert page.evaluate("document.querySelector('audio').duration") == 1
