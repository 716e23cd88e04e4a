"""What a field supplies, and nothing more: a backbone (where the roles are), data (rows and splits), a task (what is
asked and how it is scored). `core` knows fields only through these three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

Split = Literal["train", "val", "test"]


class Output(NamedTuple):
    """What a backbone's forward gives; a field that the network does not have is None.

    hidden   (batch, tokens, channels) last hidden states, special tokens included
    mask     (batch, tokens) bool, True at real items (residues, words, frames): special tokens and padding are False
    logits   (batch, tokens, vocabulary) of the network's own language-model head
    extras   anything else by name (attention maps, decoder outputs)
    """

    hidden: Tensor | None = None
    mask: Tensor | None = None
    logits: Tensor | None = None
    extras: dict[str, Any] | None = None


@dataclass(frozen=True)
class TokenPort:
    """How virtual tokens enter a network. Every field is optional: a missing one means that the seam is not offered.

    Seam `embeds`: the module `model` gets vectors spliced into its input embeddings, its mask and positions extended,
    its output stripped. Seam `blocks`: tokens are spliced in before the first of `blocks` and stripped after the last,
    or in and out at each. Seam `kv`: each of `attn` makes exactly one scaled_dot_product_attention call, which gets
    virtual keys and values in front.
    """

    model: str | None = None  # embeds: path of the module that owns embeddings and blocks; "" is the network itself
    embed: str | None = None  # token embedding inside `model`; None: `embeds` already holds hidden states
    ids: str | None = "input_ids"
    embeds: str = "inputs_embeds"
    mask: str | None = "attention_mask"
    positions: str | None = None  # keyword to fill; None: the model derives positions from the mask
    fill: tuple = ()  # other per-token keywords: ("token_type_ids", 0)
    cache: str | None = None  # `cache|past_key_values` where a library renamed it; None: an encoder, right-padded
    memory: tuple = ()  # (module path, mask keyword) of decoders that read the output: virtual tokens stay in it
    leading: int = 0  # tokens that stay in front of the virtual ones
    blocks: str | None = None  # blocks: glob of the stack
    axis: int = 1  # token axis of the hidden states inside the blocks
    bmask: str | None = None  # keyword of a block that holds the mask
    bkind: Literal["none", "add4d", "pad2d"] = "none"  # additive/bool (B, h, Tq, Tk), or pad-is-True (B, T)
    rope: str | None = None  # keyword (cos, sin): extended by cos 1, sin 0
    wrap: str | None = None  # module whose per-token outputs `tokens_out` are collected, stripped there
    tokens_out: tuple = ()
    dim: int | None = None  # width of a virtual token: the embedding's, not always the hidden size
    attn: str | tuple[str, ...] | None = None  # kv: glob(s) of the attention modules
    heads: int | str = 0  # their key/value heads: a number, or the attribute where each module has it
    head_dim: int | str = 0  # channels of a head; also a quotient of two attributes: proj.in_features/num_heads
    outer: tuple = ()  # kv: (module path, cache keyword) that gets masks and positions; (): (model, cache)
    flags: tuple = ()  # kv: attributes that an attention module has while tokens act: (("fused_attn", True),)


class Backbone(nn.Module):
    """A thin shell around `net`, a network that stays exactly as its library made it.

    roles        role -> path pattern(s) in `net` (core.adapters.sites); what a user sees in a checkpoint, no prefix
    batch_axis   role -> axis of the batch in that module's tensors, 0 where not named
    channel_axis role -> axis of the channels in that module's output, where the structure does not tell
    heads        attention heads, one number or one per attention site
    width        channels of `Output.hidden`
    reads_head   forward reads the acting head (core.adapters.acting_head), a new speaker's vector say: to train
                 a head alone then needs the network's gradients, too
    tokenizer    small picklable object: `tokenizer(sequences) -> dict of tensors`; None where a field has none
    """

    roles: ClassVar[dict[str, str | list[str]]] = {}
    batch_axis: ClassVar[dict[str, int]] = {}
    channel_axis: ClassVar[dict[str, int]] = {}
    heads: int | list[int] | None = None
    token_port: TokenPort | None = None
    width: int = 0
    reads_head: ClassVar[bool] = False
    tokenizer: Any = None
    net: nn.Module

    def example(self) -> tuple[tuple, dict[str, Any]]:
        """Arguments of a tiny forward call on CPU that touches every role, as `(args, kwargs)`."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Any]) -> Output:
        raise NotImplementedError


class Metric(NamedTuple):
    """A score over `n` items. `ci95` is the cluster bootstrap's 95 % interval, None where it makes no sense."""

    value: float
    unit: str = ""
    higher_is_better: bool = True
    n: int = 0
    ci95: tuple[float, float] | None = None


@dataclass
class Audit:
    """Findings about the data. `errors` stop the run (exit code 3), `warnings` are shown, `facts` go to the run card.

    facts   name -> number, text or list; a histogram is {"bins": [...], "counts": [...]}
    """

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Data:
    """Rows and splits. An item is a dict with at least `id` (str, unique) and `group` (str: patient, cluster, speaker;
    the unit that splits keep together and that the bootstrap draws). Sequences are plain text, arrays are numpy.

    kind   "real" or "twin" (made at run time from a seed); named in every title
    """

    kind: Literal["real", "twin"] = "real"

    def setup(self) -> None:
        """Read and split; every DataError names file, row and field. Called once, before anything is trained."""
        raise NotImplementedError

    def items(self, split: Split) -> Sequence[dict[str, Any]]:
        raise NotImplementedError

    def length(self, item: dict[str, Any]) -> int:
        """Cost of one item in tokens; batches are cut by the sum of these."""
        return 1

    def audit(self) -> Audit:
        raise NotImplementedError

    def strata(self, split: Split) -> dict[str, list[str]]:
        """Name -> ids of parts of a split that are scored on their own, too (how alike to train, which scanner)."""
        return {}


class Task(nn.Module):
    """What is asked of the hidden states, and how the answer is scored. Holds no trained parameter: its head belongs to
    the adapter, and is saved with it.

    metric, mode   name of the headline metric and whether more is better
    watch          (metric, mode) on validation rows that selects the checkpoint and a sweep's learning rate, where the
                   headline is too slow to be had during training; None: the headline itself
    retained       name of what `retention` measures
    """

    metric: str = ""
    mode: Literal["max", "min"] = "max"
    watch: tuple[str, Literal["max", "min"]] | None = None
    retained: str = "retention"

    def selection(self) -> tuple[str, Literal["max", "min"]]:
        return self.watch or (self.metric, self.mode)

    def check(self, data: Data, backbone: Backbone) -> None:
        """DataError or ConfigError where the data's fields, labels or the backbone do not suit. Fits scalers."""

    def head(self, backbone: Backbone) -> nn.Module | None:
        """The trainable head, or None (masked language models use the network's own)."""
        return None

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """A batch: tensors by name, plus `ids` (list of str). Called inside a seeded guard: may draw random numbers."""
        raise NotImplementedError

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        """(sum of the losses, number of items they cover): scalars; the trainer normalises over the accumulation."""
        raise NotImplementedError

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> Iterator[dict[str, Any]]:
        """One JSON-ready dict per item of the batch, in order: `id`, `prediction`, `truth` where the batch has it."""
        raise NotImplementedError

    def infer(
        self,
        model: nn.Module,
        batch: dict[str, Any],
        head: nn.Module | None,
        output: Output | None = None,
        *,
        final=True,
    ) -> Iterator[dict[str, Any]]:
        """Prediction rows of one batch at evaluation, as `predict` gives them. A task whose answer is more than one
        forward pass (generation, sliding windows, synthesis) does it here.

        output   `model(batch)`, where it is known already
        final    False in a validation during training: rows that `watch` needs, and quickly
        """
        yield from self.predict(model(batch) if output is None else output, batch, head)

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """All metrics over prediction rows (each with `id`, `group`, `truth`, `prediction`); intervals on the headline.

        Also writes each row's own share of the headline into `row["score"]` where the metric is a mean over items."""
        raise NotImplementedError

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        """Name -> prediction rows on the test split of predictors that need no network (majority, one-hot ridge)."""
        return {}

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        """Prediction rows on the test split from the frozen backbone alone, where the task has such a score."""
        return None

    def retention(self, model: Backbone, data: Data) -> Metric | None:
        """What the base could do before, on held-out data of its old task. Asked once with the adapter off and once
        after training: the record's `forgetting`."""
        return None

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        """Write the field's own pictures (.svg, .png) and sounds (.ogg, .flac, .wav) of prediction rows, the worst case
        included; returns the file names. A run card shows 190 KB of pictures and 160 KB of sound."""
        return []
