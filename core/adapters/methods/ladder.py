"""Ladder side tuning.  h_L' = h_L + U s_L,  s_l = G(m_l s_(l-1) + (1 - m_l) (D_l h_l + d_l)),  m_l = sigmoid(g_l / T)
Sung et al. 2022, arXiv 2206.06522
G(s) = s + V relu(W LN(s) + c) + v,  s_0 = D_0 x_1 + d_0,  T = 0.1.  All h_l, and x_1, the first block's input, are
detached: no gradient runs through the blocks, so they keep nothing for a backward pass.
Parameters  (dim + 1) w + 2 expand w^2 + (expand + 3) w + 1 per block, w = dim / reduction; once (dim + 1) w for D_0,
            d_0 at the first block and dim w for U at the last.   Start  U = 0, so h' = h to the bit.
Differs     the paper's side blocks are small copies of the backbone's, started from its pruned weights. Here they are
            feed-forward, so that every backbone has them; positions meet in the backbone alone.
Hosts       blocks of one shape that run one after the other, as a transformer's.   Not mergeable.
Shapes      h, x (..., dim), or dim on `axis`   s (..., w)   D (w, dim)   U (dim, w)   W (expand w, w)   V (w, expand w)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import refuses_change
from core.errors import UnsupportedError

TEMPERATURE = 0.1


class Ladder(ActivationMethod):
    targets = ("block",)
    size = "reduction"
    divides = True
    reads_input = True

    def __init__(self, dim: int, input_dim: int, *, axis: int = -1, reduction: float = 8.0, expand: int = 4):
        super().__init__(dim, axis=axis)
        width = max(1, round(dim / reduction))
        self.start = nn.Linear(input_dim, width)
        self.down = nn.Linear(dim, width)
        self.gate = nn.Parameter(torch.zeros(()))
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, expand * width), nn.ReLU(), nn.Linear(expand * width, width)
        )
        self.up = nn.Linear(width, dim, bias=False)
        nn.init.zeros_(self.up.weight)
        self.rungs, self.index = _Rungs(), 0

    @classmethod
    def join(cls, methods):
        for i, m in enumerate(methods):
            m.rungs, m.index = methods[0].rungs, i
            m.start = m.start if i == 0 else None
            m.up = m.up if i == len(methods) - 1 else None

    def forward(self, h, x):
        now = self.down(h.detach().movedim(self.axis, -1))
        before = self.rungs.below(self.index)
        if self.start is not None:
            before = self.start(x.detach().movedim(self.axis, -1))
        elif before is None:  # the blocks below were skipped
            before = torch.zeros_like(now)
        if before.shape != now.shape:
            got = f"side states {tuple(before.shape)}, then {tuple(now.shape)}"
            raise UnsupportedError("adapter=ladder", got, "blocks of one shape in a row", "target one stack's blocks")
        m = torch.sigmoid(self.gate / TEMPERATURE)
        s = m * before + (1 - m) * now
        s = s + self.block(s)
        if self.up is None:
            self.rungs.reached(self.index, s)
            return h
        self.rungs.reached(-1, None)
        return h + self.up(s).movedim(-1, self.axis)

    @classmethod
    def refuses(cls, host, x, h, options):
        if options["reduction"] < 1 or options["expand"] < 1:
            return "reduction and expand: 1 or more"
        return refuses_change(x, h, options["axis"])

    @classmethod
    def refuses_all(cls, outputs, options):
        return "" if len(set(outputs)) == 1 else "the side network needs blocks of one shape: use houlsby or lora here"


class _Rungs:
    """The side state on its way from one block's hook to the next, within one forward pass. Never copied or pickled."""

    def __init__(self):
        self.index, self.state = -1, None
        self.given: dict[int, Tensor | None] = {}  # what each block got: gradient checkpointing calls it again

    def below(self, index: int) -> Tensor | None:
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._current_graph_task_id() != -1:  # inside a backward pass
            if index not in self.given:
                fix = "no checkpointing: the blocks keep nothing for the backward pass"
                raise UnsupportedError("adapter=ladder", "reentrant checkpointing", "use_reentrant=False", fix)
            return self.given[index]
        if index <= self.index:  # a new pass; the last one skipped its last block (layer drop)
            self.reached(-1, None)
        if self.state is None:
            self.given.clear()
        state = self.state
        if not compiling and torch.is_grad_enabled():
            self.given[index] = None if state is None else state.detach().requires_grad_(state.requires_grad)
        return state

    def reached(self, index: int, state: Tensor | None) -> None:
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        self.index, self.state = index, state

    def __getstate__(self):
        return {"index": -1, "state": None, "given": {}}
