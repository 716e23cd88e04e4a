"""From a run on the twin to answers: the command line's own path, read, written, refused."""

import json

import pytest

from core import weights
from core.errors import DataError
from domains.text import predict
from domains.text.backbones import source
from domains.text.backbones.causal_lm import CausalLM
from domains.text.data.rendering import Rendering
from domains.text.generation import write
from domains.text.tasks.reading import prompts as prompts_of
from tests.domains.text.families import folder

ROWS = [
    {"prompt": "a b =>", "completion": "b a", "split": split, "id": f"{split}{i}", "group": f"{split}{i}"}
    for split in ("train", "val", "test")
    for i in range(4)
]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_reads_prompts_messages_and_lines(tmp_path):
    turns = [{"role": "user", "content": "say"}]
    read = predict.read(lines(tmp_path / "a.jsonl", [{"prompt": "x"}, {"id": "m", "messages": turns}, {"text": "t"}]))
    assert read == [
        {"id": "1", "group": "1", "prompt": "x"},
        {"id": "m", "group": "m", "messages": turns},
        {"id": "3", "group": "3", "text": "t"},
    ]
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert [item["prompt"] for item in predict.read(tmp_path / "b.txt")] == ["one", "two"]
    named = predict.read(lines(tmp_path / "c.jsonl", [{"question": "x"}]), {"prompt": "question"})
    assert named[0]["prompt"] == "x"


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not JSON"), ('{"a": 1}', "prompt, messages or text"), ('{"prompt": "x", "id": 1}\n' * 2, "each id once")],
)
def test_refuses_what_it_cannot_read(tmp_path, text, says):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        predict.read(tmp_path / "bad.jsonl")
    assert caught.value.code == 3


@pytest.mark.parametrize("adapter, quantise", [("lora", "none"), ("lora", "nf4"), ("loftq", "loftq")])
def test_a_finished_run_answers_new_prompts(tmp_path, adapter, quantise):
    """train -> adapter -> predict, through configs alone; a batch answers what each prompt gets alone."""
    from core.compose import compose
    from core.ship import merge
    from core.ship import predict as ship
    from core.training.run import run

    base = folder("llama", tmp_path / "base")
    data = lines(tmp_path / "rows.jsonl", ROWS)
    overrides = [
        "backbone=hf", f"backbone.source={base}", "backbone.pretrained=false", "data=jsonl", f"data.path={data}",
        "data.split=given", f"adapter={adapter}", "adapter.rank=2", "task.max_new_tokens=6", "trainer.max_steps=3",
        "run.audit=warn", f"quantise={quantise}",
    ]  # fmt: skip
    record = run(compose("text", overrides), tmp_path / "run")
    assert record.status == "done" and record.primary.name == "rouge_l" and record.certificate.reload_equal
    assert record.options.get("quantise", "none") == quantise  # a report keeps them apart
    assert record.options.get("quantise.steps") == {"loftq": 5}.get(quantise)
    prompts = lines(
        tmp_path / "new.jsonl", [{"id": "x", "prompt": "a b =>"}, {"id": "y", "prompt": "the cat sat on =>"}]
    )
    ship(tmp_path / "run", prompts, tmp_path / "out.jsonl", batch_size=2)
    ship(tmp_path / "run", prompts, tmp_path / "alone.jsonl", batch_size=1)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["x", "y"] and all(row["prediction"] and "nll" not in row for row in rows)
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "alone.jsonl").read_text()
    merge(tmp_path / "run", tmp_path / "merged")  # a folder with its tokenizer: a model like any other
    model = CausalLM(str(tmp_path / "merged"))
    answers = write(model, prompts_of(predict.read(prompts), Rendering(), model.tokenizer), tokens=6)
    assert [model.tokenizer.decode(answer.ids) for answer in answers] == [row["prediction"] for row in rows]


@pytest.mark.skipif(not weights.shipped(source.EMBEDDED), reason="no embedded weights yet")
def test_the_default_command_composes_and_checks():
    from core.compose import compose
    from core.config import check

    check(compose("text", []))
