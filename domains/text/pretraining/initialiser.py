"""The start of the embedded network, and of every `scratch` beside it: its library's own, three times as wide.

`initializer_range` .06 stands in the weights' configuration. With the library's .02 a network of 0.4 million
parameters takes far longer to leave the frequencies behind.
"""

from __future__ import annotations


def initialise(net, seed: int = 0):
    """`net` itself with new weights, drawn by its own class and configuration from `seed`."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.load_state_dict(type(net)(net.config).state_dict())
    return net
