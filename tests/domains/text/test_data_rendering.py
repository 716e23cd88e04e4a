"""From items to ids: the end has a loss, the prompt has none, nothing begins twice, what is cut is counted."""

import pytest

from core.errors import DataError
from domains.text.backbones.tokens import Tokenizer
from domains.text.data.rendering import IGNORE, Rendering, ends
from domains.text.data.texts import coloured
from domains.text.data.twin import Twin
from domains.text.pretraining.tokens import fast

PAIR = {"id": "a", "prompt": "food thai =>", "completion": "love thai? go."}
CHAT = (  # as ChatML, in words that the tokenizer knows; a mark stands behind each end
    "{% for m in messages %}<s>{{ 'look' if m.role == 'user' else 'here' }} {{ m.content }}<eot> |{% endfor %}"
    "{% if add_generation_prompt %}<s>here{% endif %}"
)
TALK = [("user", "area centre"), ("assistant", "find it"), ("user", "food thai"), ("assistant", "love thai")]
MESSAGES = {"id": "m", "messages": [{"role": role, "content": content} for role, content in TALK]}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(fast())


@pytest.fixture(scope="module")
def chatty():
    inner = fast()
    inner.add_special_tokens({"additional_special_tokens": ["<eot>"]})
    inner.chat_template = CHAT
    return Tokenizer(inner)


def learnt(part, tokenizer):
    return tokenizer.inner.decode([label for label in part.labels if label != IGNORE])


def test_a_completion_and_its_end_have_a_loss(tokenizer):
    part = Rendering()(PAIR, tokenizer)
    assert learnt(part, tokenizer) == "love thai? go.</s>" and part.ended
    assert part.ids[0] == tokenizer.inner.bos_token_id != part.ids[1]
    assert part.ids[: part.prompt] == Rendering().prompt(PAIR, tokenizer)
    assert part.labels[part.prompt :] == part.ids[part.prompt :]


def test_the_end_has_a_loss_where_it_is_the_padding_too(tokenizer):
    shared = fast()
    shared.pad_token = shared.eos_token
    part = Rendering()(PAIR, Tokenizer(shared))
    assert part.labels[-1] == shared.eos_token_id == shared.pad_token_id


def test_a_text_has_a_loss_from_its_second_token(tokenizer):
    part = Rendering()({"id": "t", "text": "love thai? go."}, tokenizer)
    assert part.labels[0] == IGNORE and part.labels[1:] == part.ids[1:]
    assert Rendering(loss_on="all")(PAIR, tokenizer).labels.count(IGNORE) == 1


def test_nothing_begins_twice(tokenizer):
    part = Rendering()({"id": "t", "text": "<s> love thai"}, tokenizer)
    assert part.ids.count(tokenizer.inner.bos_token_id) == 1


def test_every_answer_of_a_conversation_has_a_loss_and_its_mark(chatty):
    part = Rendering()(MESSAGES, chatty)
    assert learnt(part, chatty).replace(" ", "") == "findit<eot>lovethai<eot>"
    assert part.ended and chatty.inner.convert_tokens_to_ids("<eot>") in ends(chatty)
    assert learnt(Rendering(loss_on="last")(MESSAGES, chatty), chatty).replace(" ", "") == "lovethai<eot>"


def test_a_conversation_has_the_ids_of_its_template(chatty):
    """Cut where the assistant speaks and put together again, the ids are those of the whole text."""
    whole = chatty.chat(MESSAGES["messages"], answer=False)
    assert Rendering()(MESSAGES, chatty).ids == chatty.encode(whole)
    asked = Rendering().prompt(MESSAGES, chatty)
    assert asked == chatty.encode(chatty.chat(MESSAGES["messages"][:-1], answer=True))
    assert asked == Rendering()(MESSAGES, chatty).ids[: len(asked)]


def test_prompt_and_completion_can_be_one_exchange(chatty):
    part = Rendering(chat="always")(PAIR, chatty)
    assert chatty.inner.decode(part.ids).replace(" ", "").startswith("<s>lookfoodthai")
    assert learnt(part, chatty).replace(" ", "") == "lovethai?go.<eot>"


@pytest.mark.parametrize(
    "policy, ids, ended", [("left", "<s> thai? go.</s>", True), ("right", "<s> food thai => love thai", False)]
)
def test_what_is_too_long_is_cut_at_the_named_side_and_counted(policy, ids, ended, tokenizer):
    part = Rendering(6, policy)(PAIR, tokenizer)
    assert tokenizer.inner.decode(part.ids) == ids and part.ended is ended
    assert len(part.ids) == len(part.labels) == 6 and part.cut == 4


def test_what_is_too_long_can_be_left_out_or_refused(tokenizer):
    assert Rendering(6, "drop")(PAIR, tokenizer) is None
    with pytest.raises(DataError, match="10 tokens"):
        Rendering(6, "error")(PAIR, tokenizer)
    data = Twin(train=20)
    data.setup()
    before = len(data.items("train"))
    data.render(Rendering(45, "drop"), tokenizer)
    left = before - len(data.items("train"))
    assert 0 < left < before and data.audit().facts["train items over the length limit, left out"] == left


def test_a_template_that_refuses_is_a_data_error(chatty):
    strict = fast()
    strict.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(DataError, match="no system here"):
        Rendering()(MESSAGES, Tokenizer(strict))


def test_choices_share_their_question(tokenizer):
    item = {"id": "q", "prompt": "food", "choices": ["thai", "greek food"], "answer": 0, "completion": "thai"}
    parts = Rendering().options(item, tokenizer)
    assert [learnt(part, tokenizer) for part in parts] == ["thai", "greek food"]
    assert parts[0].ids[: parts[0].prompt] == parts[1].ids[: parts[1].prompt]


def test_lengths_are_tokens_after_rendering(tokenizer):
    data = Twin(train=3)
    data.setup()
    item = data.items("train")[0]
    words = data.length(item)
    data.render(Rendering(), tokenizer)
    assert data.length(item) == len(Rendering()(item, tokenizer).ids) != words
    shown = coloured(Rendering()(PAIR, tokenizer), tokenizer)
    assert shown["spans"] == [("<s> food thai =>", False), ("love thai? go.</s>", True)]
