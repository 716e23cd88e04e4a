"""BitFit.  b' = any value, for every bias b (norm layers' shifts included)
Ben Zaken et al. 2021, arXiv 2106.10199
Parameters  the sum of the biases' lengths.   Start  b' = b to the bit.
Differs     nothing; networks without biases (Llama) are refused: `bias` makes new ones.
Hosts       every one-dimensional parameter named `bias`, `bias_...` or `..._bias`, fused and recurrent ones included.
Shapes      b (out)
"""

from __future__ import annotations

from core.adapters.base import Selection
from core.adapters.selection import choose, is_bias


class BitFit(Selection):
    vectors = True

    @classmethod
    def select(cls, net, roles, targets=()):
        return choose(
            net,
            roles,
            targets,
            "bias",
            lambda module, name, p: is_bias(name, p),
            instead="adapter=bias",
        )
