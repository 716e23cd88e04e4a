"""Loaders whose batches are a function of (seed, epoch): cut by item count and token budget, resumable at any batch.

Why not a shuffled DataLoader: after a kill it starts another permutation from its front. Here a sampler yields keys
(epoch, position, indices, rank) from any `start`, and a batch is made under a guard seeded by its key: 0 and n workers,
before and after a resume, give the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from core.contracts import Data, Split, Task
from core.data.seeding import derive, guard
from core.errors import ConfigError, DataError, Problem


class Key(NamedTuple):
    """What names one batch of one rank. `real` is False where a global batch has fewer items than there are ranks."""

    epoch: int
    position: int
    indices: list[int]
    rank: int = 0
    real: bool = True


class Plan:
    """Which items form which batch. Every epoch has the same number of batches.

    lengths   cost of each item in tokens
    size      at most this many items per batch and rank;  None: no limit
    tokens    at most this many tokens per batch and rank, padding counted;  None: no limit. A longer item goes alone
    world     ranks that share a batch: each takes every world-th item of it

    Items are put into buckets of similar length (25 % apart). An epoch shuffles inside the buckets, then the order of
    the batches; where batches are cut depends on the buckets alone, which is why their number never changes.
    """

    def __init__(self, lengths: Sequence[int], *, size: int | None, tokens: int | None, world: int = 1, seed: int = 0):
        lengths = np.asarray(lengths, dtype=np.int64)
        grid = np.ceil(np.log(np.maximum(lengths, 8)) / np.log(1.25)).astype(np.int64)
        self.order = np.argsort(grid, kind="stable")
        buckets, first = np.unique(grid[self.order], return_index=True)
        self.buckets = list(zip(first, [*first[1:], len(lengths)], strict=True))
        bound = {b: int(lengths[grid == b].max()) for b in buckets}  # longest item of the bucket: the padded length
        self.seed, self.world = seed, world
        self.cuts: list[tuple[int, int]] = []
        self.costs: list[int] = []  # padded tokens per rank
        start = 0
        for at, item in enumerate(self.order):
            each = -(-(at + 1 - start) // world)
            cost = each * bound[grid[item]]
            if at > start and ((size and each > size) or (tokens and cost > tokens)):
                self._cut(start, at, bound[grid[self.order[at - 1]]])
                start = at
        if len(lengths):
            self._cut(start, len(lengths), bound[grid[self.order[-1]]])

    def _cut(self, start: int, stop: int, bound: int) -> None:
        self.cuts.append((start, stop))
        self.costs.append(-(-(stop - start) // self.world) * bound)

    def __len__(self) -> int:
        return len(self.cuts)

    def batches(self, epoch: int | None) -> list[list[int]]:
        """Item indices of every global batch; `None` is the unshuffled order, shortest first, of an evaluation."""
        if epoch is None:
            return [self.order[a:b].tolist() for a, b in self.cuts]
        draw = np.random.default_rng(derive(self.seed, "order", epoch))
        order = np.concatenate([draw.permutation(self.order[a:b]) for a, b in self.buckets])
        return [order[self.cuts[i][0] : self.cuts[i][1]].tolist() for i in draw.permutation(len(self.cuts))]

    def longest(self) -> list[int]:
        """Item indices of the batch that costs most."""
        start, stop = self.cuts[int(np.argmax(self.costs))]
        return self.order[start:stop].tolist()


class Order(Sampler):
    """Keys of one rank's batches from `start` on; its length is always the whole epoch's.

    The position comes from the trainer's count of completed batches, never from here: workers ask ahead of time.
    """

    def __init__(self, plan: Plan, *, shuffle: bool, epoch: int = 0, start: int = 0, rank: int = 0):
        self.plan, self.shuffle, self.epoch, self.start, self.rank = plan, shuffle, epoch, start, rank

    def set_epoch(self, epoch: int) -> None:
        if self.shuffle and epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Key]:
        batches = self.plan.batches(self.epoch if self.shuffle else None)
        for position in range(self.start, len(batches)):
            yield share(batches[position], self.epoch, position, self.rank, self.plan.world)


def share(indices: list[int], epoch: int, position: int, rank: int, world: int) -> Key:
    """One rank's part of a global batch; a rank that gets none repeats the first item with weight 0."""
    part = indices[rank::world]
    return Key(epoch, position, part or indices[:1], rank, bool(part))


class Batches(Dataset):
    """Key -> batch: `collate` of the items under a guard seeded by (seed, split, epoch, position, rank).

    A batch that only fills a rank's place has `weight` 0: its loss and its rows do not count.
    """

    def __init__(self, items: Sequence[dict], collate: Callable, tokenizer: Any, seed: int, split: str):
        self.items, self.collate, self.tokenizer, self.seed, self.split = items, collate, tokenizer, seed, split

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        with guard(derive(self.seed, self.split, key.epoch, key.position, key.rank)):
            batch = self.collate([self.items[i] for i in key.indices], self.tokenizer)
        if not key.real:
            batch["weight"] = 0.0
        return batch


class Loader:
    """What `loader:` in a config says; counts are per device, so a step sees devices x accumulation times as much.

    batch_size   at most this many items per batch
    tokens       at most this many tokens per batch, padding counted (null: no limit)
    workers      processes that make batches; 0 makes them in the training process, with the same bits
    """

    def __init__(self, batch_size: int | None = 16, tokens: int | None = None, workers: int = 0):
        problems = [
            Problem(f"loader.{name}", str(value), f"{least} or more")
            for name, value, least in (("batch_size", batch_size, 1), ("tokens", tokens, 1), ("workers", workers, 0))
            if value is not None and value < least
        ]
        if batch_size is None and tokens is None:
            problems.append(Problem("loader", "batch_size null, tokens null", "at least one of them"))
        if problems:
            raise ConfigError(problems=problems)
        self.batch_size, self.tokens, self.workers = batch_size, tokens, workers


class AsTrained:
    """The data with the rows that a run really uses: `run.limit` shortens what a baseline learns from, too."""

    def __init__(self, loaders: Loaders):
        self._loaders = loaders

    def items(self, split: Split) -> list[dict[str, Any]]:
        return self._loaders.items(split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loaders.data, name)


class Loaders(L.LightningDataModule):
    """The three splits as Lightning wants them, with the position that a checkpoint needs.

    limit   at most this many items per split, drawn by the seed
    """

    def __init__(
        self, data: Data, task: Task, tokenizer: Any, settings: Loader, seed: int = 0, limit: int | None = None
    ):
        super().__init__()
        self.data, self.task, self.tokenizer, self.settings = data, task, tokenizer, settings
        self.seed, self.limit = seed, limit
        self.epoch, self.start = 0, 0
        self._items: dict[str, list] = {}
        self._plans: dict[tuple[str, int], Plan] = {}

    def items(self, split: Split) -> list[dict[str, Any]]:
        if split not in self._items:
            items = list(self.data.items(split))
            if self.limit is not None and len(items) > self.limit:
                draw = np.random.default_rng(derive(self.seed, "limit", split))
                items = [items[i] for i in sorted(draw.choice(len(items), self.limit, replace=False))]
            self._items[split] = items
        return self._items[split]

    def plan(self, split: Split, world: int = 1) -> Plan:
        if (split, world) not in self._plans:
            items = self.items(split)
            if not items:
                raise DataError(f"split {split}", "0 items", "at least one")
            lengths = [self.data.length(item) for item in items]
            size, tokens = self.settings.batch_size, self.settings.tokens
            self._plans[split, world] = Plan(lengths, size=size, tokens=tokens, world=world, seed=self.seed)
        return self._plans[split, world]

    def batches(self, split: Split) -> Batches:
        return Batches(self.items(split), self.task.collate, self.tokenizer, self.seed, split)

    def longest(self, world: int = 1, rank: int = 0) -> dict[str, Any]:
        """The training batch that costs most, for the memory check."""
        return self.batches("train")[share(self.plan("train", world).longest(), -1, 0, rank, world)]

    def first(self, world: int = 1, rank: int = 0) -> dict[str, Any]:
        """The first batch that training will see."""
        return self.batches("train")[share(self.plan("train", world).batches(0)[0], 0, 0, rank, world)]

    def loader(self, split: Split, *, world: int = 1, rank: int = 0) -> DataLoader:
        train = split == "train"
        epoch, start = (self.epoch, self.start) if train else (0, 0)
        order = Order(self.plan(split, world), shuffle=train, epoch=epoch, start=start, rank=rank)
        workers = self.settings.workers
        return DataLoader(
            self.batches(split),
            batch_size=None,  # the key names a whole batch
            sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0 and split != "test",
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_is,
            # Without a generator of its own a loader draws a seed from the global one at each `iter`.
            generator=torch.Generator().manual_seed(derive(self.seed, "loader", split)),
        )

    def train_dataloader(self) -> DataLoader:
        return self.loader("train", world=self.trainer.world_size, rank=self.trainer.global_rank)

    def val_dataloader(self) -> DataLoader | list:
        if not self.items("val"):
            return []
        return self.loader("val", world=self.trainer.world_size, rank=self.trainer.global_rank)

    def state_dict(self) -> dict[str, int]:
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return {"epoch": self.trainer.current_epoch, "start": progress.current.completed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.start = state["epoch"], state["start"]


def _as_is(batch: Any) -> Any:
    return batch


def quiet() -> None:
    """Lightning's advice that does not hold here: loaders do resume, 0 workers is a choice, frozen norms eval."""
    advice = (".*your dataloader is not resumable.*", ".*does not have many workers.*", ".*in eval mode at the start.*")
    for text in advice:
        warnings.filterwarnings("ignore", text)
