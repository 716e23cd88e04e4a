"""Every method that HF peft has too, beside it: step time, bytes kept for backward, attach, merge and switch.

    python -m benchmarks.methods [--rounds 3] [--only llama320,esm2] [--methods lora,oft] [--write docs/performance.md]
    python -m benchmarks.methods --quick                     one small network: for development

Methods are found by their form of HF peft (`peft`, core/adapters/peft_form.py), with the options that both get from it.
The limit (the frozen network's forward and the gradient of its input), ours and theirs run interleaved in one process;
figures are CPU time (robust on a shared machine), medians, as ratios. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from core import profiles
from core.adapters import attach, merge, methods, set_active, unmerge
from core.adapters.cost import saved_bytes
from core.adapters.peft_form import PeftForm
from core.errors import UnsupportedError

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(width: int = 320, layers: int = 4, batch: int = 8):
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, width // 64)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 8 // 3 // 8 * 8, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=1024, max_position_embeddings=512,
    )  # fmt: skip
    a = "model.layers.*"
    roles = {"attn.q": f"{a}.self_attn.q_proj", "attn.k": f"{a}.self_attn.k_proj", "attn.v": f"{a}.self_attn.v_proj",
             "attn.out": f"{a}.self_attn.o_proj", "mlp.gate": f"{a}.mlp.gate_proj", "mlp.in": f"{a}.mlp.up_proj",
             "mlp.out": f"{a}.mlp.down_proj"}  # fmt: skip
    x = torch.randint(0, 1024, (batch, 256))

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
        ["qkv", "attn.proj", "fc1", "fc2"],
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
QUICK = {"quick": lambda: llama(320, layers=2, batch=4)}
DECODERS = Path(__file__).resolve().parents[1] / "domains/text/backbones/profiles"
MARK = "<!-- bench -->"
# Options that differ from a method's own defaults: one rank for the LoRA family, blocks that divide every width.
OPTIONS = {
    "lora": {"rank": 8, "alpha": 16.0}, "dora": {"rank": 8, "alpha": 16.0}, "oft": {"block": 16},
    "boft": {"block": 8, "factors": 1}, "adalora": {"rank": 12, "target_rank": 8}, "bone": {"rank": 16},
}  # fmt: skip
# Methods of virtual tokens, on decoders: options here, and their configuration
TOKENS = {
    "prompt": ({"tokens": 20}, "PROMPT_TUNING", {"num_virtual_tokens": 20}),
    "p_tuning": ({"tokens": 20, "hidden": 128}, "P_TUNING",
                 {"num_virtual_tokens": 20, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 128,
                  "encoder_num_layers": 2, "encoder_dropout": 0.0}),
    "prefix": ({"tokens": 10}, "PREFIX_TUNING", {"num_virtual_tokens": 10}),
    "prefix + mlp": ({"tokens": 10, "encoder": "mlp", "hidden": 512}, "PREFIX_TUNING",
                     {"num_virtual_tokens": 10, "prefix_projection": True, "encoder_hidden_size": 512}),
}  # fmt: skip
# Further rows: (name, method, options)
FURTHER = [("lora + dropout", "lora", {"dropout": 13 / 256}), ("dora + dropout", "dora", {"dropout": 13 / 256})]


def shared() -> list[tuple[str, str, dict]]:
    """(row, method, options) of every weight method with a form of theirs."""
    found = []
    for name in methods.names():
        cls = methods.find(name)
        if cls.face == "weight" and vars(cls).get("peft") is not None:
            found.append((name, name, OPTIONS.get(name, {})))
    found += [(row, name, {**OPTIONS[name], **more}) for row, name, more in FURTHER]
    return found + [(row, row.partition(" ")[0], options) for row, (options, _, _) in TOKENS.items()]


def seeded(build: Callable) -> nn.Module:
    torch.manual_seed(0)
    model = build().train()
    if type(model).__name__.endswith("ForCausalLM"):
        model.token_port = profiles.find(model, DECODERS).port
    return model


def ours(build, roles, example, method, options, name="default", model=None):
    model = seeded(build) if model is None else model
    if methods.find(method).face == "token":
        return attach(model, method, roles={}, example=example, name=name, **options)
    return attach(model, method, targets=list(roles), roles=roles, example=example, name=name, **options)


def peer_config(form: PeftForm, options: dict, targets, inner: list[str]):
    import peft

    entries = form.entries([], options)
    if form.type == "IA3":
        entries["feedforward_modules"] = inner
    if "total_step" in entries:
        entries["total_step"] = 1000
    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(form.type)](target_modules=targets, **entries)


def token_config(row: str):
    import peft

    _, kind, entries = TOKENS[row]
    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](task_type="CAUSAL_LM", **entries)


def theirs(build, config):
    import peft

    model = peft.get_peft_model(seeded(build), config)
    resting(model)
    return model


def resting(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def hosts(build, roles) -> set[str]:
    """Kinds of the modules that are adapted."""
    kinds = {"Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d"}
    paths = [path for paths in roles.values() for path in ([paths] if isinstance(paths, str) else paths)]
    model = build()
    names = {type(model.get_submodule(p)).__name__ for p in paths if "*" not in p and "[" not in p}
    return (names & kinds) or {"Linear"}


def seconds(run: Callable) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def interleaved(runs: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of each; the first round warms up."""
    times: dict[str, list[float]] = {key: [] for key in runs}
    for round_ in range(rounds + 1):
        for key, run in runs.items():
            spent = seconds(run)
            if round_:
                times[key].append(spent)
    return {key: statistics.median(found) for key, found in times.items()}


class Network:
    """One network with its frozen limit, against which each method is measured."""

    def __init__(self, make: Callable, rounds: int):
        self.build, self.roles, self.example, self.loss, self.entrance, self.targets = make()
        self.rounds, self.kinds = rounds, hosts(self.build, self.roles)
        self.frozen = seeded(self.build).requires_grad_(False)
        resting(self.frozen)

    def limit(self):
        return self.loss(self.frozen, self.entrance(self.frozen))

    def step(self, model: nn.Module) -> Callable:
        def run():
            model.zero_grad(set_to_none=True)
            self.loss(model).backward()

        return run

    def full(self) -> tuple[float, float, float]:
        """(time over the limit, MiB of the limit, MiB)"""
        model = seeded(self.build)
        spent = interleaved({"limit": lambda: self.limit().backward(), "full": self.step(model)}, self.rounds)
        kept = [saved_bytes(self.limit, self.frozen), saved_bytes(lambda: self.loss(model), model)]
        return spent["full"] / spent["limit"], *(b / 2**20 for b in kept)

    def inner(self) -> list[str]:
        """Paths whose input IA3 scales here."""
        found = self.roles.get("mlp.out", [])
        return [t for t in self.targets if found.endswith(f".{t}")] if isinstance(found, str) else list(found)

    def pair(self, row: str, method: str, options: dict) -> dict | None:
        """Ours beside theirs; None where theirs has no such hosts, or ours refuses some of them."""
        cls = methods.find(method)
        if cls.face == "token":
            if not hasattr(self.frozen, "token_port"):
                return None
            config = token_config(row)
        elif self.kinds <= set(cls.peft.hosts):
            given = {**methods.options(cls), **options}
            config = peer_config(cls.peft, given, self.targets, self.inner())
        else:
            return None
        try:
            mine = ours(self.build, self.roles, self.example, method, options)
        except UnsupportedError:
            return None
        peer = theirs(self.build, config)
        spent = interleaved(
            {"limit": lambda: self.limit().backward(), "ours": self.step(mine), "theirs": self.step(peer)}, self.rounds
        )
        kept = {key: saved_bytes(lambda m=m: self.loss(m), m) / 2**20 for key, m in (("ours", mine), ("theirs", peer))}
        return {"spent": spent, "kept": kept, **self.life(method, options, config, mine, peer)}

    def life(self, method, options, config, mine, peer) -> dict[str, float]:
        """Attach, merge and undo, switch: ours over theirs."""
        mine.eval(), peer.eval()
        other = {"mine": seeded(self.build), "peer": seeded(self.build)}
        attached = seconds(lambda: ours(None, self.roles, self.example, method, options, model=other["mine"]))
        import peft

        attached /= seconds(lambda: peft.get_peft_model(other["peer"], config))
        found = {"attach": attached, "merge": float("nan"), "switch": float("nan")}
        try:
            theirs_ = seconds(lambda: (peer.merge_adapter(), peer.unmerge_adapter()))
        except Exception:  # several of theirs do not merge on convolutions
            pass
        else:
            found["merge"] = seconds(lambda: (merge(mine), unmerge(mine))) / theirs_
        try:
            peer.add_adapter("second", config)
        except Exception:
            return found
        ours(None, self.roles, self.example, method, options, name="second", model=mine)

        def ours_switch():
            for _ in range(10):
                set_active(mine, "default"), set_active(mine, "second")

        def their_switch():
            for _ in range(10):
                peer.set_adapter("default"), peer.set_adapter("second")

        found["switch"] = seconds(ours_switch) / seconds(their_switch)
        return found


HEAD = (
    "network", "method", "ours: time", "HF peft: time", "ours: MiB", "HF peft: MiB", "time ratio", "bytes ratio",
    "attach", "merge", "switch",
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", default=",".join(NETWORKS))
    options.add_argument("--methods", default="", help="rows, by name; all where empty")
    options.add_argument("--quick", action="store_true", help="one small network")
    options.add_argument("--write", metavar="PAGE", help="replace the table of a page, below its line `<!-- bench -->`")
    given = options.parse_args()
    networks = QUICK if given.quick else {name: NETWORKS[name] for name in given.only.split(",")}
    rounds = given.rounds
    wanted = set(given.methods.split(",")) - {""}
    lines = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    say("| " + " | ".join(HEAD) + " |")
    say("|---" * len(HEAD) + "|")
    ratios: list[tuple[float, float]] = []
    for name, make in networks.items():
        network = Network(make, rounds)
        if not wanted:
            time_, least, most = network.full()
            say(f"| {name} | limit | 1.00 | | {least:.0f} | | | | | | |")
            say(f"| {name} | full | {time_:.2f} | | {most:.0f} | | | | | | |")
        for row, method, own in shared():
            if wanted and row not in wanted:
                continue
            found = network.pair(row, method, own)
            if found is None:
                continue
            (limit, a, b), (x, y) = found["spent"].values(), found["kept"].values()
            ratios.append((a / b, x / y))
            life = " | ".join("-" if found[key] != found[key] else f"{found[key]:.2g}" for key in HEAD[-3:])
            say(
                f"| {name} | {row} | {a / limit:.2f} | {b / limit:.2f} | {x:.0f} | {y:.0f} "
                f"| {a / b:.2f} | {x / y:.2f} | {life} |"
            )
    if ratios:
        times, kept = zip(*ratios, strict=True)
        say(
            f"\nMedian time ratio {statistics.median(times):.2f}, of bytes {statistics.median(kept):.2f}; "
            f"largest {max(times):.2f} and {max(kept):.2f}; {len(ratios)} rows."
        )
    if given.write:
        page = Path(given.write)
        kept_text = page.read_text().split(MARK)[0]
        page.write_text(kept_text + MARK + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
