"""From an item to token ids and labels: what the model reads, and which of it has a loss.

text                 begin, text, end; a loss on all of it
prompt, completion   begin, prompt, completion, end; a loss on completion and end
messages             the tokenizer's own chat template; a loss on the assistant's turns, their end marks included

Labels are set by position, never by id: where padding and end are one token, the true end keeps its loss. Prompt and
completion are tokenised apart, so that training sees the very ids from which generation goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from core.errors import ConfigError, DataError

IGNORE = -100
Item = dict[str, Any]


class Rendered(NamedTuple):
    """ids, labels   of equal length; label -100: no loss (the shift by one is the loss's business)
    prompt   tokens before the first that has a loss       cut   tokens left out       ended   the end has a loss"""

    ids: list[int]
    labels: list[int]
    prompt: int
    cut: int
    ended: bool


class Rendering:
    """How items become ids: `rendering(item, tokenizer)` is a Rendered, or None where `too_long` is drop.

    max_length   tokens, begin and end included; None: no limit of its own
    too_long     left cuts at the front (the end is kept), right at the back, drop leaves the item out, error refuses it
    loss_on      completion: the answer; last: of a conversation only the last answer; all: every token
    chat         auto: the chat template renders `messages`; always: prompt and completion, too, as one exchange
    joint        what stands between prompt and completion where neither brings white space
    """

    def __init__(
        self,
        max_length: int | None = None,
        too_long: Literal["left", "right", "drop", "error"] = "left",
        loss_on: Literal["completion", "last", "all"] = "completion",
        chat: Literal["auto", "always"] = "auto",
        joint: str = " ",
    ):
        if max_length is not None and max_length < 2:
            raise ConfigError("max_length", max_length, "at least 2 tokens")
        self.max_length, self.too_long, self.loss_on, self.chat, self.joint = max_length, too_long, loss_on, chat, joint
        self._known: tuple[int, frozenset[int]] = (0, frozenset())

    def __call__(self, item: Item, tokenizer: Any) -> Rendered | None:
        """DataError: longer than `max_length` where too_long is error; the chat template refuses the messages."""
        ids, labels = [], []
        for part, supervised in self.parts(item, tokenizer):
            ids += part
            labels += part if supervised or self.loss_on == "all" else [IGNORE] * len(part)
        for at in range(min(len(labels), max(1, len(tokenizer.before)))):
            labels[at] = IGNORE  # nothing stands before the first token, so nothing predicts it
        return self._fitted(item, ids, labels, tokenizer, self._marks(tokenizer), self.too_long)

    def parts(self, item: Item, tokenizer: Any) -> Iterator[tuple[list[int], bool]]:
        """(ids, has a loss) in order; their concatenation is the whole item."""
        begin, end = list(tokenizer.before), [tokenizer.eos]
        if "messages" in item or (self.chat == "always" and "prompt" in item):
            yield from self._turns(messages(item), tokenizer, item.get("id", ""))
        elif "prompt" in item:
            yield self.prompt(item, tokenizer), False
            yield tokenizer.encode(self._completion(item)) + end, True
        else:
            yield _once(begin + tokenizer.encode(item["text"]), begin) + end, True

    def prompt(self, item: Item, tokenizer: Any) -> list[int]:
        """Ids that generation goes on from: everything before the (last) answer."""
        if "messages" in item or (self.chat == "always" and "prompt" in item):
            asked = messages(item)
            if asked[-1]["role"] == "assistant":
                asked = asked[:-1]
            return tokenizer.encode(template(asked, tokenizer, True))
        begin = list(tokenizer.before)
        return _once(begin + tokenizer.encode(item.get("prompt", item.get("text", ""))), begin)

    def options(self, item: Item, tokenizer: Any) -> list[Rendered]:
        """One Rendered per choice of a multiple-choice item: the question, then that choice, without an end."""
        asked, rendered = self.prompt(item, tokenizer), []
        for choice in item["choices"]:
            part = tokenizer.encode(self._completion({"prompt": item["prompt"], "completion": choice}))
            labels = [IGNORE] * len(asked) + part
            rendered.append(self._fitted(item, asked + part, labels, tokenizer, frozenset(part[-1:]), "left"))
        return rendered

    def _completion(self, item: Item) -> str:
        spaced = item["prompt"][-1:].isspace() or item["completion"][:1].isspace() or not item["prompt"]
        return item["completion"] if spaced else self.joint + item["completion"]

    def _turns(self, turns: list[dict[str, str]], tokenizer: Any, name: str) -> Iterator[tuple[list[int], bool]]:
        """The template's text, cut where the assistant begins and ends to speak."""
        whole, done, marks = template(turns, tokenizer), 0, self._marks(tokenizer)
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        for i in answers:
            start = template(turns[:i], tokenizer, True)
            stop = whole if i + 1 == len(turns) else template(turns[: i + 1], tokenizer)
            if not (whole.startswith(stop) and stop.startswith(start)):
                if not stop.startswith(start) or i != answers[-1]:
                    got = "the chat template changes earlier turns when a later one is added"
                    raise DataError(f"item {name}", got, "turns that stay as they are", "one exchange per item")
                stop = whole
            yield tokenizer.encode(whole[done : len(start)]), False
            answer = tokenizer.encode(whole[len(start) : len(stop)])
            last = max((at for at, token in enumerate(answer) if token in marks), default=None)
            if last is None:
                answer, last = [*answer, tokenizer.eos], len(answer)
            spoken = self.loss_on != "last" or i == answers[-1]
            yield answer[: last + 1], spoken
            if answer[last + 1 :]:
                yield answer[last + 1 :], False
            done = len(stop)

    def _marks(self, tokenizer: Any) -> frozenset[int]:
        """`ends` of the tokenizer, found once: templates are slow."""
        if self._known[0] != id(tokenizer):
            self._known = (id(tokenizer), ends(tokenizer))
        return self._known[1]

    def _fitted(
        self, item: Item, ids: list[int], labels: list[int], tokenizer: Any, marks: frozenset[int], policy: str
    ) -> Rendered | None:
        limit = self.max_length
        cut = max(0, len(ids) - limit) if limit else 0
        if cut and policy == "drop":
            return None
        if cut and policy == "error":
            fix = "a larger task.max_length, or task.too_long=left, right or drop"
            raise DataError(f"item {item['id']}", f"{len(ids):,} tokens", f"at most {limit:,} (task.max_length)", fix)
        if cut and policy == "right":
            ids, labels = ids[:limit], labels[:limit]
        elif cut:
            kept = len(tokenizer.before)
            ids, labels = ids[:kept] + ids[cut + kept :], labels[:kept] + labels[cut + kept :]
        first = next((at for at, label in enumerate(labels) if label != IGNORE), len(labels))
        spoken = [at for at, label in enumerate(labels) if label != IGNORE]
        return Rendered(ids, labels, first, cut, bool(spoken) and labels[spoken[-1]] in marks)


# ---------------------------------------------------------------------- the tokenizer's side


def _once(ids: list[int], begin: list[int]) -> list[int]:
    """Without a second begin token, where the text itself brings one."""
    return ids[len(begin) :] if begin and ids[: 2 * len(begin)] == begin * 2 else ids


def ends(tokenizer: Any) -> frozenset[int]:
    """Ids at which an answer ends: those that stop generation, and the chat template's end of a turn."""
    marks = set(tokenizer.stops)
    if tokenizer.template:
        # What a template writes after an answer, whatever its name: the first special token.
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tail = tokenizer.encode(template(turns, tokenizer).removeprefix(template(turns[:1], tokenizer, True)))
        special = tokenizer.inner.added_tokens_decoder.keys() - {tokenizer.inner.unk_token_id}
        marks |= set([i for i in tail if i in special][:1])
    return frozenset(marks)


def messages(item: Item) -> list[dict[str, str]]:
    """Turns of an item; a prompt is the user's, a completion the assistant's."""
    if "messages" in item:
        return item["messages"]
    asked = [{"role": "user", "content": item["prompt"]}]
    return [*asked, {"role": "assistant", "content": item["completion"]}] if item.get("completion") else asked


def template(turns: list[dict[str, str]], tokenizer: Any, answer: bool = False) -> str:
    """The chat template's text; `answer`: up to where the assistant begins. DataError: no template, or it refuses."""
    try:
        return tokenizer.chat(turns, answer=answer)
    except DataError:
        raise
    except Exception as error:  # templates raise what they like, jinja's errors among it
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError("messages", f"the chat template refuses {roles}: {error}", "turns that it knows") from None
