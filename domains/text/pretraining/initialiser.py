"""The start of the embedded network, and of every `scratch` beside it: its library's own, with local heads in front.

Copying needs a head that looks one token back before another can look for "what came after this the last time". With
random weights such a head is found by luck, in hundreds of steps or not at all. Rotary attention can be told to look
back: with query bias (1.., 0..) and key bias (cos(theta o).., -sin(theta o)..) the score of positions i and j is a sum
over frequencies of cos(theta (j - i - o)), a bump at j = i + o. It is a start and nothing more: every number is trained.
"""

from __future__ import annotations

OFFSETS = (-1, -2, -3, -4)  # of the heads of the first layer, then from the front again
LOCAL = 6.0  # strength: the score at the offset is its square


def initialise(net, seed: int = 0):
    """`net` itself with new weights, drawn by its own class and configuration from `seed`.

    net   `LlamaForCausalLM` with attention biases; `initializer_range` .06 stands in its configuration (the library's
          .02 takes far longer to leave the frequencies behind)
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.load_state_dict(type(net)(net.config).state_dict())
    heads = net.config.num_attention_heads
    size = net.config.hidden_size // heads
    theta = 1 / (10_000 ** (torch.arange(0, size, 2).float() / size))
    scale = LOCAL * size**0.25 / (size / 2) ** 0.5
    still = torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
    first = net.model.layers[0].self_attn
    with torch.no_grad():
        for head in range(heads):
            angle, rows = theta * OFFSETS[head % len(OFFSETS)], slice(head * size, (head + 1) * size)
            first.q_proj.bias[rows] = scale * still
            first.k_proj.bias[rows] = scale * torch.cat([torch.cos(angle), -torch.sin(angle)])
    return net
