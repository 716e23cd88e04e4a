"""The module's promises: frozen is bit-equal, an accumulation is one big batch, a bad item is named."""

import copy

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import nn

from core.adapters import attach, head, trainable
from core.adapters.cost import saved_bytes
from core.contracts import Output
from core.data.loading import Loader, Loaders
from core.errors import TrainingError
from core.training import assemble, progress
from core.training.files import SafeIO
from core.training.module import PeftModule, base_tensors
from core.training.optim import Optim
from tests.core.training import toy


def built(method="lora", optim=None, **options):
    if method == "lora":
        options = {"targets": ["mlp"], "rank": 2} | options
    torch.manual_seed(0)
    backbone, task, data = toy.Toy(), toy.ToyTask(noise=0.0), toy.ToyData()
    data.setup()
    attach(backbone, method, head=task.head(backbone), seed=1, **options)
    tensors = trainable(backbone)
    return PeftModule(backbone, task, optim or Optim(lr=0.05), tensors=tensors, head=head(backbone)), data


def fit(module, data, steps=4, accumulate=1, batch_size=4, clip=None, callbacks=()):
    loaders = Loaders(data, module.task, None, Loader(batch_size=batch_size))
    torch.manual_seed(0)
    trainer = L.Trainer(
        max_steps=steps, accumulate_grad_batches=accumulate, accelerator="cpu", devices=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=clip,
        limit_val_batches=0, use_distributed_sampler=False, plugins=[SafeIO()], enable_checkpointing=False,
        callbacks=list(callbacks),
    )  # fmt: skip
    module.train()
    trainer.fit(module, datamodule=loaders)
    return trainer


@pytest.mark.parametrize("method", ["none", "bitfit", "lora", "norm"])
def test_frozen_base_is_bit_equal_with_its_statistics(method):
    module, data = built(method)
    before = [t.clone() for t in base_tensors(module.model)]
    values = {key: p.detach().clone() for key, p in module.tensors.items()}
    assert any("running_mean" in name for name, _ in module.model.named_buffers())
    fit(module, data)
    assert all(torch.equal(a, b) for a, b in zip(before, base_tensors(module.model), strict=True))
    assert not any(torch.equal(values[key], p) for key, p in module.tensors.items())


def test_full_moves_the_statistics():
    module, data = built("full")
    before = module.model.net.norm.running_mean.clone()
    fit(module, data)
    assert not torch.equal(before, module.model.net.norm.running_mean)
    assert "net.norm.running_mean" in module.carried()


class Gradients(Callback):
    """Of the first optimiser step, as the optimiser got them."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.found = {key: p.grad.clone() for key, p in module.tensors.items()}
        self.step = module.step


def rows():
    sizes = [2] * 4 + [9] * 4
    return [{"id": str(i), "x": np.full((n, 4), 0.1 * (i + 1), np.float32), "y": 1.0} for i, n in enumerate(sizes)]


def test_an_accumulation_is_one_big_batch():
    """4 items of 2 tokens and 4 of 9, as two batches of one step and as one batch: the same gradients, those of
    the plain mean over 44 tokens.

    A mean of two means would weigh the short batch 4.5 times as much: the batch alone shows how far that is off."""
    found = []
    for size, accumulate, count in ((4, 2, 8), (8, 1, 8), (4, 1, 4)):
        module, data = built()
        module.model.net.drop.p = 0.0
        data.splits["train"] = rows()[:count]
        watch = Gradients()
        fit(module, data, steps=1, accumulate=accumulate, batch_size=size, callbacks=[watch])
        found.append(watch)
    two, one, short = found
    assert two.step.items == one.step.items == 44 and two.step.examples == 8
    assert two.step.loss == pytest.approx(one.step.loss, rel=1e-6)
    module, _ = built()
    module.model.net.drop.p = 0.0
    total, count = module.train().losses(module.task.collate(rows(), None))
    plain = torch.autograd.grad(total / count, list(module.tensors.values()))
    for (key, expected), by_hand in zip(one.found.items(), plain, strict=True):
        assert torch.allclose(two.found[key], expected, rtol=1e-4, atol=1e-7), key
        assert torch.allclose(by_hand, expected, rtol=1e-4, atol=1e-7), key
    assert not torch.allclose(short.found["head|weight"], one.found["head|weight"], rtol=1e-2)


def test_a_bad_item_is_named_and_changes_nothing():
    module, data = built()
    data.splits["train"][7]["y"] = float("nan")
    history = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            history.append((module.step.loss, {k: p.detach().clone() for k, p in module.tensors.items()}))

    with pytest.raises(TrainingError) as caught:
        fit(module, data, steps=40, callbacks=[Watch()])
    text = str(caught.value)
    assert f"step {len(history) + 1}, batch " in text and "train7" in text
    assert f"loss nan; last finite loss {history[-1][0]:.6g}" in text
    assert all(torch.equal(history[-1][1][key], p) for key, p in module.tensors.items())


def test_probe_keeps_nothing_of_the_backbone():
    kept = {}
    for method in ("none", "lora"):
        module, data = built(method)
        batch = module.task.collate(data.items("train")[:8], None)
        kept[method] = saved_bytes(lambda m=module, b=batch: m.losses(b)[0], module)
    assert kept["none"] < 0.2 * kept["lora"]


def test_settings_leave_out_what_changes_no_bit(tmp_path):
    a = assemble.settings(OmegaConf.create(toy.config(tmp_path, loader__workers=2, run__test=False)))
    assert a == assemble.settings(OmegaConf.create(toy.config(tmp_path)))
    assert a != assemble.settings(OmegaConf.create(toy.config(tmp_path, seed=1)))


def test_train_mode_leaves_adapters_own_norms_alone():
    """Only the base's statistics are frozen; a head's batch norm learns its own."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(toy.WIDTH), nn.Linear(toy.WIDTH, 1)

    backbone = toy.Toy()
    attach(backbone, "none", head=Head())
    module = PeftModule(backbone, toy.ToyTask(), Optim(), tensors=trainable(backbone), head=head(backbone))
    module.train()
    assert not module.model.net.norm.training and head(backbone).norm.training and module.model.net.drop.training
    assert "running_mean" in " ".join(module.carried())
    assert isinstance(module(toy.ToyTask().collate(copy.deepcopy(toy_items()), None)), Output)


def toy_items():
    data = toy.ToyData()
    data.setup()
    return data.items("train")[:3]


@pytest.mark.parametrize(("seconds", "lines"), [(0.01, []), (1.0, ["30 %  layer 6/20  left 0:16", "40 %  layer 8/20"])])
def test_what_takes_long_says_how_far_it_is(monkeypatch, capsys, seconds, lines):
    now = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now) * seconds)
    assert list(progress.told(range(20), "layer")) == list(range(20))
    said = capsys.readouterr().out
    assert all(line in said for line in lines) and (lines or not said)
