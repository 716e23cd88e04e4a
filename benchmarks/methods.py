"""Every method that HF peft has too, beside it: step time, bytes kept for backward, attach, merge and switch.

    python -m benchmarks.methods [--rounds 3] [--only llama320,esm2] [--methods lora,oft] [--write docs/performance.md]
    python -m benchmarks.methods --quick                     one small network: for development

Methods are found by their form of HF peft (`peft`, core/adapters/peft_form.py), with the options that both get from it.
The limit (the frozen network's forward and the gradient of its input), ours and theirs run interleaved in one process;
figures are CPU time (robust on a shared machine), as ratios within a round, median over the rounds. Rows where ours and
theirs are within CLOSE of each other get MORE rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.networks import NETWORKS, QUICK
from core import profiles
from core.adapters import attach, merge, methods, set_active, unmerge
from core.adapters.cost import saved_bytes
from core.adapters.peft_form import PeftForm
from core.errors import UnsupportedError

DECODERS = Path(__file__).resolve().parents[1] / "domains/text/backbones/profiles"
MARK = "<!-- bench -->"
CLOSE, MORE = 0.08, 2
PAIRS = ("ours", "limit"), ("theirs", "limit"), ("ours", "theirs")
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
        # A 4-bit base of theirs wants CUDA: what needs one has no peer here.
        if cls.face == "weight" and vars(cls).get("peft") is not None and not cls.needs_codes:
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


def peer_config(form: PeftForm, options: dict, targets, inner: str | list[str]):
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


def interleaved(runs: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round. The first round warms up; each goes first in turn, since who follows a run that
    took more memory finds it ready."""
    times: dict[str, list[float]] = {key: [] for key in runs}
    keys = list(runs)
    for round_ in range(rounds + 1):
        first = round_ % len(keys)
        for key in keys[first:] + keys[:first]:
            spent = seconds(runs[key])
            if round_:
                times[key].append(spent)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Median over the rounds of one / other: what slows the machine down for a while slows both."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


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
        return ratio(spent, "full", "limit"), *(b / 2**20 for b in kept)

    def inner(self) -> str | list[str]:
        """Whose input IA3 scales here: an expression, since a list's names would match the ends of others."""
        found = self.roles.get("mlp.out")
        return re.escape(found).replace(r"\*", r"\d+") if found else []

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
        runs = {"limit": lambda: self.limit().backward(), "ours": self.step(mine), "theirs": self.step(peer)}
        spent = interleaved(runs, self.rounds)
        if abs(ratio(spent, "ours", "theirs") - 1) < CLOSE:
            again = interleaved(runs, MORE * self.rounds)
            spent = {key: spent[key] + again[key] for key in runs}
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
            spent, (x, y) = found["spent"], found["kept"].values()
            a, b, quotient = (ratio(spent, *pair) for pair in PAIRS)
            ratios.append((quotient, x / y))
            life = " | ".join("-" if found[key] != found[key] else f"{found[key]:.2g}" for key in HEAD[-3:])
            say(f"| {name} | {row} | {a:.2f} | {b:.2f} | {x:.0f} | {y:.0f} | {quotient:.2f} | {x / y:.2f} | {life} |")
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
