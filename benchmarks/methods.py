"""Step time and bytes kept for backward of our methods, beside HF peft, full fine-tuning and the limit.

    python -m benchmarks.methods [--rounds 7] [--only llama320,esm2] [--write docs/performance.md]

All variants of one network run interleaved in one process; figures are CPU time (robust on a shared machine), medians,
as ratios to the limit: the frozen network's forward and the gradient of its input. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import core  # noqa: F401
from core.adapters import attach
from core.adapters.cost import saved_bytes

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(width: int = 320):
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, width // 64)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 8 // 3 // 8 * 8, num_hidden_layers=4, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=1024, max_position_embeddings=512,
    )  # fmt: skip
    a = "model.layers.*"
    roles = {"attn.q": f"{a}.self_attn.q_proj", "attn.k": f"{a}.self_attn.k_proj", "attn.v": f"{a}.self_attn.v_proj",
             "attn.out": f"{a}.self_attn.o_proj", "mlp.gate": f"{a}.mlp.gate_proj", "mlp.in": f"{a}.mlp.up_proj",
             "mlp.out": f"{a}.mlp.down_proj"}  # fmt: skip
    x = torch.randint(0, 1024, (8, 256))

    def loss(model, inputs=None):
        if inputs is not None:
            return model(inputs_embeds=inputs, labels=x, use_cache=False).loss
        return model(input_ids=x, labels=x, use_cache=False).loss

    def entrance(model):
        return model.get_input_embeddings()(x).detach().requires_grad_(True)

    return (
        (lambda: LlamaForCausalLM(config)),
        roles,
        ((), {"input_ids": x[:1, :16], "use_cache": False}),
        loss,
        entrance,
        LINEAR,
    )


def esm2():
    """ESM-2 8M's shape, 6 layers x 320, through transformers (HF peft's own ground)."""
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33, hidden_size=320, num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280,
        pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", max_position_embeddings=1026,
        token_dropout=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    a = "esm.encoder.layer.*"
    roles = {f"attn.{r[0]}": f"{a}.attention.self.{r}" for r in ("query", "key", "value")} | {
        "attn.out": f"{a}.attention.output.dense", "mlp.in": f"{a}.intermediate.dense", "mlp.out": f"{a}.output.dense",
    }  # fmt: skip
    x = torch.randint(4, 24, (8, 254))
    mask = torch.ones_like(x)

    def loss(model, inputs=None):
        if inputs is not None:
            return model(inputs_embeds=inputs, attention_mask=mask, labels=x).loss
        return model(input_ids=x, attention_mask=mask, labels=x).loss

    def entrance(model):
        return model.get_input_embeddings()(x).detach().requires_grad_(True)

    example = ((), {"input_ids": x[:1, :16], "attention_mask": mask[:1, :16]})
    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    return (lambda: EsmForMaskedLM(config)), roles, example, loss, entrance, targets


def vit():
    import timm

    def build():
        return timm.create_model("vit_small_patch16_224", num_classes=10)

    roles = {f"attn.{r}": f"blocks.*.attn.qkv[{i}/3]" for i, r in enumerate("qkv")} | {
        "attn.out": "blocks.*.attn.proj", "mlp.in": "blocks.*.mlp.fc1", "mlp.out": "blocks.*.mlp.fc2",
    }  # fmt: skip
    x = torch.randn(8, 3, 224, 224)
    return (
        build,
        roles,
        ((x[:1],), {}),
        _image_loss(x),
        lambda model: x.clone().requires_grad_(True),
        ["qkv", "proj", "fc1", "fc2"],
    )


def resnet():
    import timm

    def build():
        return timm.create_model("resnet50", num_classes=10)

    model = build()
    roles = {"conv": [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]}
    x = torch.randn(8, 3, 224, 224)
    targets = r".*(conv\d|downsample\.0)"
    return build, roles, ((x[:1],), {}), _image_loss(x), lambda model: x.clone().requires_grad_(True), targets


def _image_loss(x):
    def loss(model, inputs=None):
        return model(x if inputs is None else inputs).square().mean()

    return loss


def unet3d():
    """MONAI's 3-D U-Net; HF peft has no transposed convolutions, so neither side adapts them."""
    from monai.networks.nets import UNet

    def build():
        return UNet(3, 1, 2, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)

    # 1x1x1 convolutions are left out: HF peft trains them, but crashes when it merges them.
    convs = [n for n, m in build().named_modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    roles = {"conv": convs}
    x = torch.randn(1, 1, 64, 64, 64)
    return (
        build,
        roles,
        ((x[:, :, :16, :16, :16],), {}),
        _image_loss(x),
        lambda model: x.clone().requires_grad_(True),
        convs,
    )


NETWORKS = {
    "llama320": lambda: llama(320), "llama768": lambda: llama(768), "esm2": esm2, "vit": vit, "resnet50": resnet,
    "unet3d": unet3d,
}  # fmt: skip
MARK = "<!-- bench -->"
# method, options of ours, options of HF peft's LoraConfig (None: IA3Config)
VARIANTS = [
    ("lora", {"rank": 8, "alpha": 16}, {"r": 8, "lora_alpha": 16}),
    ("lora + dropout", {"rank": 8, "alpha": 16, "dropout": 0.05}, {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}),
    ("dora", {"rank": 8, "alpha": 16}, {"r": 8, "lora_alpha": 16, "use_dora": True}),
    ("ia3", {}, None),
]


def seeded(build: Callable) -> nn.Module:
    torch.manual_seed(0)
    return build().train()


def ours(build, roles, example, method, options):
    model = seeded(build)
    return attach(
        model, method.split(" ")[0], targets=list(roles), roles=roles, example=example, verify=False, **options
    )


def theirs(build, options, targets):
    import peft

    if options is None:
        config = peft.IA3Config(target_modules=targets, feedforward_modules=[])
    else:
        config = peft.LoraConfig(target_modules=targets, **options)
    model = peft.get_peft_model(seeded(build), config)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def measure(name: str, rounds: int) -> list[tuple]:
    build, roles, example, loss, entrance, targets = NETWORKS[name]()
    runs: dict[str, Callable] = {}
    models: dict[str, nn.Module] = {}
    frozen = seeded(build).requires_grad_(False)
    for module in frozen.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    models["limit"], runs["limit"] = frozen, lambda: loss(frozen, entrance(frozen))
    models["full"] = seeded(build)
    for method, mine, peer in VARIANTS:
        models[f"{method}: ours"] = ours(build, roles, example, method, mine)
        models[f"{method}: HF peft"] = theirs(build, peer, targets)
    for key, model in models.items():
        runs.setdefault(key, lambda model=model: loss(model))
    kept = {key: saved_bytes(run, models[key]) for key, run in runs.items()}
    times: dict[str, list[float]] = {key: [] for key in runs}
    for round_ in range(rounds + 1):
        for key, run in runs.items():
            models[key].zero_grad(set_to_none=True)
            start = time.process_time()
            run().backward()
            if round_:
                times[key].append(time.process_time() - start)
    limit = statistics.median(times["limit"])
    return [(name, key, statistics.median(t) / limit, kept[key] / 2**20) for key, t in times.items()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--only", default=",".join(NETWORKS))
    options.add_argument("--write", metavar="PAGE", help="replace the table of a page, below its line `<!-- bench -->`")
    given = options.parse_args()
    lines = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.rounds} rounds\n")
    say("| network | method | ours: time | HF peft: time | ours: MiB | HF peft: MiB | time ratio | bytes ratio |")
    say("|---|---|---|---|---|---|---|---|")
    for name in given.only.split(","):
        rows = {key: (t, mib) for _, key, t, mib in measure(name, given.rounds)}
        for key in ("limit", "full"):
            say(f"| {name} | {key} | {rows[key][0]:.2f} | | {rows[key][1]:.0f} | | | |")
        for method, _, _ in VARIANTS:
            (a, x), (b, y) = rows[f"{method}: ours"], rows[f"{method}: HF peft"]
            say(f"| {name} | {method} | {a:.2f} | {b:.2f} | {x:.0f} | {y:.0f} | {a / b:.2f} | {x / y:.2f} |")
    if given.write:
        from pathlib import Path

        page = Path(given.write)
        kept = page.read_text().split(MARK)[0]
        page.write_text(kept + MARK + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
