"""The recipe of the embedded weights: draws from (seed, step) alone, resumes to the bit; the card says what is true."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch

from domains.vision_medical import pretrain
from domains.vision_medical.pretraining import card, loop, network, transfer

NAME = "segresnet_mini"
TINY = loop.Recipe("tiny", steps=4, batch=2, warmup=2)


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch):
    monkeypatch.setattr(loop, "HELD", 4)


def weights(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_cut_anywhere_ends_with_the_same_bits(tmp_path):
    whole = weights(loop.train(TINY, tmp_path / "whole", every=2)[0])
    net, facts = loop.train(TINY, tmp_path / "cut", budget=0.0, every=2)
    assert facts["step"] == 1 and not facts["done"] and not same(weights(net), whole)
    net, facts = loop.train(TINY, tmp_path / "cut", every=2)
    assert facts["done"] and same(weights(net), whole)


def test_a_batch_is_a_function_of_its_names():
    world = loop.World(0)
    a, b = (loop.batch(world, [("pretrain", 0, 3, i) for i in range(2)], 0.5) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], loop.batch(world, [("pretrain", 0, 4, i) for i in range(2)], 0.5)[0])
    assert a[0].shape == (2, 1, 64, 64) and a[1].max() <= 5


def test_dice_and_loss_by_hand():
    truth = torch.tensor([[[0, 1, 1, 0]]])
    assert network.dice(truth, truth, 3)[0, 0] == 1 and torch.isnan(network.dice(truth, truth, 3)[0, 1])
    assert network.dice(torch.tensor([[[0, 1, 0, 1]]]), truth, 2).item() == 0.5
    sure = torch.nn.functional.one_hot(truth, 2).movedim(-1, 1).float() * 50
    assert network.dice_and_entropy(sure, truth).item() < 1e-6


def test_export_is_read_by_the_backbone(tmp_path):
    from core import weights as files
    from domains.vision_medical.backbones.monai_net import MonaiNet

    net, facts = loop.train(TINY, tmp_path / "state", every=4)
    paths = card.export(net, TINY, facts, tmp_path)
    assert [p.name for p in paths] == ["tiny.safetensors", "tiny.json", "tiny.md"]
    described = json.loads(paths[1].read_text())
    again = MonaiNet(network=described["network"], options=described["options"], source=str(paths[0]))
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        hidden = again({"image": x}).hidden
        last = files.state(paths[0])
        expected = torch.nn.functional.conv2d(hidden, last["conv_final.2.conv.weight"], last["conv_final.2.conv.bias"])
        assert torch.allclose(net(x), expected, atol=1e-5)


def test_shipped_weights_are_those_of_their_card():
    text = (pretrain.WEIGHTS / f"{NAME}.md").read_text()
    content = (pretrain.WEIGHTS / f"{NAME}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() in text and len(content) <= 4 * 2**20
    assert card.write.__name__ and f"seed {pretrain.recipe('mini').seed}" in text


def test_the_weights_know_organs_of_patients_in_contrasts_they_have_not_seen(monkeypatch):
    """Dice on fresh patients is the card's, and far above what place alone gives."""
    from safetensors.torch import load_file

    net = network.build()
    net.load_state_dict(load_file(pretrain.WEIGHTS / f"{NAME}.safetensors"))
    images, asked = loop.batch(loop.World(0), [("fresh", i) for i in range(24)], 0.5)
    found = loop.evaluate(net, images, asked)["Dice"]
    text = (pretrain.WEIGHTS / f"{NAME}.md").read_text()
    told, place = (
        float(re.search(rf"^\| {row}[^|]*\| ([.\d]+) ", text, re.M)[1]) for row in ("this network", "place alone")
    )
    assert found > told - 0.05 and found > place + 0.15, (found, told, place)


def test_the_comparison_is_over_patients(tmp_path):
    """Two methods for two steps: rows, intervals and the paired difference are there, the table prints."""
    options = ("data.train=2", "data.val=1", "data.test=3", "trainer.max_steps=2", "loader.batch_size=2")
    less = {"methods": ("none", "lora"), "seeds": (0,)}
    result = json.loads(transfer.compare(NAME, tmp_path / "runs", tmp_path, options=options, **less).read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"none", "lora", "mean_mask"}
    assert rows["none"]["less"]["difference"] == pytest.approx(rows["lora"]["dice"] - rows["none"]["dice"], abs=1e-6)
    assert rows["none"]["less"]["groups"] == 3 and rows["lora"]["less"] is None
    assert len(transfer.table(result)) == 4 + 3


def test_a_state_of_another_recipe_is_refused(tmp_path):
    from core.errors import DataError

    loop.train(TINY, tmp_path / "state", budget=0.0)
    with pytest.raises(DataError, match=r"lr=0\.003"):
        loop.train(replace(TINY, lr=1e-2), tmp_path / "state")
