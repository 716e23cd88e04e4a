"""A small world for the training layer: a backbone with batch norm and dropout, noisy items of several lengths, a task.

Run as a program it is a server that trains in forked children, so that tests can kill them: see `serve`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.contracts import Audit, Backbone, Data, Metric, Output, Task

WIDTH = 12


class Net(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(2)])
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        h = self.norm(self.embed(x).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            h = h + self.drop(block(h))
        return h


class Toy(Backbone):
    roles = {"mlp": "blocks.*.0", "norm": "norm", "block": "blocks.*"}
    width = WIDTH
    tokenizer = None

    def __init__(self, seed: int = 0, pretrained: bool = True, dropout: float = 0.1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = Net(dropout)

    def example(self):
        return ({"x": torch.ones(2, 3, 4), "mask": torch.ones(2, 3, dtype=torch.bool)},), {}

    def forward(self, batch):
        return Output(hidden=self.net(batch["x"]), mask=batch["mask"])


class ToyData(Data):
    """Sequences of 2 to 9 vectors; the target is linear in their mean. `bad` puts a NaN into one training item."""

    kind = "twin"

    def __init__(self, size: int = 40, seed: int = 0, bad: bool = False):
        self.size, self.seed, self.bad = size, seed, bad

    def setup(self):
        draw = np.random.default_rng(self.seed)
        w = draw.normal(size=4)
        self.splits = {}
        for split, size in (("train", self.size), ("val", 10), ("test", 12)):
            rows = []
            for i in range(size):
                x = draw.normal(size=(int(draw.integers(2, 10)), 4)).astype(np.float32)
                rows.append({"id": f"{split}{i}", "group": f"{split}{i // 2}", "x": x, "y": float(x.mean(0) @ w)})
            self.splits[split] = rows
        if self.bad:
            self.splits["train"][7]["y"] = float("nan")

    def items(self, split):
        return self.splits[split]

    def length(self, item):
        return len(item["x"])

    def audit(self):
        return Audit(facts={"items": {k: len(v) for k, v in self.splits.items()}})


class ToyTask(Task):
    """Regression; the noise that `collate` adds comes from all three global generators."""

    metric, mode = "error", "min"

    def __init__(self, noise: float = 0.1):
        super().__init__()
        self.noise = noise

    def check(self, data, backbone):
        pass

    def head(self, backbone):
        return nn.Linear(backbone.width, 1)

    def collate(self, items, tokenizer):
        longest = max(len(i["x"]) for i in items)
        x, mask = torch.zeros(len(items), longest, 4), torch.zeros(len(items), longest, dtype=torch.bool)
        for row, item in enumerate(items):
            n = len(item["x"])
            jitter = random.random() + np.random.rand() + torch.rand(1).item() - 1.5
            x[row, :n] = torch.from_numpy(item["x"]) + self.noise * jitter
            mask[row, :n] = True
        y = torch.tensor([i["y"] for i in items])
        return {"ids": [i["id"] for i in items], "x": x, "mask": mask, "y": y}

    def _values(self, output, head):
        weights = output.mask.unsqueeze(-1).float()
        return head((output.hidden.float() * weights).sum(1) / weights.sum(1)).squeeze(-1)

    def loss(self, output, batch, head):
        # Items of a batch count as often as they have tokens: batches of equal size then have unequal counts.
        counts = output.mask.sum(1)
        return ((self._values(output, head) - batch["y"]) ** 2 * counts).sum(), counts.sum()

    def predict(self, output, batch, head):
        values = self._values(output, head)
        for i, value, truth in zip(batch["ids"], values.tolist(), batch["y"].tolist(), strict=True):
            yield {"id": i, "prediction": value, "truth": truth}

    def score(self, rows):
        for row in rows:
            row["score"] = (row["prediction"] - row["truth"]) ** 2
        return {"error": Metric(float(np.mean([r["score"] for r in rows])), "", False, len(rows))}

    def baselines(self, data):
        mean = float(np.mean([i["y"] for i in data.items("train")]))
        return {"mean": [{"id": i["id"], "prediction": mean, "truth": i["y"]} for i in data.items("test")]}


class SlowTask(ToyTask):
    """Answers in a second pass, is watched by its loss in validation, and remembers what the base said of zeros."""

    metric, mode, watch, retained = "error", "min", ("quick", "min"), "answer_to_zeros"

    def infer(self, model, batch, head, output=None, *, final=True):
        rows = self.predict(model({**batch, "x": batch["x"]}) if final else output, batch, head)
        return [{**row, "final": final} for row in rows]

    def score(self, rows):
        name = "error" if all(row["final"] for row in rows) else "quick"
        return {name: super().score(rows)["error"]}

    def baselines(self, data):
        return {}

    def retention(self, model, data):
        return Metric(float(model.net(torch.zeros(1, 2, 4)).abs().mean()), "V", False, 2)


def config(directory: Path, **changes) -> dict:
    """A whole config, as Hydra would compose it; `changes` are dotted keys with __ for the dot."""
    here = "tests.core.training.toy"
    cfg = {
        "seed": 0,
        "domain": "toy",
        "threads": 1,
        "metric": None,
        "sweep": None,
        "backbone": {"_target_": f"{here}.Toy"},
        "data": {"_target_": f"{here}.ToyData"},
        "task": {"_target_": f"{here}.ToyTask"},
        "adapter": {"_target_": "core.adapters.methods.lora.LoRA", "targets": ["mlp"], "rank": 2, "dropout": 0.1},
        "optim": {"lr": 0.02, "weight_decay": 0.01, "schedule": "cosine", "warmup": 3},
        "loader": {"batch_size": 4, "tokens": None, "workers": 0},
        "trainer": {"max_steps": 12, "accelerator": "cpu", "devices": 1, "precision": "32-true",
                    "gradient_clip_val": 1.0, "accumulate_grad_batches": 2},
        "run": {"fit": True, "test": True, "resume": "auto", "limit": None, "audit": "gate"},
        "choices": {"adapter": "lora", "backbone": "toy", "data": "toydata", "task": "toytask", "optim": "adamw"},
    }  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split("__")
        node = cfg
        for name in path:
            node = node[name]
        node[last] = value
    return cfg


def die_at(batch: int) -> None:
    """kill -9 in the training step of that batch (counted over the whole run)."""
    from core.training import module

    real = module.PeftModule.training_step

    def step(self, *args):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == batch:
            os.kill(os.getpid(), 9)
        return real(self, *args)

    module.PeftModule.training_step = step


def die_in_step(count: int) -> None:
    """kill -9 in this process's training step number `count`."""
    _die_in("training_step", count)


def die_in_validation(count: int) -> None:
    """kill -9 in this process's validation step number `count`."""
    _die_in("validation_step", count)


def _die_in(name: str, count: int) -> None:
    from core.training import module

    real, seen = getattr(module.PeftModule, name), []

    def step(self, *args):
        seen.append(name)
        if len(seen) == count:
            os.kill(os.getpid(), 9)
        return real(self, *args)

    setattr(module.PeftModule, name, step)


def signal_at(batch: int) -> None:
    """SIGTERM, as a scheduler sends it, in the training step of that batch."""
    from core.training import module

    real = module.PeftModule.training_step

    def step(self, *args):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    module.PeftModule.training_step = step


def disk_full_at(batch: int) -> None:
    """From that batch on no file may grow beyond 6 kB: the system refuses the checkpoint's write."""
    import resource

    from core.training import module

    real = module.PeftModule.training_step

    def step(self, *args):
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == batch:
            for stream in (1, 2):  # the tests' own log is not on that disk
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        return real(self, *args)

    module.PeftModule.training_step = step


def die_in_write(count: int) -> None:
    """kill -9 between the two renames of the checkpoint number `count`: `last` is then missing."""
    from core.training import files

    real, seen = os.replace, []

    def replace(source, target):
        if Path(target).name == "last.safetensors":
            seen.append(target)
            if len(seen) == count:
                os.kill(os.getpid(), 9)
        real(source, target)

    files.os.replace = replace


def serve() -> None:
    """For each line `{"directory", "faults": {name: number}}` of stdin: train in a forked child, answer its status.

    One process pays for the imports; children can be killed."""
    from omegaconf import OmegaConf

    from core.errors import PeftError
    from core.training import run

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run prints is not an answer
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for name, number in order.get("faults", {}).items():
                    globals()[name](number)
                directory = Path(order["directory"])
                run.run(OmegaConf.load(directory / "config.yaml"), directory)
                code = 0
            except PeftError as error:
                print(error, file=sys.stderr)
                code = error.code
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


if __name__ == "__main__":
    serve()
