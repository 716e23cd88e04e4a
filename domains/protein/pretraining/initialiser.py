"""The local-heads start of a rotary ESM-2: every head begins as a soft window at one offset along the chain.

With the library's start a network of 0.2-1 M parameters sits at the unigram loss for hundreds of steps: attention must
first find out that neighbours matter. Rotary attention can be told so: with query bias (1.., 0..) and key bias
(cos(theta o).., -sin(theta o)..) the score of positions i and j is a sum over frequencies of cos(theta (j - i - o)), a
bump at j = i + o. It is a start and nothing more: same class, same keys, every number trainable. `scratch` gets it too.
"""

from __future__ import annotations

from core.errors import UnsupportedError

# Of the heads, in order over all layers; then from the front again.
OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4, -1, 1, -5, 5, 0, 2, -2, 8)


def initialise(net, seed: int = 0, *, gain: float = 0.96, local: float = 8.0):
    """`net` itself, with new weights: matrices N(0, gain / sqrt(width)), local heads, biases 0, norms 1.

    net     HF `EsmModel` or `EsmForMaskedLM` with rotary positions
    gain    .96 is std .12 at width 64
    local   strength of the windows: the score at the offset is local ** 2, 4 less at its neighbours (head size 16)
    UnsupportedError   positions are not rotary, so no bias makes a window
    """
    import torch

    config = net.config
    if config.position_embedding_type != "rotary":
        raise UnsupportedError(
            where="initialise",
            got=f"position_embedding_type={config.position_embedding_type}",
            allowed="rotary",
            fix="build the network with EsmConfig(position_embedding_type='rotary')",
        )
    generator = torch.Generator().manual_seed(seed)
    std = gain / config.hidden_size**0.5
    norms = {f"{path}." for path, module in net.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    with torch.no_grad():
        for name, value in net.named_parameters():
            if value.dim() == 2:
                value.copy_(torch.randn(value.shape, generator=generator) * std)
            else:
                value.fill_(float(name.endswith("weight") and name[: -len("weight")] in norms))
        heads, index = config.num_attention_heads, 0
        size = config.hidden_size // heads
        theta = 1 / (10000 ** (torch.arange(0, size, 2).float() / size))
        scale = local * size**0.25 / (size / 2) ** 0.5
        still = torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
        for path, module in net.named_modules():
            if not path.endswith("attention.self"):
                continue
            for head in range(heads):
                angle, rows = theta * OFFSETS[index % len(OFFSETS)], slice(head * size, (head + 1) * size)
                module.query.bias[rows] = scale * still
                module.key.bias[rows] = scale * torch.cat([torch.cos(angle), -torch.sin(angle)])
                index += 1
    return net
