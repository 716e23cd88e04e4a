"""AdaLoRA.  W' = W + s P diag(l m) Q,  m in {0, 1} per triplet        s = alpha / r
Zhang et al. 2023, arXiv 2303.10512
Parameters  r (in + out + 1) per site; of all triplets of all sites `target_rank` times the sites act at the end.
Start       l = 0, so W' = W to the bit; P, Q ~ N(0, 0.02).
Training    penalty  gamma (||P^T P - I||^2 + ||Q Q^T - I||^2), summed over sites, keeps triplets apart.
            budget   b(t) = b_0 until t_i; b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3; b_T in the last t_f
                     steps. The b(t) triplets of largest importance act: m = 1; the others lose their l.
            importance of a triplet: that of l plus the means of those of its column of P and row of Q; of a number w:
                     I U,  I <- b I + (1 - b) |w g|,  U <- b U + (1 - b) | |w g| - I |,  g its gradient.
Differs     t_i and t_f are shares of the run (`warmup`, `settled`), not counts of steps.
Hosts       all but embeddings, whose Q would be as wide as the table.
Shapes      W (out, in)   P (out, r)   l, m (r)   Q (r, in)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import Factors
from core.adapters.low_rank import LowRankMethod, room
from core.adapters.peft_form import LINEAR, PeftForm, capped

TRAINED = ("P", "l", "Q")


class AdaLoRA(LowRankMethod):
    resumes = tuple(f"{kind}_{name}" for kind in ("average", "spread") for name in TRAINED)

    def __init__(
        self,
        W,
        *,
        rank: int = 12,
        target_rank: int = 8,
        alpha: float = 16.0,
        gamma: float = 0.1,
        warmup: float = 0.1,
        settled: float = 0.3,
        every: int = 10,
        beta: float = 0.85,
    ):
        super().__init__()
        rows = room(W, rank)
        self.P = nn.Parameter(torch.empty(W.shape[0], rows).normal_(std=0.02).to(W))
        self.l = nn.Parameter(W.new_zeros(rows))
        self.Q = nn.Parameter(torch.empty(rows, W.shape[1]).normal_(std=0.02).to(W))
        self.register_buffer("m", W.new_ones(rows))
        for name in TRAINED:
            for kind in ("average", "spread"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(getattr(self, name).data), persistent=False)
        self.scale, self.target, self.gamma = alpha / rank, min(target_rank, rows), gamma
        self.warmup, self.settled, self.every, self.beta = warmup, settled, every, beta

    def acting(self):
        """(r,) l m, whose gradient reaches the l of silent triplets too: they can come back."""
        return self.l + (self.l * (self.m - 1)).detach()

    def weight(self, W):
        return W + self.scale * (self.P * self.acting()) @ self.Q

    def factors(self):
        return Factors(self.Q, self.P * self.acting(), self.scale)

    def penalty(self):
        eye = torch.eye(len(self.l), device=self.l.device, dtype=self.l.dtype)
        squares = (self.P.T @ self.P - eye).square().sum() + (self.Q @ self.Q.T - eye).square().sum()
        return self.gamma * squares if self.gamma else None

    @classmethod
    def adjust(cls, methods, step, steps):
        first = methods[0]
        for method in methods:
            method.silence()
            method.note()
        start, end = int(first.warmup * steps), min(steps - 1, steps - int(first.settled * steps))
        if step > end:
            return
        if step == end or (step >= start and (step - start) % first.every == 0):
            total, last = sum(len(method.l) for method in methods), sum(method.target for method in methods)
            choose(methods, budget(step, start, end, total, last))
        else:  # between two choices every triplet acts
            for method in methods:
                method.m.fill_(1)

    def silence(self):
        """What the last choice left out starts from 0."""
        self.l.mul_(self.m)

    def note(self):
        for name in TRAINED:
            w = getattr(self, name)
            if w.grad is None:
                continue
            size, average = (w * w.grad).abs(), getattr(self, f"average_{name}")
            average.lerp_(size, 1 - self.beta)
            getattr(self, f"spread_{name}").lerp_((size - average).abs(), 1 - self.beta)

    def importance(self):
        """(r,)"""
        column, own, row = (getattr(self, f"average_{name}") * getattr(self, f"spread_{name}") for name in TRAINED)
        return own + column.mean(0) + row.mean(1)

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return "AdaLoRA's Q would be as wide as the table, and its penalty with it: use lora"
        if not 1 <= options["target_rank"] <= options["rank"]:
            return f"target_rank {options['target_rank']}: 1 to rank, {options['rank']}"
        if not (options["warmup"] >= 0 and options["settled"] >= 0 and options["warmup"] + options["settled"] <= 1):
            return f"warmup {options['warmup']}, settled {options['settled']}: shares of a run, together at most 1"
        if not (0 < options["beta"] < 1 and options["every"] >= 1 and options["gamma"] >= 0):
            given = ", ".join(f"{name} {options[name]}" for name in ("beta", "every", "gamma"))
            return f"{given}: 0 < beta < 1, every 1 or more, gamma 0 or more"
        return super().refuses(host, shape, options)


def budget(step: int, start: int, end: int, total: int, last: int) -> int:
    """b(t): triplets of all sites that act."""
    if step < start:
        return total
    return last if step >= end else int(last + (total - last) * (1 - (step - start) / (end - start)) ** 3)


def choose(methods: list[AdaLoRA], count: int) -> None:
    """m = 1 for the `count` triplets of largest importance of all sites."""
    scores = torch.cat([method.importance() for method in methods])
    chosen = torch.zeros_like(scores)
    chosen[torch.argsort(scores, descending=True, stable=True)[:count]] = 1
    for method, m in zip(methods, chosen.split([len(method.m) for method in methods]), strict=True):
        method.m.copy_(m)


# In Hugging Face peft: the scale is alpha / (r + 1e-5), and pruned folders hold the triplets that are left.


def _write(place, options):
    method = place.methods[0]
    lam = method.l * method.m * (method.scale * (len(method.l) + 1e-5) / options["alpha"])
    return {"lora_A": method.Q, "lora_B": method.P, "lora_E": lam[:, None]}


def _read(config, tensors, shapes):
    rank = max(len(own["lora_E"]) for own in tensors.values())
    fill = {}
    for path, own in tensors.items():
        kept = len(own["lora_E"])
        pad = rank - kept
        fill[path] = {
            "Q": F.pad(own["lora_A"], (0, 0, 0, pad)),
            "P": F.pad(own["lora_B"], (0, pad)),
            "l": F.pad(own["lora_E"].flatten() * (rank / (kept + 1e-5)), (0, pad)),
        }
    given = {"rank": rank, "target_rank": min(config.get("target_r", rank), rank), "alpha": config["lora_alpha"]}
    return given, fill


AdaLoRA.peft = PeftForm(
    "ADALORA",
    names=("lora_A", "lora_B", "lora_E"),
    keys={"init_r": "rank", "target_r": "target_rank", "lora_alpha": "alpha"},
    writes={"total_step": 1},  # it must be named; nothing is pruned without training there
    hosts=LINEAR,
    write=_write,
    refuses=capped,
    read=_read,
)
