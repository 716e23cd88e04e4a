"""Bad input: each case is a DataError (or ConfigError) that says where, its exit code, and nothing is written."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.compose import compose
from core.errors import ConfigError, DataError
from core.training import assemble

ROOT = Path(__file__).parents[3]
PAIR = {"prompt": "food thai =>", "completion": "love thai? go."}
TURN = {"role": "user", "content": "food thai"}
ANSWER = {"role": "assistant", "content": "love thai"}
ASKED = {"question": "food", "choices": ["thai", "greek"], "answer": 0}


def lines(path, rows, name="rows.jsonl"):
    """Rows as JSON lines; a text stands as it is."""
    file = path / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return f"data.path={file}"


def pairs(n=12, **more):
    return [{"prompt": f"rate low | name BA{'KO' * i} =>", "completion": "crowd says low.", **more} for i in range(n)]


def missing_file(path):
    (path / "train.jsonl").write_text("{}")
    return ["data=jsonl", f"data.path={path}/trian.jsonl"], "no such file", "did you mean `train.jsonl`?"


def empty_file(path):
    return ["data=jsonl", lines(path, [])], "empty file"


def truncated_gzip(path):
    (path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode() * 50)[:-20])
    return ["data=jsonl", f"data.path={path}/a.jsonl.gz"], "broken gzip file"


def not_json_on_a_line(path):
    return ["data=jsonl", lines(path, [PAIR, '{"prompt": "a", ', PAIR])], "rows.jsonl:2", "not JSON"


def not_an_object(path):
    return ["data=jsonl", lines(path, [PAIR, "[1, 2]"])], "rows.jsonl:2", "list [1, 2]"


def unknown_keys(path):
    rows = [{"prompt": "a", "compleiton": "b"}]
    return ["data=jsonl", lines(path, rows)], "keys prompt, compleiton", "did you mean `completion`?"


def mixed_kinds(path):
    rows = [PAIR, {"messages": [TURN, ANSWER]}]
    return ["data=jsonl", lines(path, rows)], "rows.jsonl:2", "a row of messages", "prompt, as the rows before it"


def roles_in_wrong_order(path):
    rows = [{"messages": [TURN, ANSWER]}, {"messages": [ANSWER, TURN]}, {"messages": [TURN, ANSWER, TURN]}]
    return ["data=jsonl", lines(path, rows)], "rows.jsonl:2", "assistant, user", "rows.jsonl:3", "user, assistant, user"


def empty_turn(path):
    rows = [{"messages": [TURN, {"role": "assistant", "content": " "}]}]
    return ["data=jsonl", lines(path, rows)], "messages[1]", "assistant says nothing"


def empty_completion(path):
    rows = [PAIR, {**PAIR, "completion": "  "}]
    return (
        ["data=jsonl", lines(path, rows)],
        "rows.jsonl:2, completion",
        "nothing to learn",
    )


def number_for_a_text(path):
    return ["data=jsonl", lines(path, [{**PAIR, "completion": 5}])], "rows.jsonl:1, completion", "int 5"


def the_same_id_twice(path):
    rows = pairs()
    rows[3]["id"] = rows[7]["id"] = "x"
    return ["data=jsonl", lines(path, rows)], "rows.jsonl:8, id", "`x` again", "first in line 4"


def unknown_split(path):
    return ["data=jsonl", "data.split=given", lines(path, [{**PAIR, "split": "tset"}])], "rows.jsonl:1, split", "'tset'"


def a_group_in_two_given_splits(path):
    rows = pairs()
    for i, row in enumerate(rows):
        row["split"] = ("train", "val", "test")[i % 3]
    rows[0]["group"] = rows[2]["group"] = "g"
    return ["data=jsonl", "data.split=given", lines(path, rows)], "1 group in two splits: 1 (train) = 3 (test)"


def one_prompt_for_all(path):
    return ["data=jsonl", lines(path, [PAIR] * 9)], "leaves val, test empty"


def all_labels_cut_off(path):
    """The prompt alone fills the length; nothing of the answer is left to learn."""
    return (
        ["data=jsonl", "task.max_length=6", "task.too_long=right", lines(path, pairs())],
        "has a loss",
        "task.max_length",
    )


def too_long_and_refused(path):
    overrides = ["data=jsonl", "task.max_length=9", "task.too_long=error", lines(path, pairs())]
    return overrides, "at most 9 (task.max_length)", "task.too_long=left"


def words_of_another_world(path):
    rows = [{"text": f"Completely unheard words number {i}"} for i in range(12)]
    return ["data=jsonl", "task=fine_tuning", lines(path, rows)], "unknown to this tokenizer"


def messages_without_a_template(path):
    rows = [{"messages": [{"role": "user", "content": f"food thai {'KO' * i}"}, ANSWER]} for i in range(12)]
    return ["data=jsonl", lines(path, rows)], "chat template"


def answer_out_of_range(path):
    rows = [ASKED, {**ASKED, "answer": 2}, {**ASKED, "answer": "C"}, {**ASKED, "answer": "indian"}]
    wanted = "rows.jsonl:2, answer", "rows.jsonl:3, answer", "rows.jsonl:4, answer", "0 to 1"
    return ["data=choices", "task=multiple_choice", lines(path, rows)], *wanted


def one_choice(path):
    return [
        "data=choices",
        "task=multiple_choice",
        lines(path, [{**ASKED, "choices": ["thai"]}]),
    ], "rows.jsonl:1, choices"


def instruction_without_choices(path):
    rows = [{"instruction": "what is 2 + 2?", "answer": "4"}]
    return ["data=choices", "task=multiple_choice", lines(path, rows)], "no choices in", "Answer format"


def broken_mr(path):
    rows = [{"mr": "name[Aromi], food", "ref": "Aromi.", "split": "train"}]
    return ["data=e2e", lines(path, rows)], "rows.jsonl:1, mr", "name[The Vaults]"


def folder_without_splits(path):
    (path / "notes.txt").write_text("x")
    return ["data=jsonl", f"data.path={path}"], "a folder with notes.txt", "train.jsonl"


CASES = [
    missing_file, empty_file, truncated_gzip, not_json_on_a_line, not_an_object, unknown_keys, mixed_kinds,
    roles_in_wrong_order, empty_turn, empty_completion, number_for_a_text, the_same_id_twice, unknown_split,
    a_group_in_two_given_splits, one_prompt_for_all, all_labels_cut_off, too_long_and_refused, words_of_another_world,
    messages_without_a_template, answer_out_of_range, one_choice, instruction_without_choices, broken_mr,
    folder_without_splits,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_bad_data_is_a_data_error_that_says_where(case, tmp_path):
    overrides, *words = case(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        assemble.parts(compose("text", overrides))
    assert caught.value.code == 3
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "overrides, where",
    [
        (["data.train=0"], "data.train"),
        (["data=jsonl", "data.path=a", "data.split=identity"], "data.split"),
        (["data=jsonl", "data.path=a", "data.val=0.6", "data.test=0.6"], "data.val, data.test"),
        (["task.max_length=1"], "max_length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_options_are_config_errors(overrides, where):
    with pytest.raises(ConfigError) as caught:
        assemble.parts(compose("text", overrides))
    assert caught.value.code == 2 and where in str(caught.value)


@pytest.mark.parametrize("case", [truncated_gzip, roles_in_wrong_order], ids=lambda c: c.__name__)
def test_the_command_ends_with_3_and_writes_nothing_trained(case, tmp_path):
    (tmp_path / "in").mkdir()
    overrides, word, *_ = case(tmp_path / "in")
    command = [sys.executable, "-m", "domains.text.train", *overrides, f"hydra.run.dir={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180)
    assert done.returncode == 3 and word in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not (tmp_path / "out" / "adapter").exists()
