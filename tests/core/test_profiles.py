"""A family is data: the profile that fits the live module tree gives the roles."""

import pytest
import torch

from core import profiles
from core.adapters import attach, summary
from core.errors import ConfigError
from tests.core.adapters import zoo

FAMILIES = {
    "llama": """
match: [model.layers.*.self_attn.q_proj, model.layers.*.mlp.gate_proj]
heads: config.num_attention_heads
channel_axis: {block: 2}
port: {blocks: model.layers.*, dim: config.hidden_size}
roles: {attn.q: model.layers.*.self_attn.q_proj, mlp.out: model.layers.*.mlp.down_proj}
""",
    "gpt_neox": """
match: [gpt_neox.layers.*.attention.query_key_value]
heads: config.num_attention_heads
roles: {attn.q: "gpt_neox.layers.*.attention.query_key_value[0/3*{heads}]", embed: gpt_neox.embed_in}
""",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FAMILIES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("network", ["llama", "gpt_neox"])
def test_the_tree_chooses_the_family(network, folder):
    subject = zoo.build(network)
    found = profiles.find(subject.model, folder)
    assert found.name == network and found.heads == 4
    attach(subject.model, "lora", targets=["attn.q"], roles=found.roles, example=subject.example, rank=2)
    assert [row.role for row in summary(subject.model).rows] == ["attn.q"] * 2
    if network == "llama":
        assert found.channel_axis == {"block": 2} and found.port.blocks == "model.layers.*" and found.port.dim == 32
    if network == "gpt_neox":  # the query rows of each of 4 heads, as in the hand-written roles
        hand = zoo.build(network)
        attach(hand.model, "lora", targets=["attn.q"], roles=hand.roles, example=hand.example, rank=2)
        a, b = (m._peft.adapters["default"].bound[0].site.rows for m in (subject.model, hand.model))
        assert torch.equal(a.index(), b.index())


def test_no_family_says_what_the_network_has_and_what_to_write(folder):
    with pytest.raises(ConfigError) as caught:
        profiles.find(zoo.build("lstm").model, folder)
    assert "Recurrent with rnn, out" in str(caught.value) and "gpt_neox, llama" in str(caught.value)
    assert "NAME.yaml" in str(caught.value)
    assert profiles.find(zoo.build("lstm").model, folder, required=False) is None


def test_a_malformed_profile_is_named(folder):
    (folder / "broken.yaml").write_text("match: [a]\nrols: {}\n")
    with pytest.raises(ConfigError) as caught:
        profiles.find(zoo.build("lstm").model, folder)
    assert [p.where.rsplit(", ")[-1] for p in caught.value.problems] == ["rols", "roles"]
