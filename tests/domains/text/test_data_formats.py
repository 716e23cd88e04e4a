"""What the readers understand: every kind of row, files, folders, E2E, multiple choice; groups stay together."""

import gzip
import json

import pytest

from core import catalog, config, paths
from core.compose import compose
from core.errors import DataError
from core.training.assemble import make
from domains.text.data.choices import Choices, index, offers
from domains.text.data.e2e import E2E, parse
from domains.text.data.jsonl import Jsonl, of_file

REAL = {
    "e2e": (3689, 54, 52),  # 3,689 sentences; 54 and 52 MRs
    "gsm8k": (7090, 383, 666),
    "boolq": (6599, 943, 1885),
    "arc_easy": (1576, 225, 450),
}
PAIR = {"prompt": "a", "completion": "b"}
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def written(path, rows, name="rows.jsonl"):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path / name)


@pytest.mark.parametrize(
    "row, content",
    [
        (PAIR, PAIR),
        ({"messages": TURNS}, {"messages": TURNS}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {"messages": TURNS}),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, {"messages": TURNS}),
        ({"instruction": "a", "input": "", "output": "b"}, PAIR),
        ({"instruction": "a", "input": "x", "output": "b"}, {"prompt": "a\nx", "completion": "b"}),
        ({"text": "a b", "source": "left alone"}, {"text": "a b"}),
    ],
)
def test_a_kind_is_told_by_its_keys(row, content, tmp_path):
    _, (found,) = Jsonl(written(tmp_path, [row])).read()
    assert {key: found[key] for key in ("prompt", "completion", "messages", "text") if key in found} == content


def test_own_keys_slots_references_and_a_byte_order_mark(tmp_path):
    row = {
        "question": "q\u2028r",
        "answer": "ä",
        "slots": {"food": "thai"},
        "references": ["ä", "b"],
        "id": 7,
        "group": 3,
    }
    file = tmp_path / "rows.json.gz"
    file.write_bytes(gzip.compress(("\ufeff" + json.dumps([row], ensure_ascii=False)).encode()))
    _, (found,) = Jsonl(str(file), prompt="question", completion="answer").read()
    assert (found["prompt"], found["completion"], found["id"], found["group"]) == ("q\u2028r", "ä", "7", "3")
    assert found["slots"] == {"food": "thai"} and found["references"] == ["ä", "b"]
    one_line = written(tmp_path, [row])  # a line break of Unicode inside a text is not the end of a row
    assert Jsonl(one_line, prompt="question", completion="answer").read()[1][0]["prompt"] == "q\u2028r"


def test_a_folder_has_a_file_per_split(tmp_path):
    for split, n in (("train", 4), ("dev", 2), ("test", 3)):
        written(tmp_path, [{"prompt": f"{split} {i}", "completion": "b"} for i in range(n)], f"{split}.jsonl")
    data = Jsonl(str(tmp_path), split="given")
    data.setup()
    assert [len(data.items(split)) for split in ("train", "val", "test")] == [4, 2, 3]
    assert data.items("val")[1]["id"] == "val-2" and "line" not in data.items("val")[0]


def test_prompts_that_are_equal_stay_together(tmp_path):
    rows = [{"prompt": f"p{i % 10}", "completion": f"c{i}"} for i in range(60)]
    data = Jsonl(written(tmp_path, rows), seed=3)
    data.setup()
    groups = [{item["group"] for item in data.items(split)} for split in ("train", "val", "test")]
    assert sum(map(len, groups)) == 10 and not set.intersection(*groups) and all(groups)
    small = Jsonl(written(tmp_path, rows), seed=3, limit={"train": 12})
    small.setup()
    assert len(small.items("train")) <= 12


def test_leaks_can_be_left_out_of_train(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": "c", "split": ("train", "val", "test")[i % 3]} for i in range(9)]
    rows.append({"prompt": "p2", "completion": "d", "split": "train"})
    path = written(tmp_path, rows)
    kept, dropped = Jsonl(path, split="given"), Jsonl(path, split="given", drop_leaks=True)
    for data in (kept, dropped):
        data.setup()
    assert [len(d.items("train")) for d in (kept, dropped)] == [4, 3]
    assert kept.audit().errors and not dropped.audit().errors


def test_mrs_are_parsed_to_their_end():
    assert parse("name[The Vaults], customer rating[1 out of 5], priceRange[£20-25]") == {
        "name": "The Vaults", "customer rating": "1 out of 5", "priceRange": "£20-25"}  # fmt: skip
    assert parse("name[The Vaults], food") is None and parse("") is None


def test_references_of_an_mr_are_gathered_for_val_and_test(tmp_path):
    mrs = [("name[A]", "train"), ("name[A]", "train"), ("name[B]", "val"), ("name[C]", "test"), ("name[C]", "test")]
    rows = [{"mr": mr, "ref": f"text {i}", "split": split} for i, (mr, split) in enumerate(mrs)]
    data = E2E(written(tmp_path, rows))
    data.setup()
    assert [len(data.items(split)) for split in ("train", "val", "test")] == [2, 1, 1]
    (item,) = data.items("test")
    assert (
        item["references"] == ["text 3", "text 4"] and item["slots"] == {"name": "C"} and item["prompt"] == "name[C] =>"
    )


def test_e2e_reads_the_csv_of_the_challenge(tmp_path):
    text = "mr,ref\n" + "".join(f'"name[N{i}], food[thai]","N{i}, with commas"\n' for i in range(12))
    (tmp_path / "e2e.csv").write_text(text)
    data = E2E(str(tmp_path / "e2e.csv"), split="random")
    data.setup()
    assert all(data.items(split) for split in ("train", "val", "test"))
    assert data.items("train")[0]["completion"].endswith(", with commas")


def test_answers_are_indices_letters_or_choices():
    choices = ["thai", "greek", "7"]
    assert [index(a, choices) for a in (0, "1", "B", "b", "greek", "7")] == [0, 1, 1, 1, 1, 2]
    assert [index(a, choices) for a in (3, -1, "D", "fish", "")] == [None] * 5
    assert index(True, ["true", "false"]) == 0


def test_llm_adapters_questions_offer_their_choices():
    assert offers("is it?\n\nAnswer format: true/false") == ["true", "false"]
    assert offers("Which? Answer Choices: (A) 1 (B) 2 (C) 3") == ["A", "B", "C"]
    assert offers("how many?") is None
    data = Choices("x")
    faults = type("None_", (), {"add": lambda *a: pytest.fail(str(a))})()
    row = data._row(faults, 1, {"instruction": "is it?\n\nAnswer format: true/false", "input": "", "answer": "false"})
    assert (
        row["choices"] == ["true", "false"] and row["answer"] == 1 and row["prompt"].endswith("the correct answer is")
    )


@pytest.mark.parametrize("name", catalog.groups("text")["data"])
def test_a_preset_fits_its_constructor(name):
    def problems(*overrides):
        return config.find(config.plain(compose("text", overrides)))

    asked = [problem.where for problem in problems(f"data={name}")]
    assert set(asked) <= {"data.path"}
    assert (name in REAL or name == "twin") == (asked == [])
    assert problems(f"data={name}", *(f"{key}=a.jsonl" for key in asked)) == []


@pytest.mark.real
@pytest.mark.skipif(paths.data_dir() is None, reason="no folder of real data (PEFT_ATLAS_DATA)")
@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_their_rows(name):
    data = make(compose("text", [f"data={name}"]), "data", 0)
    data.setup()
    assert tuple(len(data.items(split)) for split in ("train", "val", "test")) == REAL[name]
    assert len(data.general_items()) == (200 if name == "e2e" else 0)


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_without_its_folder_says_what_to_set(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_ATLAS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="export PEFT_ATLAS_DATA="):
        make(compose("text", [f"data={name}"]), "data", 0).setup()


def test_general_texts_of_any_kind_are_read(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(500)]
    assert len(of_file(written(tmp_path, rows), 50)) == 50
    assert of_file(written(tmp_path, [{"text": "t"}]))[0]["text"] == "t"
