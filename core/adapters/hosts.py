"""Which matrix view a host has, by its class. Any other class, and any other parameter, takes the weight path."""

from __future__ import annotations

from torch import nn

from core.adapters.conv_op import CONV, CONV_TRANSPOSE, ConvOp, ConvTransposeOp
from core.adapters.op import EmbeddingOp, LinearOp, Op, Rows, TensorOp, TransposedLinearOp
from core.adapters.seam import coded, original

STOCK: dict[type, type[Op]] = {
    nn.Linear: LinearOp,
    nn.Embedding: EmbeddingOp,
    **dict.fromkeys(CONV, ConvOp),
    **dict.fromkeys(CONV_TRANSPOSE, ConvTransposeOp),
}


def is_transposed_linear(host: nn.Module) -> bool:
    """HF Conv1D, by the shape of the class: y = x @ weight + bias with nf output features."""
    return type(host).__name__ == "Conv1D" and hasattr(host, "nf")


def stock_forward(host: nn.Module) -> bool:
    """True where the class runs its known base's own forward, so that `op.apply` is what it computes."""
    if is_transposed_linear(host) or coded(host):  # 4-bit weights: a Linear's product all the same
        return True
    known = next((k for k in STOCK if isinstance(host, k)), None)
    if known is None or original(host).forward is not known.forward or "forward" in host.__dict__:
        return False
    # These change what a lookup returns, or the table itself.
    return not (known is nn.Embedding and (host.max_norm is not None or host.sparse or host.scale_grad_by_freq))


def op_for(host: nn.Module, parameter: str, rows: Rows | None = None) -> Op:
    """The matrix view of `host.<parameter>`."""
    if parameter == "weight":
        if is_transposed_linear(host):
            return TransposedLinearOp(host, rows)
        for known, op in STOCK.items():
            if isinstance(host, known):
                return op(host, rows)
    return TensorOp(host, rows)
