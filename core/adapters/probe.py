"""Watch how a network really uses a parameter, and prove that an adapter is alive.

Counting calls of a module is not enough: GPT-2's embedding is called *and* its tensor is read again by the tied head.
So the probe watches the tensor. A function mode sees every torch function that gets it, the module stack (global
hooks; per-module hooks would switch fused paths off) tells inside which module. Three modes, because
`nn.TransformerEncoderLayer` takes its fused kernel only in the third.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Without gradients first: a site that a fused kernel passes by moves before its gradient is asked for.
MODES = {"eval + no_grad": (False, False), "train": (True, True), "eval": (False, True)}  # name -> (train, grad)

# Looking at a tensor is not using it: several backbones read `weight.dtype` to cast their input.
_METADATA = {
    "shape", "dtype", "device", "requires_grad", "ndim", "is_cuda", "layout", "is_leaf", "grad_fn", "grad",
    "names", "is_meta", "is_sparse", "is_quantized", "itemsize", "nbytes", "size", "dim", "numel",
    "is_floating_point", "is_complex", "stride", "element_size", "__repr__", "data_ptr", "untyped_storage",
    "is_contiguous", "get_device", "register_hook",
}  # fmt: skip


class Uses(TorchFunctionMode):
    """`seen[tensor id]` = the modules inside which a torch function got that tensor (None: outside every module)."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.watched = {id(t) for t in tensors}
        self.seen: dict[int, set] = defaultdict(set)
        self.stack: list[nn.Module] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        owner = getattr(getattr(function, "__self__", None), "__name__", "")  # the property behind a `__get__`
        if name not in _METADATA and not (name == "__get__" and owner in _METADATA):
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.watched and isinstance(leaf, Tensor):
                    self.seen[id(leaf)].add(self.stack[-1] if self.stack else None)
        return function(*args, **kwargs)

    def __enter__(self):
        self.handles = [
            global_hooks.register_module_forward_pre_hook(lambda m, args: self.stack.append(m)),
            global_hooks.register_module_forward_hook(lambda m, args, out: self.stack.pop() and None, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*error)


def keeping(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those whose forward moves buffers in training: batch norms their statistics, spectral norms their vectors. A
    frozen base keeps them in eval, or it would drift under its adapters."""

    def drifts(module):
        hooks = (*module._forward_pre_hooks.values(), module)
        spectral = any("SpectralNorm" in type(h).__name__ for h in hooks)
        return spectral or getattr(module, "running_mean", None) is not None

    return [module for module in modules if drifts(module)]


def rest(modules: Iterable[nn.Module]) -> None:
    """Keep them in eval whatever `train()` says, until `unrest`: `model.train()` is everybody's first line."""
    for module in keeping(modules):
        module.eval()
        if _in_eval not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_in_eval, prepend=True)


def unrest(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _in_eval]:
            del module._forward_pre_hooks[key]


def _in_eval(module: nn.Module, args: tuple) -> None:
    if module.training:
        module.training = False


@contextmanager
def pristine(model: nn.Module):
    """Buffers, random numbers and train flags are afterwards as they were: a train-mode probe moves BatchNorm's."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    flags = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers and buffers[name].shape == buffer.shape:
                        buffer.copy_(buffers[name])
            for module, training in flags:
                module.training = training


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


class Example:
    """`model(*args, **kwargs)` on tensors moved to the model's device."""

    def __init__(self, model: nn.Module, example: tuple[tuple, dict] | Callable):
        self.model, self.example = model, example

    def __call__(self) -> Any:
        args, kwargs = self.example() if callable(self.example) else self.example
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), (tuple(args), dict(kwargs)))
        return self.model(*args, **kwargs)


def in_modes(model: nn.Module, run: Callable[[str], None]) -> None:
    """Call `run(mode)` in each of the three modes, leaving the model as it was."""
    with pristine(model):
        for mode, (training, grad) in MODES.items():
            model.train(training)
            for module in keeping(model.modules()):
                module.eval()
            with torch.set_grad_enabled(grad):
                run(mode)


def calls(
    net: nn.Module, paths: Iterable[str], example: Callable, note: Callable[[str, tuple, dict, Any], None]
) -> None:
    """One pass in eval without gradients; note(path, args, kwargs, output) at every call of a module at `paths`."""
    handles = [
        net.get_submodule(path).register_forward_hook(
            lambda module, args, kwargs, out, path=path: note(path, args, kwargs, out), with_kwargs=True
        )
        for path in paths
    ]
    try:
        with pristine(example.model), torch.no_grad():
            example.model.eval()
            example()
    finally:
        for handle in handles:
            handle.remove()


def watch(model: nn.Module, tensors: list[Tensor], example: Callable) -> dict[int, dict[str, set]]:
    """tensor id -> mode -> modules that use the tensor there. A tensor that is used nowhere has no entry."""
    found: dict[int, dict[str, set]] = defaultdict(dict)

    def run(mode):
        with Uses(tensors) as uses:
            example()
        for key, modules in uses.seen.items():
            found[key][mode] = modules

    in_modes(model, run)
    return dict(found)


def floats(output: Any) -> list[Tensor]:
    """All floating-point tensors of an output, whatever its container."""
    if hasattr(output, "keys") and not isinstance(output, dict):
        output = dict(output)
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def pseudo_loss(output: Any) -> Tensor | None:
    """A scalar in which every output element has its own weight, so that nothing cancels."""
    leaves = [t for t in floats(output) if t.requires_grad]
    total = None
    for t in leaves:
        ramp = torch.linspace(0.5, 1.5, t.numel(), device=t.device).view(t.shape)
        part = (t.float() * ramp).sum()
        total = part if total is None else total + part
    return total


def relative(a: Any, b: Any) -> float:
    """max |a - b| / max |b| over all float outputs."""
    pairs = list(zip(floats(a), floats(b), strict=True))
    scale = max((float(y.detach().abs().max()) for _, y in pairs if y.numel()), default=0.0)
    worst = max(
        (float((x.detach().float() - y.detach().float()).abs().max()) for x, y in pairs if x.numel()), default=0.0
    )
    return worst / max(scale, 1e-12)
