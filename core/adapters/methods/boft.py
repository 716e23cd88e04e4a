"""BOFT.  W' = diag(c) W R^T,  R = R_m ... R_1,  each R_j = P_j^T blockdiag(...) P_j with blocks turned as in OFT
Liu et al. 2023, arXiv 2311.06243
Parameters  factors in (block - 1) / 2 + out per site; without `scale` no out.   Start  R = I and c = 1, so W' = W.
Differs     P_j pairs half blocks 2^j apart, so R keeps to windows of 2^(m - 1) blocks: it is made window by window, and
            no permutation touches x or W. Q holds upper triangles, HF peft's R whole squares of which half is used;
            without a CUDA compiler HF trains one factor, whatever was asked. The bias is not scaled. No dropout.
Hosts       all whose in (a convolution's channels times taps) divides into windows; no embeddings: oft with side=out.
Shapes      W (out, in)   Q (factors, n, block (block - 1) / 2)   c (out)   R (n / 2^(factors - 1), window, window)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import WeightMethod
from core.adapters.call import without_autocast
from core.adapters.peft_form import PeftForm, same
from core.adapters.rotation import cayley, divisors, in_blocks, skew


class BOFT(WeightMethod):
    size = "factors"

    def __init__(self, W, *, block: int = 8, factors: int = 2, scale: bool = True):
        super().__init__()
        self.block = block
        self.Q = nn.Parameter(W.new_zeros(factors, W.shape[1] // block, block * (block - 1) // 2))
        self.c = nn.Parameter(W.new_ones(W.shape[0])) if scale else None

    def rotation(self):
        """(windows, window, window)"""
        with without_autocast(self.Q):
            blocks = cayley(self.Q, self.block)
            window = self.block << len(blocks) - 1
            R = torch.eye(window, dtype=self.Q.dtype, device=self.Q.device).expand(
                blocks.shape[1] * self.block // window, -1, -1
            )
            for j, factor in enumerate(blocks):
                places = self.places(j, window)
                factor = factor.unflatten(0, (len(R), -1))  # (windows, blocks in a window, block, block)
                turned = factor @ R[:, places].unflatten(1, (-1, self.block))
                R = turned.flatten(1, 2)[:, places.argsort()]
            return R

    def places(self, j: int, window: int):
        """(window,) P_j: which places the blocks of factor j hold. A block is two halves, 2^j halves apart."""
        each = torch.arange(window, device=self.Q.device)
        return each.view(-1, 2, 1 << j, self.block // 2).transpose(1, 2).flatten() if j else each

    def weight(self, W):
        turned = in_blocks(W, self.rotation().mT)
        return turned if self.c is None else self.c[:, None] * turned

    def turn(self):
        return self.rotation()

    def into(self, x):
        return in_blocks(x, self.rotation())

    @property
    def rescale(self):
        return None if self.c is None else lambda: self.c

    @classmethod
    def refuses(cls, host, shape, options):
        block, factors = options["block"], options["factors"]
        if block < 2 or factors < 1:
            return f"block {block}, factors {factors}: 2 or more, 1 or more"
        if factors > 1 and block % 2:
            return f"block {block}: even, so that later factors can pair halves; or factors=1"
        if host == "Embedding":
            return "it would mix rows of the table: oft with side=out turns the embedding itself"
        window = block << factors - 1
        if shape[1] % window:
            fit = divisors(shape[1])
            return f"in {shape[1]} does not divide into windows of block * 2^(factors - 1): {fit} at factors=1; or hra"
        return ""


# In Hugging Face peft: whole skew squares; one factor, whatever is asked, where its CUDA extension is not built.


def _write(place, options):
    method = place.methods[0]
    scale = method.Q.new_ones(len(place.W)) if method.c is None else method.c
    return {"boft_R": skew(method.Q, method.block), "boft_s": scale.view((1, -1) if place.kernel else (-1, 1))}


def _read(config, tensors, shapes):
    R = {path: own["boft_R"] for path, own in tensors.items()}
    block, factors = (same(key, [t.shape[axis] for t in R.values()]) for key, axis in (("block", -1), ("factors", 0)))
    rows, columns = torch.triu_indices(block, block, 1)
    Q = {path: ((t - t.mT) / 2)[..., rows, columns] for path, t in R.items()}
    fill = {path: {"Q": Q[path], "c": own["boft_s"].flatten()} for path, own in tensors.items()}
    return {"block": block, "factors": factors, "scale": True}, fill


BOFT.peft = PeftForm(
    "BOFT",
    names=("boft_R", "boft_s"),
    keys={"boft_block_size": "block", "boft_n_butterfly_factor": "factors"},
    writes={"boft_block_num": 0},
    hosts=("Linear", "Conv2d"),
    refuses=lambda place, options: (
        "" if options["factors"] == 1 else "factors > 1: theirs trains one without its CUDA extension, and says nothing"
    ),
    write=_write,
    read=_read,
)
