"""The one LightningModule. It knows no domain: a backbone gives an Output, a task gives (sum of losses, items), and an
optimiser step uses their ratio over the whole accumulation and all ranks.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from core.adapters import network, together
from core.adapters.base import Method
from core.adapters.probe import keeping
from core.contracts import Metric, Output, Task
from core.errors import AdapterError, FingerprintError, Problem, TrainingError
from core.training.optim import Optim


class Step(NamedTuple):
    """One optimiser step, over all ranks: mean loss per item, items, examples; the methods' own penalty beside it."""

    loss: float
    items: float
    examples: int
    penalty: float | None = None


class PeftModule(L.LightningModule):
    """Trains `tensors` of `model` and nothing else.

    model         adapted backbone: `model(batch) -> Output`; the head lies inside its adapter
    tensors       key -> parameter, as `core.adapters.trainable` gives them; a head's keys begin with `head|`
    head          what `task.loss` and `task.predict` get
    fingerprint   of the base; a checkpoint of another base is refused
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optim: Optim,
        *,
        tensors: dict[str, nn.Parameter],
        head: nn.Module | None = None,
        fingerprint: str = "",
    ):
        super().__init__()
        self.model, self.task = model, task
        self.optim, self.tensors, self.fingerprint = optim, tensors, fingerprint
        self.__dict__["head"] = head  # a plain reference: its owner is the adapter
        self.strict_loading = False  # our own check in on_load_checkpoint is the strict one
        net = network(model)
        trained = {id(p) for p in tensors.values()}
        self.base_trains = any(id(p) in trained for p in _outside_adapters(net, model, "parameters"))
        only_head = bool(tensors) and all(key.startswith("head|") for key in tensors)
        self.frozen_backbone = only_head and not getattr(model, "reads_head", False)
        self.frozen_norms = [] if self.base_trains else frozen_statistics(model)
        self.window: list[tuple[Tensor, Tensor, int, list]] = []  # of the running accumulation, this rank's
        self.step: Step | None = None
        self.last_finite: Step | None = None
        self.rows: list[dict[str, Any]] = []
        self.val_loss: list[tuple[float, float]] = []
        self.validation: dict[str, Metric] = {}

    # ------------------------------------------------------------------ modes and state

    def train(self, mode: bool = True):
        """Norm layers with running statistics stay in eval mode unless the base is trained: frozen means bit-equal."""
        super().train(mode)
        for module in self.frozen_norms if mode else []:
            module.eval()
        return self

    def carried(self) -> dict[str, Tensor]:
        """Every tensor that training may change: trained parameters, buffers of adapter, head and a trained base."""
        trained = {id(p) for p in self.tensors.values()}
        found = {name: p for name, p in self.model.named_parameters() if id(p) in trained}
        net = network(self.model)
        base = set() if self.base_trains else {id(b) for b in _outside_adapters(net, self.model, "buffers")}
        kept = set(self.model.state_dict(keep_vars=True))  # leaves out the buffers that are not persistent
        state = together.resumable(self.model)
        found.update(
            (n, b) for n, b in self.model.named_buffers() if id(b) not in base and (n in kept or id(b) in state)
        )
        return {name: tensor.detach() for name, tensor in found.items()}

    def carry(self, tensors: dict[str, Tensor], where: str) -> None:
        """Put saved values back. AdapterError lists missing, foreign, mis-shaped tensors; nothing is changed then."""
        self.make_room(tensors)
        here = self.carried()
        problems = [Problem(f"{where}: {n}", "missing") for n in here.keys() - tensors.keys()]
        problems += [Problem(f"{where}: {n}", "unknown tensor") for n in tensors.keys() - here.keys()]
        problems += [
            Problem(f"{where}: {n}", str(tuple(tensors[n].shape)), str(tuple(here[n].shape)))
            for n in here.keys() & tensors.keys()
            if tensors[n].shape != here[n].shape
        ]
        if problems:
            raise AdapterError(problems=sorted(problems)[:20])
        for name, tensor in here.items():
            tensor.copy_(tensors[name])

    def make_room(self, tensors: dict[str, Tensor]) -> None:
        """Let methods whose data decided their shapes take the tensors of a checkpoint."""
        for prefix, method in self.model.named_modules():
            if isinstance(method, Method):
                own = {
                    n.removeprefix(f"{prefix}."): tuple(t.shape)
                    for n, t in tensors.items()
                    if n.startswith(f"{prefix}.")
                }
                if own:
                    method.make_room(own)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.carried()
        checkpoint["base"] = self.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["base"] != self.fingerprint:
            raise FingerprintError("checkpoint", f"base {checkpoint['base']}", f"base {self.fingerprint}")
        self.carry(checkpoint["state_dict"], "checkpoint")
        checkpoint["state_dict"] = {}

    # ------------------------------------------------------------------ training

    def forward(self, batch: dict[str, Any]) -> Output:
        """The backbone's output; where only a head trains, nothing is kept for a backward pass."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_backbone):
            return self.model(batch)

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """(sum of the losses, items) of one batch; both 0 for a batch that only fills a rank's place."""
        total, count = self.task.loss(self(batch), batch, self.head)
        count = torch.as_tensor(count, device=total.device)
        weight = batch.get("weight", 1.0)
        return (total, count) if weight == 1.0 else (total * weight, count * weight)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.clock = time.perf_counter()  # after every callback's hook, so that saving a checkpoint is not timed

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.step = None
        total, count = self.losses(batch)
        ids = [str(i) for i in batch.get("ids", [])] if batch.get("weight", 1.0) else []
        self.window.append((total.detach(), count.detach(), len(ids), ids))
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn gradients of sums into gradients of the mean over all items of the accumulation and all ranks.

        Lightning has divided each loss by the accumulation, DDP the gradients by the ranks: both are undone, before
        clipping. TrainingError: a loss or gradient that is not finite; the parameters are still the last good ones.
        """
        real = torch.float32 if self.device.type == "mps" else torch.float64
        window = [torch.stack([t.to(real), n.to(real), n.new_tensor(k).to(real)]) for t, n, k, _ in self.window]
        local = torch.stack(window).sum(0)
        ranks = self.trainer.world_size
        world = self.trainer.strategy.reduce(local.clone(), reduce_op="sum") if ranks > 1 else local
        total, items, examples = world.tolist()
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        factor = self.trainer.accumulate_grad_batches * ranks / max(items, 1e-12) if items else 0.0
        torch._foreach_mul_([p.grad for p in params], factor)
        penalty = self._penalise()
        if not torch.isfinite(world).all():
            self._stop("loss", total)
        # A gradient scaler (fp16) meets infinities by design and skips those steps itself.
        norms = torch.stack(torch._foreach_norm([p.grad for p in params])) if params else world
        finite = bool(torch.isfinite(norms).all())
        if getattr(self.trainer.precision_plugin, "scaler", None) is None and not finite:
            self._stop("gradient", float(norms.sum()))
        self.step = self.last_finite = Step(total / items if items else 0.0, items, int(examples), penalty)
        self.window = []
        if finite:
            together.adjust(self.model, self.trainer.global_step, int(self.trainer.estimated_stepping_batches))

    def _penalise(self) -> float | None:
        """The methods' own term of the loss, once per optimiser step; its gradients join those of the mean loss."""
        with torch.enable_grad():
            term = together.penalty(self.model)
        if term is None:
            return None
        trained = [p for p in self.tensors.values() if p.requires_grad]
        for p, gradient in zip(trained, torch.autograd.grad(term, trained, allow_unused=True), strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return float(term)

    def _stop(self, what: str, value: float) -> None:
        """Every rank comes here together: the sums are global, and DDP has averaged the gradients."""
        bad = [ids for total, _, _, ids in self.window if what == "gradient" or not torch.isfinite(total)]
        ids = [i for batch in bad for i in batch]
        if self.trainer.world_size > 1:
            everyone: list = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, ids)
            ids = [i for rank in everyone for i in rank]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        last = f"{self.last_finite.loss:.6g}" if self.last_finite else "none"
        self.window = []
        raise TrainingError(
            f"step {self.trainer.global_step + 1}, batch {shown}",
            f"{what} {value}; last finite loss {last}",
            "finite numbers; the last good checkpoint is kept",
            "a smaller optim.lr, or look at these items",
        )

    def configure_optimizers(self):
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optim.build(self.tensors, steps, self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_end(self) -> None:
        """A rule may have frozen some tensors for a while; torch computes other last bits for those."""
        for p in self.tensors.values():
            p.requires_grad_(True)

    # ------------------------------------------------------------------ validation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        rows, loss = self.evaluate(batch)
        self.rows += rows
        self.val_loss.append(loss)

    def evaluate(self, batch: dict[str, Any]) -> tuple[list[dict[str, Any]], tuple[float, float]]:
        """(prediction rows, (sum of the losses, items)) of one validation batch, without gradients."""
        if not batch.get("weight", 1.0):
            return [], (0.0, 0.0)
        output = self(batch)
        total, count = self.task.loss(output, batch, self.head)
        rows = self.task.infer(self.model, batch, self.head, output, final=False)
        return list(rows), (float(total), float(count))

    def on_validation_epoch_end(self) -> None:
        rows, losses = self.rows, self.val_loss
        self.rows, self.val_loss = [], []
        if self.trainer.world_size > 1:
            everyone: list = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, (rows, losses))
            rows = [row for part, _ in everyone for row in part]
            losses = [loss for _, part in everyone for loss in part]
        rows = in_order(rows, self.trainer.datamodule.items("val"))
        total, items = (sum(column) for column in zip(*losses, strict=True)) if losses else (0.0, 0.0)
        self.validation = {"loss": Metric(total / items if items else float("nan"), "", False, int(items))}
        self.validation |= self.task.score(rows)
        for name, metric in self.validation.items():
            self.log(f"val/{name}", float(metric.value), logger=False)  # for Lightning's own callbacks


def in_order(rows: list[dict[str, Any]], items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prediction rows in the order of the items, each with its item's `group`."""
    place = {str(item["id"]): (at, str(item.get("group", item["id"]))) for at, item in enumerate(items)}
    rows = sorted(rows, key=lambda row: place[str(row["id"])][0])
    for row in rows:
        row.setdefault("group", place[str(row["id"])][1])
    return rows


def frozen_statistics(model: nn.Module) -> list[nn.Module]:
    """Modules of the base that keep in buffers what they have seen."""
    return keeping(_outside_adapters(network(model), model, "modules"))


def _outside_adapters(net: nn.Module, model: nn.Module, what: str) -> list:
    """Modules, parameters or buffers of the network that no adapter brought."""
    state = getattr(model, "_peft", None)
    brought = {id(x) for x in getattr(state, what)()} if isinstance(state, nn.Module) else set()
    return [x for x in getattr(net, what)() if id(x) not in brought]


def base_tensors(model: nn.Module) -> list[Tensor]:
    """Frozen parameters and all buffers of the base, in a fixed order."""
    net = network(model)
    frozen = [p for p in _outside_adapters(net, model, "parameters") if not p.requires_grad]
    return frozen + _outside_adapters(net, model, "buffers")
