"""Every family, tiny and random: roles are alive and mergeable, halves part the network, the base stays itself."""

import pytest
import torch
from omegaconf import OmegaConf

from core import catalog
from core.adapters import attach, detach, merge, quantise, summary, trainable, use
from core.adapters import head as head_of
from core.adapters.probe import pseudo_loss
from core.adapters.sites import resolve
from core.config import OPEN, method_options
from core.contracts import Task
from core.errors import ConfigError, UnsupportedError
from core.paths import conf_dir
from core.training.assemble import asked
from core.training.module import PeftModule
from core.training.optim import Optim
from domains.vision_medical.backbones.monai_net import MonaiNet, built
from domains.vision_medical.backbones.structure import MODULES
from domains.vision_medical.backbones.timm_model import TimmModel
from tests.domains.vision_medical.networks import ALL, MONAI, SWIN, VIT


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def shaken(backbone, name="default", by=0.02):
    generator = torch.Generator().manual_seed(1)
    for p in trainable(backbone, name).values():
        p.data += by * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("name", ALL)
def test_every_role_is_alive_in_three_modes_and_merges(name):
    """`attach` itself proves life: a role that no forward reads raises DeadSiteError."""
    build, family = ALL[name]
    backbone = build().eval()
    assert backbone.family == family
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    plain = [role for role in backbone.roles if not role.startswith(("encoder", "decoder"))]
    outputs = [role for role in plain if role in MODULES]
    matrices = [role for role in plain if role not in (*outputs, "norm", "block")]
    assert "norm" in plain and {"conv", "attn.q", "mlp.in"} & set(matrices)
    with torch.no_grad():
        twice = [backbone.train()(*backbone.example()[0]).hidden for _ in range(2)]
        base = backbone.eval()(*backbone.example()[0]).hidden
    assert torch.equal(*twice)  # no dropout, no stochastic depth
    backbone = build().eval()
    assert base.shape[:2] == (2, backbone.width)
    attach(backbone, "lora", targets=matrices, rank=2)
    assert {row.role for row in summary(backbone).rows} == set(matrices)
    shaken(backbone)
    with torch.no_grad():
        moved = backbone(*backbone.example()[0]).hidden
    assert relative(moved, base) > 1e-4
    assert merge(backbone).max_error <= 1e-5  # worst measured 2e-6
    backbone = build().eval()
    attach(backbone, "norm")
    detach(backbone)
    if outputs:
        attach(backbone, "houlsby", targets=outputs, size=4)
        detach(backbone)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("name", MONAI)
def test_halves_part_the_layers(name):
    backbone = MONAI[name][0]()

    def places(role):
        found = resolve(backbone.net, backbone.roles, [role]) if role in backbone.roles else []
        return {(site.path, site.rows) for site in found}

    for role in [role for role in ("conv", "conv.up", "norm", "attn.q") if role in backbone.roles]:
        encoder, decoder = places(f"encoder.{role}"), places(f"decoder.{role}")
        assert encoder | decoder == places(role) and not encoder & decoder, role
        assert encoder or decoder
    assert not any("norm_cross_attn" in path for path, _ in places("norm"))


def test_encoder_by_lora_and_decoder_in_full():
    """Two adapters on one network, each on its half, both active."""
    backbone = MONAI["segresnet"][0]().eval()
    attach(backbone, "lora", targets=["encoder.conv"], rank=2, name="encoder")
    attach(backbone, "bitfit", targets=["decoder"], name="decoder")
    shaken(backbone, "encoder")
    x = backbone.example()[0]
    with torch.no_grad(), use(backbone, {"encoder": 1.0, "decoder": 1.0}):
        both = backbone(*x).hidden
    with torch.no_grad(), use(backbone, "decoder"):
        one = backbone(*x).hidden
    assert relative(both, one) > 1e-4
    paths = {row.site.split(":")[0] for row in summary(backbone, "encoder").rows}
    assert all(path.startswith(("convInit", "down_layers")) for path in paths)


IMAGES = {"resnet", "convnext_conv", "segresnet", "unet3d"}
STRIDED = {"resnet", "segresnet", "unet3d"}  # what a module gives out has another shape than what goes in
# Beside token methods, which only the ViT has a port for. Blocks and sizes are the presets' own, widths tiny.
REFUSED = {
    **dict.fromkeys(["attention_only", "bone", "boft", "oft", "ladder"], IMAGES),
    **dict.fromkeys(["parallel", "adaptformer", "lily", "gated_lora"], STRIDED),
    "conv_adapter": {"vit"},
    "loftq": IMAGES,
}


@pytest.mark.parametrize("name", ["vit", *sorted(IMAGES)])
def test_presets_attach_or_say_why_not(name):
    """Every preset of conf/adapter, unchanged."""
    for file in sorted((conf_dir() / "adapter").glob("*.yaml")):
        options = OmegaConf.to_container(OmegaConf.load(file))
        options = dict(options.get("adapter", options))
        options.pop("defaults", None)
        if "parts" in options:  # a combination: a refusal names the part
            if options["parts"] != OPEN:
                backbone, (method, options) = ALL[name][0](), asked(options)
                if name == "vit":
                    attach(backbone, method, **options)
                else:
                    with pytest.raises(UnsupportedError, match=r"part \w+: "):
                        attach(backbone, method, **options)
            continue
        small = {"rank": 2, "target_rank": 1}  # as the tiny networks allow
        options |= {key: value for key, value in small.items() if key in options}
        method = catalog.method(options.pop("_target_").split(".")[-2])
        if method.name == "full":
            continue
        assert options.keys() <= {p.name for p in method_options(method.definition)} | {"targets"}
        backbone = ALL[name][0]()
        try:
            if getattr(catalog.load(method.name), "needs_codes", ""):
                quantise(backbone, rank=options["rank"])
            attach(backbone, method.name, **options)
        except (ConfigError, UnsupportedError) as refused:
            assert refused.problems[0].got and (refused.problems[0].fix or refused.problems[0].allowed), file.stem
            assert name in REFUSED.get(file.stem, ()) or (name != "vit" and method.face == "token"), (
                f"{file.stem}: {refused}"
            )
        else:
            assert name not in REFUSED.get(file.stem, ()) and (name == "vit" or method.face != "token"), file.stem


@pytest.mark.parametrize("network", ["segresnet", "unetr", "swinunetr"])
def test_hidden_is_what_the_last_convolution_reads(network):
    """The library's own network, same seed: its last layer on our hidden state gives its output."""
    backbone = MONAI[network][0]().eval()
    whole = built(network, backbone.options, 0).eval()
    last = whole.conv_final[2] if network == "segresnet" else whole.out.conv
    (batch,), _ = backbone.example()
    with torch.no_grad():
        assert torch.equal(last(backbone(batch).hidden), whole(batch["image"]))


def test_grey_is_the_same_picture_in_colour():
    """A grey image gives what the network gives for equal red, green and blue, each with its own mean and deviation."""
    backbone = ALL["resnet"][0]().eval()
    grey = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = backbone({"image": grey}).hidden
        mean, std = backbone.mean[:, None, None], backbone.std[:, None, None]
        assert torch.equal(found, backbone.net((grey.expand(2, 3, 64, 64) - mean) / std))
        assert relative(backbone.net(grey.expand(2, 3, 64, 64)), found) > 1e-3  # normalisation does something
    assert backbone.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_size_of_the_network():
    vit = ALL["vit"][0]().eval()
    with torch.no_grad():
        assert vit({"image": torch.rand(1, 3, 50, 70)}).hidden.shape == (1, 32)  # brought to 32 x 32
    resnet = TimmModel("resnet10t", options={"channels": (8, 8, 8, 8), "stem_width": 8}, size=48, pretrained=False)
    assert resnet.example()[0][0]["image"].shape[-1] == 48


@pytest.mark.parametrize("build", [
    lambda on: TimmModel("vit_tiny_patch16_224", options=VIT, checkpointing=on, pretrained=False),
    lambda on: TimmModel("swin_tiny_patch4_window7_224", options=SWIN, checkpointing=on, pretrained=False),
    lambda on: MonaiNet("swinunetr", options={"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)},
                        checkpointing=on, pretrained=False),
])  # fmt: skip
def test_checkpointing_changes_no_gradient(build):
    grads = []
    for on in (False, True):
        backbone = build(on).train()
        attach(backbone, "lora", targets=["attn.q", "mlp.out"], rank=2, seed=0)
        shaken(backbone)
        pseudo_loss(backbone(*backbone.example()[0]).hidden).backward()
        grads.append(torch.cat([p.grad.flatten() for p in trainable(backbone).values()]))
    assert grads[0].count_nonzero() > 100 and relative(*grads) <= 1e-6  # measured 0


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet", "densenet", "unet"])
@pytest.mark.parametrize("method", ["lora", "norm", "full"])
def test_batch_statistics_stay_unless_the_base_trains(name, method):
    backbone = ALL[name][0]()
    attach(backbone, method, head=torch.nn.Identity())
    module = PeftModule(backbone, Task(), Optim(), tensors=trainable(backbone), head=head_of(backbone, "default"))
    before = {key: b.clone() for key, b in backbone.net.named_buffers()}
    assert sum(key.endswith("running_mean") for key in before) >= 4
    module.train()
    for _ in range(2):
        backbone(*backbone.example()[0]).hidden.sum().backward()
    same = [torch.equal(b, before[key]) for key, b in backbone.net.named_buffers()]
    assert not any(same) if method == "full" else all(same)


def test_same_seed_same_weights_and_no_draw_of_the_callers_numbers():
    for name in ("vit", "unet"):
        kind = type(ALL[name][0]())
        torch.manual_seed(3)
        state = torch.random.get_rng_state()
        first = "resnet10t" if kind is TimmModel else "unet"
        a, b, c = (kind(first, pretrained=False, seed=seed).state_dict() for seed in (0, 0, 1))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)
