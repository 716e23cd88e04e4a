"""What the tasks ask and how they score: tokens weigh alike, the shift happens once, ends are learned, oracles hold."""

import copy
import math

import pytest
import torch

from core.adapters import attach, merge, trainable
from core.contracts import Output
from core.errors import ConfigError, DataError, UnsupportedError
from domains.text import generation
from domains.text.backbones.causal_lm import CausalLM
from domains.text.backbones.seq2seq import Seq2Seq
from domains.text.backbones.tokens import Tokenizer
from domains.text.data.jsonl import Jsonl
from domains.text.data.rendering import Rendering
from domains.text.tasks import reading
from domains.text.tasks.fine_tuning import FineTuning
from domains.text.tasks.generation import Generation
from domains.text.tasks.multiple_choice import MultipleChoice
from tests.domains.text.families import TEMPLATE, folder, tokenizer

ITEMS = [
    {"id": "1", "group": "1", "prompt": "a b c =>", "completion": "c b a"},
    {"id": "2", "group": "2", "prompt": "the cat =>", "completion": "sat on the mat . a b c d"},
    {"id": "3", "group": "3", "prompt": "far =>", "completion": "ran"},
    {"id": "4", "group": "4", "prompt": "d e f g h i =>", "completion": "x y"},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return CausalLM(str(folder("llama", tmp_path_factory.mktemp("llama"))), pretrained=False).eval()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return Seq2Seq(str(folder("t5", tmp_path_factory.mktemp("t5"))), pretrained=False).eval()


def write_rows(path, rows):
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data_of(tmp_path, rows):
    data = Jsonl(write_rows(tmp_path / "rows.jsonl", rows), split="given")
    data.setup()
    return data


def everywhere(rows):
    """The same kind of row in every split."""
    return [{**row, "id": f"{split}{i}", "group": f"{split}{i}", "split": split}
            for split in ("train", "val", "test") for i, row in enumerate(rows)]  # fmt: skip


# ---------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_nll_is_weighted_by_tokens_however_items_are_batched(kind, request):
    model, task = request.getfixturevalue(kind), FineTuning()
    totals = []
    for size in (1, 2, 4):
        parts = [ITEMS[i : i + size] for i in range(0, 4, size)]
        rows, loss, count = [], 0.0, 0.0
        for part in parts:
            batch = task.collate(part, model.tokenizer)
            with torch.no_grad():
                output = model(batch)
            found = task.loss(output, batch, None)
            loss, count = loss + found[0].item(), count + found[1].item()
            rows += [{**row, "group": row["id"]} for row in task.predict(output, batch, None)]
        scores = task.score(rows)
        assert scores["nll"].value == pytest.approx(loss / count, rel=1e-5)
        assert scores["perplexity"].value == pytest.approx(math.exp(loss / count), rel=1e-5)
        totals.append((loss, count))
    assert totals[0][1] == sum(len(item["completion"].split()) + 1 for item in ITEMS)  # every word and the end
    assert all(t == pytest.approx(totals[0], rel=1e-5) for t in totals)
    # A mean of batch means would be another number: items differ in length.
    assert sum(row["nll"] for row in rows) / 4 != pytest.approx(loss / count, rel=1e-5)
    assert sum(row["score"] for row in rows) / 4 == pytest.approx(loss / count, rel=1e-5)


def test_a_uniform_models_perplexity_is_its_vocabulary():
    task, made = FineTuning(), Tokenizer(tokenizer())
    batch = task.collate(ITEMS, made)
    shape = (*batch["labels"].shape, made.size)
    asked = torch.arange(shape[1] - 1)
    output = Output(logits=torch.zeros(shape)[:, asked], extras={"asked": asked})
    rows = [{**row, "group": row["id"]} for row in task.predict(output, batch, None)]
    assert task.score(rows)["perplexity"].value == pytest.approx(made.size, rel=1e-6)


def test_the_end_is_supervised_where_padding_is_the_end():
    """transformers' collator hides labels that equal the pad id: the true end would never be learned."""
    made = Tokenizer(tokenizer(pad=None))
    assert made.pad == made.eos
    batch = FineTuning().collate(ITEMS, made)
    for row, item in enumerate(ITEMS):
        labels = batch["labels"][row]
        assert (labels == made.eos).sum() == 1  # the end itself, no pad
        assert (labels >= 0).sum() == len(item["completion"].split()) + 1


def learned(model, task, items, steps=120, lr=3e-3):
    optim = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(steps):
        batch = task.collate(items, model.tokenizer)
        total, count = task.loss(model(batch), batch, None)
        optim.zero_grad()
        (total / count).backward()
        optim.step()
    model.eval()
    return (total / count).item()


@pytest.fixture(scope="module", params=["llama", "t5"])
def copier(request, tmp_path_factory):
    kind = CausalLM if request.param == "llama" else Seq2Seq
    model = kind(str(folder(request.param, tmp_path_factory.mktemp("copier"))), pretrained=False, seed=1)
    return model, learned(model, FineTuning(), ITEMS)


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """A causal model that writes other texts for other prompts."""
    model = CausalLM(str(folder("llama", tmp_path_factory.mktemp("memorised"))), pretrained=False, seed=1)
    learned(model, FineTuning(), ITEMS, steps=60)
    return model


def test_the_shift_happens_once(copier):
    """A memorised set's loss goes to 0, and the model then writes it: shifted twice or never, it cannot do both."""
    model, loss = copier
    assert loss < 0.1  # measured 0.02
    task = Generation(measure="exact", max_new_tokens=16)
    rows = reading.rows(task, model, ITEMS)
    scores = task.score(rows)
    assert scores["exact"].value == scores["stop_rate"].value == 1 and scores["nll"].value < 0.1
    assert {row["id"]: row["prediction"] for row in rows} == {item["id"]: item["completion"] for item in ITEMS}


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize("beams", [1, 3])
def test_a_padded_batch_writes_what_each_row_writes_alone(copier, llama, beams):
    rendering = Rendering()
    for model in (copier[0], llama):
        together = reading.prompts(ITEMS, rendering, model.tokenizer)
        assert len(set(together["prompt_mask"].sum(1).tolist())) > 1
        many = generation.write(model, together, tokens=12, beams=beams)
        for item, answer in zip(ITEMS, many, strict=True):
            alone = reading.prompts([item], rendering, model.tokenizer)
            assert generation.write(model, alone, tokens=12, beams=beams) == [answer]


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_an_active_adapter_writes_and_merged_writes_the_same(memorised, method):
    model = copy.deepcopy(memorised)
    batch = reading.prompts(ITEMS, Rendering(), model.tokenizer)
    base = generation.write(model, batch, tokens=12)
    attach(model, method, **({"rank": 4} if method == "lora" else {"tokens": 4}))
    generator = torch.Generator().manual_seed(0)
    for p in trainable(model).values():
        p.data.add_(0.2 * torch.randn(p.shape, generator=generator))
    adapted = generation.write(model, batch, tokens=12)
    assert adapted != base
    for item, answer in zip(ITEMS, adapted, strict=True):  # greedy by hand: one more token at a time, no cache
        ids = reading.prompts([item], Rendering(), model.tokenizer)["prompt_ids"]
        start = ids.shape[1]
        while ids.shape[1] - start < 12 and ids[0, -1] not in model.tokenizer.stops:
            with torch.no_grad():
                next_one = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, next_one[None]], 1)
        assert [i for i in ids[0, start:].tolist() if i not in model.tokenizer.stops] == answer.ids
    if method == "lora":
        merge(model)
        assert generation.write(model, batch, tokens=12) == adapted


def test_validation_asks_for_no_text(llama):
    task = Generation()
    batch = task.collate(ITEMS, llama.tokenizer)
    with torch.no_grad():
        rows = list(task.infer(llama, batch, None, llama(batch), final=False))
    assert all("prediction" not in row and row["nll"] > 0 for row in rows)
    scores = task.score([{**row, "group": row["id"]} for row in rows])
    assert task.selection() == ("nll", "min") and "nll" in scores and "rouge_l" not in scores


def test_scores_of_written_rows():
    """Right answers are perfect, empty ones worthless; a headline without references is unknown."""
    task = Generation(measure="bleu")
    truth = [["the cat sat on the mat ."], ["a dog ran far .", "the dog ran ."]]
    named = [{"id": str(i), "group": str(i), "truth": t} for i, t in enumerate(truth)]
    rows = [{**row, "prediction": row["truth"][-1], "stopped": True} for row in named]
    best = task.score(rows)
    assert best["bleu"].value == pytest.approx(100) and best["rouge_l"].value == best["exact"].value == 1
    worst = task.score([{**row, "prediction": "", "stopped": False} for row in rows])
    assert worst["bleu"].value == worst["rouge_l"].value == worst["stop_rate"].value == 0
    unknown = task.score([{"id": "1", "group": "1", "prediction": "a", "stopped": True}])
    assert math.isnan(unknown["bleu"].value)
    slots = [{**rows[0], "slots": {"what": "cat", "where": "sofa"}}]
    assert Generation(measure="slot_recall").score(slots)["slot_recall"].value == 0.5


# ---------------------------------------------------------------------- multiple choice


def test_multiple_choice_against_hand_computed_log_probabilities(llama):
    items = [
        {"id": "1", "group": "1", "prompt": "the cat", "choices": ["sat", "sat on the mat", "ran far"], "answer": 2},
        {"id": "2", "group": "2", "prompt": "a", "choices": ["b", "c d"], "answer": 0},
    ]
    rows = {row["id"]: row for row in reading.rows(MultipleChoice(), llama, items)}
    for item in items:
        for at, choice in enumerate(item["choices"]):
            ids = [1, *llama.tokenizer.encode(f"{item['prompt']} {choice}")]
            words = len(choice.split())
            with torch.no_grad():
                table = llama({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}).logits
            table = table[0].log_softmax(-1)
            expected = sum(table[place - 1, ids[place]].item() for place in range(len(ids) - words, len(ids)))
            assert rows[item["id"]]["by_sum"][at] == pytest.approx(expected, rel=1e-4)
            assert rows[item["id"]]["by_length"][at] == pytest.approx(expected / words, rel=1e-4)
    scores = MultipleChoice().score(list(rows.values()))
    right = sum(max(row["by_sum"]) == row["by_sum"][row["truth"]] for row in rows.values())
    assert scores["accuracy"].value == right / 2 and scores["chance"].value == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_multiple_choice_learns_the_answer(tmp_path):
    model = CausalLM(str(folder("llama", tmp_path)), pretrained=False)
    items = [{"id": str(i), "group": str(i), "prompt": f"{w} is", "choices": ["a", "b c", "d"], "answer": i % 3}
             for i, w in enumerate("the cat sat on mat dog".split())]  # fmt: skip
    task = MultipleChoice(by="length")
    learned(model, task, items, steps=80)
    rows = reading.rows(task, model, items)
    assert task.score(rows)["accuracy"].value == 1


# ---------------------------------------------------------------------- forgetting


def test_retention_is_the_likelihood_of_old_texts(llama, tmp_path):
    texts = [{"id": "1", "text": "the cat sat on the mat ."}, {"id": "2", "text": "a dog ran ."}]
    old = write_rows(tmp_path / "old.jsonl", texts)
    data = Jsonl(write_rows(tmp_path / "new.jsonl", ITEMS), general=old)
    rows = reading.rows(FineTuning(), llama, texts)
    found = FineTuning().retention(llama, data)
    assert found.value == pytest.approx(FineTuning().score(rows)["nll"].value, rel=1e-5) and not found.higher_is_better
    assert FineTuning().retention(llama, Jsonl(str(tmp_path / "new.jsonl"))) is None


# ---------------------------------------------------------------------- faults


def test_nothing_to_learn_is_refused(llama, tmp_path):
    """Cut so short at the back that no answer is left: the loss would be a mean over nothing."""
    data = data_of(tmp_path, everywhere(ITEMS))
    with pytest.raises(DataError, match=r"none of 4 tokens has a loss") as caught:
        FineTuning(max_length=4, too_long="right").check(data, llama)
    assert caught.value.code == 3 and "item train0 (train)" in str(caught.value)


def test_longer_than_the_network_can_read(llama, tmp_path):
    long = {"prompt": "a =>", "completion": "b " * 80}
    data = data_of(tmp_path, everywhere([long]))
    with pytest.raises(DataError, match=r"84 tokens") as caught:
        FineTuning(too_long="error").check(data, llama)
    assert "at most 64" in str(caught.value)
    data = data_of(tmp_path, everywhere([long, ITEMS[0]]))
    FineTuning(too_long="left").check(data, llama)
    assert data.seen["train0"].cut == 20 and data.seen["train0"].tokens == 64


def test_new_prompts_longer_than_the_network_lose_their_front(tmp_path):
    """GPT-2's positions end at 64: nothing checks the input of a finished run, so the collator has to."""
    model = CausalLM(str(folder("gpt2", tmp_path)), pretrained=False).eval()
    long = [{"id": "1", "prompt": "a b c d " * 20 + "=>"}]
    rows = reading.rows(Generation(max_new_tokens=8), model, long)
    assert rows[0]["prediction"] is not None
    batch = reading.prompts(long, Rendering(), model.tokenizer)
    assert batch["prompt_ids"].shape == (1, 64) and batch["prompt_ids"][0, -1] == model.tokenizer.encode("=>")[0]


def test_texts_that_the_tokenizer_does_not_know(llama, tmp_path):
    data = data_of(tmp_path, everywhere([{"prompt": "Bonjour tout le monde", "completion": "Guten Tag"}]))
    with pytest.raises(DataError, match="unknown to this tokenizer"):
        FineTuning().check(data, llama)


def test_messages_need_a_chat_template(llama, tmp_path):
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    data = data_of(tmp_path, everywhere([{"messages": turns}]))
    with pytest.raises(DataError, match="no chat template"):
        FineTuning().check(data, llama)
    made = Tokenizer(tokenizer(template=TEMPLATE))
    batch = FineTuning().collate([{"id": "1", "messages": turns}], made)
    kept = batch["labels"][0] >= 0
    assert made.inner.decode(batch["labels"][0][kept].tolist()) == "sat </s>"


def test_bare_texts_and_an_encoder(t5, tmp_path):
    data = data_of(tmp_path, everywhere([{"text": "the cat sat"}]))
    with pytest.raises(UnsupportedError, match="prompt and completion") as caught:
        FineTuning().check(data, t5)
    assert caught.value.code == 2


@pytest.mark.parametrize("answer", [None, 3, -1, "b"])
def test_a_question_without_its_answer(llama, answer):
    class Questions:
        def items(self, split):
            return [{"id": split, "prompt": "the", "choices": ["a", "b"], "answer": answer}]

    with pytest.raises(DataError, match="a number from 0 to 1"):
        MultipleChoice().check(Questions(), llama)


def test_options_out_of_range():
    with pytest.raises(ConfigError, match=r"task\.beams"):
        Generation(beams=0)
    with pytest.raises(ConfigError, match="max_length"):
        FineTuning(max_length=1)
