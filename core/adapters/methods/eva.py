"""EVA.  W' = W + s B A,  A = the directions that the layer's inputs have most of        s = alpha / r
Paischer et al. 2024, arXiv 2410.07170
Parameters  r_l (in + out) at site l. The ranks r_l add up to r times the sites, each at most rho r: the next one goes
            to the direction that explains the largest share of its own layer's inputs. rho = 1 keeps r everywhere.
Start       B = 0, so W' = W to the bit; A = the top right singular vectors of the inputs, one per row of A.
Differs     calibration makes it EVA: the start of every run, or `calibrate(...)` after `attach`, which alone starts
            like LoRA. Singular vectors come from the second moment of all inputs seen, not from a running
            decomposition that stops when it settles; positions that pad a batch count. A site keeps at least rank 1.
Hosts       all but embeddings, whose inputs are single entries; recurrent layers show their inputs to no one.
Shapes      W (out, in)   A (r_l, in)   B (out, r_l)   moment (in, in)
"""

from __future__ import annotations

import torch

from core.adapters.methods.lora import LoRA


class EVA(LoRA):
    needs = "inputs"

    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0, rho: float = 2.0, dropout: float = 0.0):
        super().__init__(W, rank=rank, alpha=alpha, dropout=dropout)
        self.most = max(len(self.A), min(int(rho * rank), *W.shape))

    def make_room(self, shapes):
        rank = shapes["A"][0] if "A" in shapes else len(self.A)
        self.A.data, self.B.data = self.A.new_zeros(rank, self.A.shape[1]), self.B.new_zeros(len(self.B), rank)
        self.A.grad = self.B.grad = None

    @classmethod
    def calibrate(cls, methods, seen):
        budget, shares, bases = sum(len(method.A) for method in methods), [], []
        for i, method in enumerate(methods):
            moment, seen[i] = seen[i].cpu().double(), None
            values, vectors = torch.linalg.eigh(moment)  # ascending
            values = values.flip(0).clamp_min(0)
            shares.append((values / values.sum().clamp_min(torch.finfo(values.dtype).tiny))[: method.most])
            bases.append(vectors.flip(1)[:, : method.most].T)
        for method, basis, rank in zip(methods, bases, ranks(shares, budget), strict=True):
            method.make_room({"A": (rank, basis.shape[1])})
            method.A.data.copy_(basis[:rank])

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return "EVA starts from the directions of a layer's inputs, and a lookup's are single entries: use lora"
        if options["rho"] < 1:
            return f"rho {options['rho']}: 1 or more; 1 keeps the rank of every layer"
        return super().refuses(host, shape, options)


def ranks(shares: list[torch.Tensor], budget: int) -> list[int]:
    """Ranks that add up to `budget`: one each, the others to the largest shares of all sites."""
    rows = torch.cat([torch.full_like(s[1:], i) for i, s in enumerate(shares)]).long()
    order = torch.argsort(torch.cat([s[1:] for s in shares]), descending=True, stable=True)
    extra = rows[order[: budget - len(shares)]]
    return [1 + int((extra == i).sum()) for i in range(len(shares))]
