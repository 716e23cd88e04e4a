"""What the tests of virtual tokens ask of every network of tokens_zoo.py."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch

from core.adapters import detach, set_active, trainable, use
from core.errors import UnsupportedError


def run(host, *args, **kwargs):
    with torch.no_grad():
        return host.call(*args, **kwargs)


@contextmanager
def untouched(host, tokens: torch.Tensor):
    """The base's output; whatever was attached inside: switched off it is the base, detached it leaves nothing."""
    host.net.requires_grad_(False)  # torch picks another attention kernel where a bias needs a gradient
    before, keys, classes = run(host, tokens), list(host.net.state_dict()), [type(m) for m in host.net.modules()]
    yield before
    with use(host.net, None):
        assert torch.equal(run(host, tokens), before)
    detach(host.net)
    assert torch.equal(run(host, tokens), before)
    assert list(host.net.state_dict()) == keys and [type(m) for m in host.net.modules()] == classes
    assert not any("_adapters" in m.__dict__ for m in host.net.modules())


def padded_and_alone(host, tokens: torch.Tensor, real: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Row 1, shortened to 6 tokens: among the longer rows of a batch, and alone; `real` outputs at most."""
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    alone, batch = run(host, tokens[1:2, :6]), run(host, tokens, mask)
    real = min(alone.shape[1], real)
    return batch[1:2, :real], alone[:, :real]


def copies_are_equal_and_independent(host, tokens: torch.Tensor) -> torch.Tensor:
    """The output of the adapted network, which a deepcopy and a pickle share until their own adapter changes."""
    y = run(host, tokens)
    for net in (copy.deepcopy(host.net), pickle.loads(pickle.dumps(host.net))):
        with torch.no_grad():
            assert torch.equal(net(tokens)["logits"], y)
            for p in trainable(net).values():
                p.mul_(-3).add_(1)
            assert not torch.equal(net(tokens)["logits"], y)
    assert torch.equal(run(host, tokens), y)
    return y


def refuses_stale_caches(host, tokens: torch.Tensor, others: tuple[str | None, ...]) -> None:
    """A cache filled under adapter a is refused under each of `others`, and a cache of the base under a."""
    with torch.no_grad():
        for other in (*others, None):
            set_active(host.net, "a")
            cache = host.net(tokens, use_cache=True).cache
            host.net(tokens[:, :1], cache=cache)
            set_active(host.net, other)
            with pytest.raises(UnsupportedError, match="token adapter a"):
                host.net(tokens[:, :1], cache=cache)
        cache = host.net(tokens, use_cache=True).cache
        set_active(host.net, "a")
        with pytest.raises(UnsupportedError, match="no token adapter") as refused:
            host.net(tokens[:, :1], cache=cache)
        assert "start a new cache" in str(refused.value)


def stepped(host, tokens: torch.Tensor, first: int = 7) -> torch.Tensor:
    """Logits of a decoder that reads `first` tokens at once and the others one by one, over its cache."""
    with torch.no_grad():
        out = host.net(tokens[:, :first], use_cache=True)
        logits, cache = [out.logits], out.cache if hasattr(out, "cache") else out.past_key_values
        for step in range(first, tokens.shape[1]):
            out = host.net(tokens[:, step : step + 1], use_cache=True, past_key_values=cache)
            logits.append(out.logits)
    return torch.cat(logits, 1)
