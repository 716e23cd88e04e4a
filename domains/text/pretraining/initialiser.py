"""The start of the embedded network, and of every `scratch` beside it: its library's own, with one induction head.

To copy a spelled value a network must ask "what came after this, the last time?": one head looks back by one token,
another looks for what the first has found. With random weights the pair is found by luck, after hundreds of steps or
never. Here it is there from the first step, as a start and nothing more: every number is trained.

Look back   rotary attention with query bias (1.., 0..) and key bias (cos(theta o).., -sin(theta o)..) scores positions
            i and j by a sum over frequencies of cos(theta (j - i - o)): a bump at j = i + o
Ask         with R, S of orthonormal rows, layer 0 writes S'R e(previous token), layer 1 compares R e(this token) with
            S times what is written: both are R e(token) where the previous token there is this one here
"""

from __future__ import annotations

BACK = -1  # tokens
LOCAL = 8.0  # strength of looking back: the score at the offset is its square
WRITE, ASK, COPY = 0.15, 3.0, 0.5  # strengths of writing, comparing, and repeating what stands there


def initialise(net, seed: int = 0):
    """`net` itself with new weights, drawn by its own class and configuration from `seed`.

    net   `LlamaForCausalLM` with attention biases and at least two layers
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net.load_state_dict(type(net)(net.config).state_dict())
        width, heads = net.config.hidden_size, net.config.num_attention_heads
        size = width // heads
        R, S, V = (torch.linalg.qr(torch.randn(width, size))[0].T for _ in range(3))
    first, second = (layer.self_attn for layer in net.model.layers[:2])
    theta = 1 / (10_000 ** (torch.arange(0, size, 2).float() / size))
    scale = LOCAL * size**0.25 / (size / 2) ** 0.5
    angle, head = theta * BACK, slice(0, size)
    with torch.no_grad():
        for layer in net.model.layers:  # what is added to an embedding is not larger than it
            layer.self_attn.o_proj.weight /= 3
            layer.mlp.down_proj.weight /= 3
        first.q_proj.weight[head] = first.k_proj.weight[head] = 0
        first.q_proj.bias[head] = scale * torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
        first.k_proj.bias[head] = scale * torch.cat([torch.cos(angle), -torch.sin(angle)])
        first.v_proj.weight[head], first.o_proj.weight[:, head] = R, WRITE * S.T
        slow = (theta < 1 / 32).repeat(2)[:, None]  # frequencies that hardly turn between a prompt and its answer
        second.q_proj.weight[head], second.k_proj.weight[head] = ASK * R * slow, ASK * S * slow
        second.v_proj.weight[head], second.o_proj.weight[:, head] = V, COPY * V.T
    return net
