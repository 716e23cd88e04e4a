"""Published parameter counts, on shapes alone: nothing is allocated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.adapters import methods, plan


def count(name: str, *shapes: tuple[int, int], copies: int = 1, **options) -> int:
    """Parameters of a weight method on matrices (out, in), `copies` times each."""
    with torch.device("meta"):
        built = [methods.find(name)(torch.empty(shape), **options) for shape in shapes]
    return copies * sum(p.numel() for m in built for p in m.parameters())


def bottlenecks(name: str, *widths: int | tuple[int, int], copies: int = 1, **options) -> int:
    """Parameters of an activation method at modules of these widths: (output,) or (output, input)."""
    with torch.device("meta"):
        built = [methods.find(name)(*(w if isinstance(w, tuple) else (w,)), **options) for w in widths]
    return copies * sum(p.numel() for m in built for p in m.parameters())


D, F = 4096, 11008  # LLaMA-7B: 32 layers
ATTENTION, UP, DOWN = (D, D), (F, D), (D, F)
LLM = dict(copies=32)


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        # LLM-Adapters, arXiv 2304.01933, and DoRA, arXiv 2402.09353: LLaMA-7B
        (lambda: bottlenecks("pfeiffer", D, reduction=16, bias=False, **LLM), 67_108_864),  # series, 0.99 %
        (lambda: bottlenecks("houlsby", D, D, size=256, bias=False, **LLM), 134_217_728),
        (lambda: bottlenecks("parallel", (F, D), (D, F), size=256, bias=False, **LLM), 247_463_936),  # 3.54 %
        (lambda: count("lora", *[ATTENTION] * 3, UP, DOWN, rank=32, **LLM), 56_098_816),  # 0.83 %
        (lambda: count("dora", *[ATTENTION] * 3, UP, DOWN, rank=32, **LLM), 56_975_360),  # 0.84 %
        (lambda: count("lora", *[ATTENTION] * 4, UP, UP, DOWN, rank=128, **LLM), 319_815_680),  # LLaMA-2-7B: 320 M
        # LoRA, arXiv 2106.09685
        (lambda: count("lora", *[(768, 768)] * 2, rank=8, copies=12), 294_912),  # RoBERTa-base: 0.3 M
        (lambda: count("lora", *[(1024, 1024)] * 2, rank=8, copies=24), 786_432),  # RoBERTa-large: 0.8 M
        (lambda: count("lora", *[(12288, 12288)] * 2, rank=1, copies=96), 4_718_592),  # GPT-3: 4.7 M
        (lambda: count("lora", *[(12288, 12288)] * 2, rank=8, copies=96), 37_748_736),  # GPT-3: 37.7 M
        # DeBERTa-v3-base, LoRA on all linear layers 1.33 M, Pfeiffer 64 1.18-1.19 M
        (lambda: count("lora", *[(768, 768)] * 4, (3072, 768), (768, 3072), rank=8, copies=12), 1_327_104),
        (lambda: bottlenecks("pfeiffer", 768, reduction=12, copies=12), 1_189_632),
        # AdaptFormer-64 on ViT-B with a 100-way head, arXiv 2205.13535: 1.26 M
        (lambda: bottlenecks("adaptformer", (768, 768), size=64, copies=12) + 768 * 100 + 100, 1_266_532),
        # LoReFT, arXiv 2404.03592: LLaMA-7B, rank 8 after every block, 0.031 %
        (lambda: bottlenecks("loreft", D, rank=8, **LLM), 2_097_408),
        # SSF, arXiv 2210.08823: ViT-B with a 100-way head, 0.28 M: qkv, proj, both layers and norms; patches, last norm
        (
            lambda: bottlenecks("ssf", 2304, 768, 3072, 768, 768, 768, copies=12)
            + bottlenecks("ssf", 768, 768)
            + 768 * 100
            + 100,
            282_724,
        ),
        # ViT-B, LoRA r 8 on q and v
        (lambda: count("lora", *[(768, 768)] * 2, rank=8, copies=12), 294_912),
    ],
    ids=lambda v: str(v) if isinstance(v, int) else "",
)  # fmt: skip
def test_published_counts(ours, published):
    assert ours() == published


def test_ia3_on_t0_3b():
    """arXiv 2205.05638: keys and values of all attentions scaled at the output, feed-forwards at the input."""
    side = {role: methods.find("ia3").options_for(role, {}) for role in ("attn.k", "attn.v", "mlp.out")}
    attention = [("attn.k", (2048, 2048)), ("attn.v", (2048, 2048))]
    encoder, decoder = [*attention, ("mlp.out", (2048, 5120))], [*attention, *attention, ("mlp.out", (2048, 5120))]
    assert sum(count("ia3", shape, copies=24, **side[role]) for role, shape in encoder + decoder) == 540_672


class FusedBlock(nn.Module):
    """ViT-B's block, as far as counting goes."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(768), nn.Linear(768, 3 * 768), nn.Linear(768, 768)
        self.fc1, self.fc2 = nn.Linear(768, 3072), nn.Linear(3072, 768)


class Blocks(nn.Module):
    roles = {"attn.q": "blocks.*.qkv[0/3]", "attn.v": "blocks.*.qkv[2/3]", "block": "blocks.*"}

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([FusedBlock() for _ in range(12)])


def test_fused_rows_count_as_separate_matrices():
    """q and v slices give 294,912, as one matrix over qkv would: the rows must be the right ones too."""
    with torch.device("meta"):
        net = Blocks()
    table = plan(net, "lora", roles=net.roles, verify=False, rank=8)
    assert table.parameters == 294_912
    assert {row.shape for row in table.rows} == {(768, 768)} and len(table.rows) == 24


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("bitfit", 12 * (768 + 3 * 768 + 768 + 3072 + 768)),
        ("norm", 12 * 2 * 768),
        ("last_k", 12 * 768 * 768 + 768 * (2 + 3 + 1 + 4 + 1)),
        ("full", 12 * (12 * 768 * 768 + 768 * (2 + 3 + 1 + 4 + 1))),
        ("none", 0),
    ],
)
def test_selections_count_what_they_choose(method, expected):
    with torch.device("meta"):
        net = Blocks()
    assert plan(net, method, roles=net.roles, verify=False).parameters == expected
