"""What a method is. Four faces: `weight`, `activation`, `token`, and `selection` (trained copies of chosen parameters).

A method knows nothing of backbones: a weight method sees a matrix W (out, in), an activation method the output of a
module, a token method the width of a virtual token. The keyword arguments of `__init__` are its configuration schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from core.adapters.op import Rows
from core.errors import ConfigError


class Factors(NamedTuple):
    """A low-rank change: weight(W) == W + scale * B @ A, to rounding.  A (rank, in)   B (out, rank)

    dropout   probability, in steps of 1/256, on the input of the change; 0 where it is not active
    down      x (..., in) -> x A^T (..., rank), where a frozen A has a form that is cheaper than the product"""

    A: Tensor
    B: Tensor
    scale: float
    dropout: float = 0.0
    down: Callable[[Tensor], Tensor] | None = None


class Method(nn.Module):
    """What all faces share. One instance per site; class methods see the instances of all sites together."""

    face: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ()  # roles, where a config names none
    # Tensors that legitimately receive no gradient at the start are named here; liveness then asks for the others.
    exempt: ClassVar[tuple[str, ...]] = ()
    # The option that `adapter.budget` solves for: a whole number, and more of it is more parameters.
    size: ClassVar[str] = "rank"
    # That option is a number by which widths are divided instead, and more of it is fewer parameters.
    divides: ClassVar[bool] = False
    # The role of the method's site, set by the binder before `join`: what sites of one role share is told apart by it.
    role: str = ""
    # What a data-driven start looks at, gathered over a few batches before training.
    needs: ClassVar[Literal["", "inputs", "gradients"]] = ""
    # Buffers with persistent=False that a run's checkpoint keeps all the same: state of `adjust`, not of the result.
    resumes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def join(cls, methods: list[Method]) -> None:
        """Called once with the methods of all sites, in network order. What sites share is tied here: one Parameter in
        several methods is counted, trained and saved once."""

    @classmethod
    def calibrate(cls, methods: list[Method], seen: list[Tensor]) -> None:
        """Called once before training where `needs` says so. seen[i] belongs to methods[i]:
        "gradients": dL/dW (out, in);  "inputs": the second moment sum x^T x (in, in) of the matrix's input."""

    def make_room(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Called before tensors of these shapes are put in, by name: for methods whose `calibrate` decides shapes.
        A Parameter stays the same object: `self.A.data = ...`."""

    def penalty(self) -> Tensor | None:
        """() a term of the training loss; None: nothing."""
        return None

    @classmethod
    def adjust(cls, methods: list[Method], step: int, steps: int) -> None:
        """Called after every backward pass, before the optimiser's step `step` (0-based) of `steps`."""


class WeightMethod(Method):
    """W' = weight(W). Subclasses take `W` (out, in) fp32, read only: its shape, and values where a start needs them."""

    face: ClassVar[str] = "weight"
    targets: ClassVar[tuple[str, ...]] = ("attn.q", "attn.v")
    # Which form is cheaper where a method has both `weight` and `output` (and no `factors`); linear: `output`, but only
    # on plain products; low rank: `factors`, whatever their rank.
    order: Literal["weight", "output", "linear", "low rank"] = "weight"

    def weight(self, W: Tensor) -> Tensor:
        """The definition: (out, in) -> (out, in), in fp32."""
        raise NotImplementedError

    # Where some site must have 4-bit weights: why, and what to do to a network of full ones.
    needs_codes: ClassVar[str] = ""

    def start(self, host: nn.Module, rows: Rows | None) -> None:
        """Called once, after the constructor: for starts that a host keeps for its sites. rows: None is all of them."""

    # Optional: (x, y, op, W, b) -> host output with W' in W's place, y being the host's own output, bias included.
    output: ClassVar[Callable | None] = None
    # Optional: () -> Factors, where the change is low rank; gives thin gradients.
    factors: ClassVar[Callable | None] = None
    # Optional, beside `factors` or alone: (W) -> (out,), and weight(W) == diag(gain(W)) (W + scale * B @ A).
    gain: ClassVar[Callable | None] = None

    # Optional: () -> (places (n), values (n)): weight(W) is W with values added at row * in + column, ascending.
    sparse: ClassVar[Callable | None] = None

    # Optional beside `into`: () -> (out,), and weight(W) x == diag(rescale()) W into(x).
    rescale: ClassVar[Callable | None] = None

    def into(self, x: Tensor) -> Tensor | None:
        """x' (..., in) with W x' == weight(W) x, where the change acts on the input alone and moving N rows of input is
        cheaper than the dense gradient of W'; else None."""
        return None

    def turn(self) -> Tensor | None:
        """(n, b, b) orthogonal blocks R with into(x) == x blockdiag(R), where there are any: W R^T, made once, is then
        cheaper than turning many rows of input."""
        return None

    def needs_output(self) -> bool:
        """True while only `output` is right: dropout on the input of the change is active."""
        return False

    @classmethod
    def options_for(cls, role: str, options: dict) -> dict:
        """The options at sites of one role; methods that treat roles differently override this."""
        return options

    @classmethod
    def refuses_all(cls, shapes: list[tuple[int, int]], options: dict) -> str:
        """Why this method has no meaning on the matrices of all its sites taken together; "" where it has."""
        return ""

    @classmethod
    def refuses(cls, host: str, shape: tuple[int, int], options: dict) -> str:
        """Why this method has no meaning on a host kind with an (out, in) matrix of `shape`; "" where it has."""
        return ""


class ActivationMethod(Method):
    """h' = forward(h, x): h the output of a module, x its first input, both with channels on `axis`."""

    face: ClassVar[str] = "activation"
    targets: ClassVar[tuple[str, ...]] = ("mlp",)
    size: ClassVar[str] = "size"
    reads_input: ClassVar[bool] = False  # then the constructor gets (dim, width of x)

    def __init__(self, dim: int, *, axis: int = -1):
        super().__init__()
        self.axis = axis

    @classmethod
    def options_for(cls, host: nn.Module, x: torch.Size, h: torch.Size, options: dict) -> dict:
        """The constructor's arguments at one module, whose first input and output have these shapes on the example.
        What a method must know of its host is added here, as an argument that is not keyword-only."""
        return options

    @classmethod
    def refuses(cls, host: nn.Module, x: torch.Size, h: torch.Size, options: dict) -> str:
        """Why this method has no meaning at a module, and what to use; "" where it has. `options` has the `axis`."""
        return ""

    @classmethod
    def refuses_all(cls, outputs: list[torch.Size], options: dict) -> str:
        """Why it has no meaning at modules with outputs of these shapes taken together; "" where it has."""
        return ""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class KeyValues(NamedTuple):
    """Virtual keys and values of one attention, each (heads, tokens, head_dim) with that attention's key/value heads.

    gate   (heads,) times their own attention's output, added to the base's; None: in front of its keys, one softmax"""

    keys: Tensor
    values: Tensor
    gate: Tensor | None = None


class TokenMethod(Method):
    """Virtual tokens through the backbone's token port. `seam` says where they enter, what the constructor is told, and
    what `forward` gives, in fp32:

    tokens  (dim)          forward() -> (tokens, dim)             once, in front of the embeddings or of the first block
    deep    (dim, layers)  forward(layer) -> (tokens, dim)        anew before every block
    kv      (shapes)       forward(layer) -> KeyValues            before every attention; shapes: (heads, head_dim) each
    """

    face: ClassVar[str] = "token"
    size: ClassVar[str] = "tokens"
    seam: ClassVar[Literal["tokens", "deep", "kv"]] = "tokens"
    shift: bool = False  # kv: real tokens' positions move up by `tokens`, where the network is given positions

    def __init__(self, tokens: int):
        super().__init__()
        if tokens < 1:
            raise ConfigError("adapter.tokens", tokens, "at least 1")
        self.tokens = tokens

    def start(self, table: Tensor | None) -> None:
        """Called once. `table` (vocabulary, dim) is the network's token embedding, None where the seam has none."""

    def forward(self, layer: int = 0) -> Tensor | KeyValues:
        raise NotImplementedError


class Chosen(NamedTuple):
    """A parameter that a selection trains: module path, parameter name, role under which it is listed."""

    path: str
    parameter: str
    role: str


class Selection(WeightMethod):
    """weight(W) = value, a trained copy: unloading is bit-exact and several selections can coexist.

    `select` lists the parameters; those that no forward reads are left out (and listed) instead of refused."""

    face: ClassVar[str] = "selection"
    targets: ClassVar[tuple[str, ...]] = ()
    size: ClassVar[str] = ""
    in_place: ClassVar[bool] = False  # trains the network's own parameters: cannot be detached
    empty: ClassVar[bool] = False  # may choose nothing: only the head trains
    vectors: ClassVar[bool] = False  # biases and norms alone: a base whose matrices are quantised has them too

    def __init__(self, W: Tensor):
        super().__init__()
        self.value = nn.Parameter(W.detach().clone())

    def weight(self, W: Tensor) -> Tensor:
        return self.value

    @classmethod
    def select(cls, net: nn.Module, roles: dict, targets: tuple[str, ...] = (), **options) -> Iterable[Chosen]:
        """Keyword arguments are the configuration schema; `targets` restricts the choice to modules at these roles."""
        raise NotImplementedError


def kaiming(rows: int, columns: int) -> Tensor:
    """(rows, columns) uniform in +-1/sqrt(columns): the start of LoRA's A (He et al. 2015 with a = sqrt 5)."""
    bound = columns**-0.5
    return torch.empty(rows, columns).uniform_(-bound, bound)
