"""The methods' own penalty and `adjust` in training: once per optimiser step, whatever the accumulation."""

import pytest
import torch

from core.adapters import attach, head, trainable
from core.adapters.methods.lora import LoRA
from core.training.module import PeftModule
from core.training.optim import Optim
from tests.core.training import toy
from tests.core.training.test_module import Gradients, fit, rows


class Pulled(LoRA):
    """LoRA that is pulled to zero, and counts."""

    seen: list = []

    def penalty(self):
        return 3 * self.A.square().sum()

    @classmethod
    def adjust(cls, methods, step, steps):
        cls.seen.append((len(methods), step, steps, methods[0].A.grad.clone()))


def trained(method, accumulate, size, steps=1, clip=None):
    torch.manual_seed(0)
    backbone, task, data = toy.Toy(dropout=0.0), toy.ToyTask(noise=0.0), toy.ToyData()
    data.setup()
    data.splits["train"] = rows()
    attach(backbone, method, head=task.head(backbone), seed=1, targets=["mlp"], rank=2)
    module = PeftModule(backbone, task, Optim(lr=0.05), tensors=trainable(backbone), head=head(backbone))
    start = {key: p.detach().clone() for key, p in module.tensors.items()}
    watch = Gradients()
    fit(module, data, steps=steps, accumulate=accumulate, batch_size=size, callbacks=[watch], clip=clip)
    return module, start, watch


@pytest.fixture(autouse=True)
def _forget():
    Pulled.seen = []


@pytest.mark.parametrize(("accumulate", "size"), [(1, 8), (2, 4), (4, 2)])
def test_a_penalty_counts_once_per_step(accumulate, size):
    """gradient = that of the mean loss + 2 * 3 A, to rounding, for one batch and for the same items in parts."""
    _, _, plain = trained(LoRA, accumulate, size)
    _, start, pulled = trained(Pulled, accumulate, size)
    for key, gradient in pulled.found.items():
        own = 6 * start[key] if key.endswith("|A") else 0
        assert torch.allclose(gradient, plain.found[key] + own, rtol=1e-5, atol=1e-6), key
    assert pulled.step.loss == pytest.approx(plain.step.loss, rel=1e-6), "the loss is shown without it"
    A = [value for key, value in start.items() if key.endswith("|A")]
    assert pulled.step.penalty == pytest.approx(sum(3 * float(a.square().sum()) for a in A), rel=1e-6)
    assert plain.step.penalty is None


def test_adjust_sees_every_step_once_before_it_is_clipped():
    trained(Pulled, accumulate=2, size=2, steps=4, clip=1e-3)
    assert [(count, step, steps) for count, step, steps, _ in Pulled.seen] == [(2, t, 4) for t in range(4)]
    assert all(float(gradient.norm()) > 0.1 for *_, gradient in Pulled.seen)


def test_a_resting_adapter_has_no_say():
    from core.adapters import set_active, together

    backbone = toy.Toy()
    attach(backbone, Pulled, targets=["mlp"], rank=2)
    attach(backbone, LoRA, name="other", targets=["mlp"], rank=2)
    assert together.penalty(backbone) is None
    set_active(backbone, "default")
    A = [method.A for _, method in together.bound_methods(backbone, "default")]
    assert float(together.penalty(backbone).detach()) == pytest.approx(
        sum(3 * float(a.detach().square().sum()) for a in A)
    )
