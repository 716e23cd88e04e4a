"""The constructor is the schema: every problem of a config is found from source, in one error, with a near miss."""

import copy
import sys

import pytest

from core import catalog, config, schema, source
from core.compose import compose, prepare
from core.config import check, plain
from core.doctor import check_preset, combinations
from core.errors import ConfigError

PARTS = '''
from typing import Literal
from pathlib import Path

class Base:
    roles = {"attn.q": "layers.*.q", "attn.v": "layers.*.v"}
    def __init__(self, path: str, layers: int = 2, *, kind: Literal["small", "large"] = "small", scale: float = 1.0):
        raise RuntimeError("the check must not build anything")

class Net(Base):
    """Takes its constructor from Base."""

class Open:
    def __init__(self, **kwargs): ...

class Items:
    def __init__(self, files: list[str] | None = None, sizes: tuple[int, ...] = (1, 2), folder: Path | None = None,
                 net: Net | None = None): ...

class Ask:
    pass

raise RuntimeError("the check must not import anything")
'''

METHOD = """
from core.adapters.base import WeightMethod

class Toy(WeightMethod):
    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0): ...
"""


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A sound config of classes in a package that cannot even be imported."""
    package = tmp_path / "toy_package"
    package.mkdir()
    (package / "parts.py").write_text(PARTS)
    (package / "toy.py").write_text(METHOD)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return {
        "seed": 0,
        "domain": "toy",
        "backbone": {"_target_": "toy_package.parts.Net", "path": "x.pt"},
        "data": {"_target_": "toy_package.parts.Items"},
        "task": {"_target_": "toy_package.parts.Ask"},
        "adapter": {"_target_": "toy_package.toy.Toy", "rank": 4, "targets": ["attn.q"]},
        "optim": {"lr": 1e-3},
        "loader": {"batch_size": 4},
        "trainer": {"max_steps": 3},
        "run": {"fit": True},
    }


def changed(cfg: dict, changes: dict) -> dict:
    cfg = copy.deepcopy(cfg)
    for place, value in changes.items():
        *parents, last = place.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is KeyError:
            del node[last]
        else:
            node[last] = value
    return cfg


def test_a_sound_config_passes(cfg):
    check(cfg)


def test_all_problems_come_in_one_error(cfg):
    bad = {"adapter.rnak": 8, "adapter.targets": ["attn.q", "attn.query"], "backbone.kind": "larg", "optim.lr": "fast"}
    with pytest.raises(ConfigError) as caught:
        check(changed(cfg, {"seed": 1.5, **bad, "backbone.path": KeyError, "run.resume": "yes"}))
    assert str(caught.value) == SNAPSHOT


SNAPSHOT = """\
error[config]: 7 problems
  1. where    seed
     got      1.5 (float)
     allowed  int
  2. where    backbone.kind
     got      'larg' (str)
     allowed  small, large
     fix      did you mean `large`?
  3. where    backbone.path
     got      missing
     allowed  str
  4. where    adapter.rnak
     got      8
     allowed  alpha, budget, name, path, rank, targets, thin, verify
     fix      did you mean `rank`?
  5. where    adapter.targets[1]
     got      attn.query
     allowed  attn.q, attn.v
     fix      did you mean `attn.q`?
  6. where    optim.lr
     got      'fast' (str)
     allowed  float
  7. where    run.resume
     got      'yes' (str)
     allowed  auto, never, weights"""


QUANTISE = {"_target_": "core.adapters.quantised.quantise", "_partial_": True}


@pytest.mark.parametrize(
    ("changes", "where", "fix"),
    [
        ({"optm": {"lr": 1}}, "optm", "optim"),
        ({"trainer.max_step": 3}, "trainer.max_step", "max_steps"),
        ({"trainer.max_steps": "ten"}, "trainer.max_steps", ""),
        ({"trainer.precision": "bf16-mixd"}, "trainer.precision", "bf16-mixed"),
        ({"trainer.precision": 17}, "trainer.precision", ""),
        ({"loader.batchsize": 3}, "loader.batchsize", "batch_size"),
        ({"data.sizes": [1, "2"]}, "data.sizes[1]", ""),
        ({"data.files": "a.csv"}, "data.files", ""),
        ({"data.folder": 3}, "data.folder", ""),
        ({"backbone.layers": True}, "backbone.layers", ""),
        ({"backbone.layers": "???"}, "backbone.layers", ""),
        ({"backbone._target_": "core.adapters.methods.lora.LoRa"}, "backbone._target_", "LoRA"),
        ({"adapter._target_": "core.adapters.methods.lorra.LoRA"}, "adapter._target_", "lora"),
        ({"data.net": {"_target_": "toy_package.parts.Net", "pth": 1, "path": "x"}}, "data.net.pth", "path"),
        ({"task": KeyError}, "task", ""),
        ({"sweep": {"methods": ["lora", "lorra"]}}, "sweep.methods[1]", "lora"),
        ({"quantise": {**QUANTISE, "step": 3}}, "quantise.step", "steps"),
        ({"quantise": {**QUANTISE, "each": 3}}, "quantise.each", ""),  # given by the run
        ({"quantise": "nf4"}, "quantise", ""),
    ],
)
def test_one_problem_has_its_place_and_near_miss(cfg, changes, where, fix):
    with pytest.raises(ConfigError) as caught:
        check(changed(cfg, changes))
    (problem,) = caught.value.problems
    assert problem.where == where
    assert problem.fix == (f"did you mean `{fix}`?" if fix else problem.fix)
    assert bool(fix) == problem.fix.startswith("did you mean")


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone.scale": 2},  # an int is a float
        {"trainer.precision": 16, "trainer.devices": "auto", "trainer.val_check_interval": 0.5},
        {"data.files": None, "data.folder": "x/y", "data.sizes": [1, 2, 3]},
        {"data._target_": "toy_package.parts.Open", "data.anything": 1},
        {"data._target_": "collections.OrderedDict", "data.anything": 1},
        {"data._target_": "toy_package.parts.Itms"},  # not one of ours: its import will say so
        {"backbone": {"_target_": "toy_package.parts.Open", "roles": {"conv": "c.*"}}, "adapter.targets": ["conv"]},
        {"backbone._target_": "toy_package.parts.Open", "adapter.targets": ["known to the network alone"]},
        {"data.net": {"_target_": "toy_package.parts.Net", "path": "x"}},
        {"data": {"_target_": "toy_package.parts.Net", "_partial_": True}},
    ],
)
def test_what_is_right_or_unknowable_passes(cfg, changes):
    check(changed(cfg, changes))


def test_trainer_keys_are_lightnings():
    trainer = source.read("lightning.pytorch.trainer.trainer.Trainer")
    assert {p.name for p in schema.TRAINER} == {p.name for p in trainer.parameters}


def test_adapter_keys_are_attachs():
    attach = source.read("core.adapters.model.attach")
    assert {p.name for p in schema.ATTACH} <= {p.name for p in attach.parameters}


def test_a_methods_options_are_what_attach_takes():
    from core.adapters import methods

    for name in catalog.methods():
        options = config.method_options(catalog.method(name).definition)
        assert [p.name for p in options] == list(methods.options(catalog.load(name))), name


@pytest.mark.parametrize(("domain", "overrides"), list(combinations()), ids=str)
def test_every_preset_composes_and_passes(domain, overrides):
    check_preset(domain, overrides)


def test_a_preset_may_leave_values_to_the_user():
    with pytest.raises(ConfigError) as caught:
        check(compose("protein", ["data=csv"]))
    assert [(p.where, p.got, p.fix) for p in caught.value.problems] == [
        ("data.path", "???", "give it: `data.path=...`")
    ]


def test_presets_that_choose_for_others():
    assert compose("protein", ["adapter=scratch"]).backbone.pretrained is False
    assert compose("protein", ["adapter=loraplus"]).optim.lr_ratio == 16
    chosen = compose("protein", ["adapter=loraplus", "backbone=esm2_tiny"]).choices
    assert (chosen.adapter, chosen.optim, chosen.backbone) == ("loraplus", "loraplus", "esm2_tiny")


@pytest.mark.parametrize(
    ("override", "where", "fix"),
    [
        ("adapter=lorra", "adapter", "did you mean `lora`?"),
        ("adapter=lora,lorra", "adapter", "did you mean `lora`?"),
        ("optim=[adamw,adam]", "optim", "did you mean `adamw`?"),
        ("seed", "command line", "give it a value: `seed=...`"),
        ("seed=[", "command line", ""),
    ],
)
def test_a_wrong_command_line_is_a_config_error(override, where, fix):
    with pytest.raises(ConfigError) as caught:
        prepare("protein", [override, "backbone=nothing"])
    first, second = caught.value.problems  # both, not the first alone
    assert (first.where, first.fix) == (where, fix)
    assert (second.where, second.got) == ("backbone", "nothing")


def test_unknown_keys_reach_the_check():
    assert prepare("protein", ["adapter=lora", "adapter.rnak=1", "+new.key=2", "hydra.run.dir=x", "~metric"]) == [
        "adapter=lora", "++adapter.rnak=1", "++new.key=2", "hydra.run.dir=x", "~metric",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="did you mean `rank`"):
        check(compose("protein", ["adapter.rnak=1"]))


def test_an_unknown_field():
    with pytest.raises(ConfigError, match="did you mean `protein`"):
        compose("protien")


def test_a_preset_is_left_out_with_a_tilde_not_with_null():
    with pytest.raises(ConfigError, match="~sweep"):
        compose("protein", ["sweep=null"])


@pytest.mark.parametrize(
    ("field", "name"),
    [(f, n) for f in catalog.domains() for n in catalog.groups(f).get("experiment", {}) if n != "demo"],
)
def test_an_experiment_without_its_sweep_is_one_run(field, name):
    """What it changes of the preset is left over, and is no sweep."""
    assert plain(compose(field, [f"+experiment={name}", "~sweep"]))["sweep"] is None


def test_scratch_is_never_pretrained():
    """An experiment that sets `backbone.pretrained` is composed over the anchor, which would be `full`."""
    check(compose("vision_medical", ["adapter=scratch"]))
    with pytest.raises(ConfigError) as caught:
        check(compose("vision_medical", ["adapter=scratch", "backbone.pretrained=true"]))
    (problem,) = caught.value.problems
    assert problem.where == "backbone.pretrained" and "scratch" in problem.allowed
