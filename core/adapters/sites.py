"""Role patterns -> sites.

A pattern is `glob[:parameter][rows]`. In the glob `*` stands for one path segment, or for part of one. Rows select
part of a fused weight:  `[i/n]` the i-th of n equal parts;  `[a:b]` rows a to b;  `[i/n*g]`, `[a:b*g]` the same
inside each of g interleaved groups (GPT-NeoX keeps query, key and value per head).

    blocks.*.attn.qkv[0/3]      encoder.layers.*.self_attn:in_proj_weight[2/3]      h.*.query_key_value[1/3*12]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from core.adapters.hosts import op_for
from core.adapters.op import Rows
from core.adapters.seam import stored
from core.errors import ConfigError, Problem, did_you_mean

PATTERN = re.compile(
    r"^(?P<glob>[^:\[\]]*)(?::(?P<parameter>\w+))?"
    r"(?:\[(?:(?P<part>\d+)/(?P<parts>\d+)|(?P<first>\d+):(?P<stop>\d+))(?:\*(?P<groups>\d+))?\])?$"
)


@dataclass(frozen=True)
class Site:
    """One role at one place. `key` names it everywhere: in files, errors and tables."""

    role: str
    path: str
    parameter: str = "weight"
    rows: Rows | None = None

    @property
    def key(self) -> str:
        return f"{self.path}:{self.parameter}|{self.role}"


# Roles that name weight matrices of a network's body: what `all` stands for, as far as a network has them.
MATRICES = (
    "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.out", "xattn.q", "xattn.k", "xattn.v", "xattn.out",
    "mlp.gate", "mlp.in", "mlp.out", "conv", "conv.dw", "conv.up", "rnn",
)  # fmt: skip
OUTPUTS = ("mlp", "features", "block")  # where an activation method goes, best first


def choose_targets(targets: Iterable[str] | None, default: Iterable[str], face: str, roles: Mapping) -> tuple[str, ...]:
    """Roles to adapt. `all` stands for every matrix role of the network. None is the method's own choice: those of its
    default roles that the network has, else all matrices (weight) or the first kind of module output (activation)."""
    if targets is None:
        targets = [role for role in default if role in roles]
        if not targets and default:
            targets = [role for role in OUTPUTS if role in roles][:1] if face == "activation" else ["all"]
        if not targets:
            return tuple(default)
    targets = [targets] if isinstance(targets, str) else list(targets)
    if "all" in targets:
        every = [role for role in MATRICES if role in roles]
        targets = [r for role in targets for r in (every if role == "all" else [role])]
    return tuple(dict.fromkeys(targets))


def resolve(net: nn.Module, roles: Mapping[str, str | list[str]], targets: Iterable[str]) -> list[Site]:
    """Sites of `targets` in network order. ConfigError lists every unknown role and every pattern without a match."""
    targets = [targets] if isinstance(targets, str) else list(targets)
    problems, sites = [], []
    if not targets:
        problems.append(Problem("adapter.targets", "[]", ", ".join(sorted(roles)), "name at least one role"))
    for number, role in enumerate(targets):
        if role not in roles:
            where = f"adapter.targets[{number}]"
            problems.append(Problem(where, role, ", ".join(sorted(roles)), did_you_mean(role, roles)))
            continue
        patterns = [roles[role]] if isinstance(roles[role], str) else roles[role]
        found = [site for pattern in patterns for site in _match(net, role, pattern, problems)]
        sites += found
        if not found and not problems:
            problems.append(_no_match(net, role, patterns))
    keys = [site.key for site in dict.fromkeys(sites)]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        problems.append(Problem(key, "two row ranges", "one per role", "give each range a role of its own"))
    if problems:
        raise ConfigError(problems=problems)
    order = {path: i for i, (path, _) in enumerate(net.named_modules())}
    unique = dict.fromkeys(sites)
    return sorted(unique, key=lambda s: (order[s.path], targets.index(s.role)))


def _match(net: nn.Module, role: str, pattern: str, problems: list[Problem]) -> list[Site]:
    parsed = PATTERN.match(pattern)
    if parsed is None:
        problems.append(
            Problem(f"roles.{role}", pattern, "glob[:parameter][i/n] or [a:b]", "see core/adapters/sites.py")
        )
        return []
    glob = re.compile("".join("[^.]+" if c == "*" else re.escape(c) for c in parsed["glob"]))
    parameter, sites = parsed["parameter"], []
    for path, module in net.named_modules():
        if not glob.fullmatch(path):
            continue
        rows = None
        if parsed["part"] or parsed["first"]:
            name = parameter or "weight"
            total = op_for(module, name).full(stored(module, name)).shape[0]
            rows = _rows(parsed, total)
            if rows is None:
                problems.append(
                    Problem(
                        f"roles.{role}", pattern, f"a division of the {total} rows of {path}", "check the row range"
                    )
                )
                continue
        sites.append(Site(role, path, parameter or "weight", rows))
    return sites


def _rows(parsed: re.Match, total: int) -> Rows | None:
    groups = int(parsed["groups"] or 1)
    if total % groups:
        return None
    stride = total // groups
    if parsed["parts"]:
        part, parts = int(parsed["part"]), int(parsed["parts"])
        if part >= parts or stride % parts:
            return None
        size = stride // parts
        return Rows(part * size, size, groups, stride)
    first, stop = int(parsed["first"]), int(parsed["stop"])
    return Rows(first, stop - first, groups, stride) if first < stop <= stride else None


def _no_match(net: nn.Module, role: str, patterns: list[str]) -> Problem:
    """What the network does have, near the pattern's own last segment."""
    last = patterns[0].split("[")[0].split(":")[0].rsplit(".", 1)[-1]
    paths = [path for path, _ in net.named_modules() if path]
    near = [p for p in paths if last and last != "*" and last in p.rsplit(".", 1)[-1]][:5] or paths[:5]
    return Problem(
        f"roles.{role}", f"{', '.join(patterns)} matches no module", f"e.g. {', '.join(near)}", "correct the pattern"
    )
