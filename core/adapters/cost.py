"""What an adapter costs: parameters, bytes kept for the backward pass, floating-point operations.

Kept bytes are counted where autograd keeps them: every saved tensor's storage once, parameters left out. That is the
memory that grows with the batch, and the number in which methods differ most. Operations are counted on torch's
dispatcher, so those inside our own autograd functions count like any other (what they rebuild in the backward pass,
too); a multiply-add is two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from core.adapters.probe import Example, keeping, pristine, pseudo_loss
from core.adapters.seam import base_count


@dataclass(frozen=True)
class Cost:
    """Costs of one adapter, measured on one call of the example (its whole batch).

    trainable               parameters that train, head excluded       head_trainable   the head's
    total                   parameters of the base                     fraction         trainable / total
    adapter_bytes           size of the adapter's tensors, head included
    saved_activation_bytes  kept by autograd between forward and backward, train mode
    flops_forward, flops_backward   FLOP; a multiply-add is two
    """

    trainable: int
    head_trainable: int
    total: int
    fraction: float
    adapter_bytes: int
    saved_activation_bytes: int
    flops_forward: int
    flops_backward: int


class SavedBytes:
    """Context manager: `.bytes` kept for the backward pass by what runs inside, `model`'s own tensors left out."""

    def __init__(self, model: nn.Module):
        self.bytes, self._seen = 0, {_storage(t) for t in [*model.parameters(), *model.buffers()]}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and not tensor.is_meta and _storage(tensor) not in self._seen:
            self._seen.add(_storage(tensor))
            self.bytes += tensor.untyped_storage().nbytes()
        # Not the tensor itself: an operation that keeps its own output (softmax) would hold itself for ever.
        return tensor.detach()

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)


def saved_bytes(run: Callable[[], Any], model: nn.Module) -> int:
    """Bytes that autograd keeps after `run()`. Inputs count where they are kept, as checkpointing does."""
    with SavedBytes(model) as saved:
        _result = run()  # held: a freed storage's address would be used again
    return saved.bytes


def _storage(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _product(total, a, b, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(a) * b[-1]


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _sampled(places, a, b, *args, out_val=None, **kwargs) -> int:
    return 2 * places.values().numel() * a.shape[1]


_sampled._get_raw = True  # the tensors and not their shapes, which do not tell the places


def flop_counter() -> FlopCounterMode:
    """torch's counter, taught what it leaves out: products added in place or sampled, and attention's CPU kernel."""
    formulas = {
        "sparse_sampled_addmm": _sampled,
        "addmm_": _product,
        "baddbmm_": _product,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    }
    known = {getattr(torch.ops.aten, name, None): formula for name, formula in formulas.items()}
    taught = {op: formula for op, formula in known.items() if op is not None and op not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=taught)


def flops(run: Callable[[], Any]) -> tuple[int, int]:
    """(forward, backward) FLOP of `run()`, whose output is turned into a scalar for the backward pass."""
    with flop_counter() as counter:
        loss = pseudo_loss(run())
    forward = counter.get_total_flops()
    if loss is None:
        return forward, 0
    # Gradients are given back, not accumulated: measuring leaves `.grad` as it was.
    leaves = [t for t in _leaves(loss) if t.requires_grad]
    with flop_counter() as counter:
        torch.autograd.grad(loss, leaves, allow_unused=True)
    return forward, counter.get_total_flops()


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors in which the graph of `loss` ends."""
    found, seen, stack = [], set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [parent for parent, _ in node.next_functions]
    return found


def cost(model: nn.Module, name: str = "default") -> Cost:
    """What adapter `name` costs, acting alone, on the example's forward in train mode."""
    from core.adapters.io import adapter_tensors
    from core.adapters.model import network, state_of, trainable, use

    state, counts = state_of(model), trainable(model, name)
    run = Example(model, state.example if state.example is not None else model.example)
    with use(model, name):
        kept, forward, backward = measure(model, run)
    heads = sum(p.numel() for key, p in counts.items() if key.startswith("head|"))
    own = sum(p.numel() for p in counts.values()) - heads
    total = base_count(network(model))
    size = sum(t.nbytes for t in adapter_tensors(model, name).values())
    return Cost(own, heads, total, own / total, size, kept, forward, backward)


def measure(model: nn.Module, run: Callable[[], Any]) -> tuple[int, int, int]:
    """(kept bytes, forward FLOP, backward FLOP) of `run()` in train mode; buffers, flags and random numbers stay."""
    with pristine(model), torch.enable_grad():
        model.train()
        for module in keeping(model.modules()):  # frozen statistics do not move in training
            if not any(p.requires_grad for p in module.parameters()):
                module.eval()
        kept = saved_bytes(run, model)
        return kept, *flops(run)
