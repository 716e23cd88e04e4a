"""Hugging Face peft reads what we write and we read what it writes, with equal outputs; or the reason why not."""

import json

import pytest
import torch
from torch import nn

from core.adapters import attach, head, trainable
from core.adapters.peft_format import export_peft
from core.adapters.peft_import import import_peft
from core.errors import AdapterError, UnsupportedError
from tests.core.adapters.tokens_zoo import build, ids

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

LLAMA = {
    "attn.q": "model.layers.*.self_attn.q_proj",
    "attn.v": "model.layers.*.self_attn.v_proj",
    "mlp.out": "model.layers.*.mlp.down_proj",
    "embed": "model.embed_tokens",
}
GPT2 = {
    "attn.q": "transformer.h.*.attn.c_attn[0/3]",
    "attn.v": "transformer.h.*.attn.c_attn[2/3]",
    "mlp.in": "transformer.h.*.mlp.c_fc",
    "embed": "transformer.wte",
}
BERT = {
    "attn.q": "bert.encoder.layer.*.attention.self.query",
    "attn.v": "bert.encoder.layer.*.attention.self.value",
    "mlp.out": "bert.encoder.layer.*.output.dense",
    "pos": "bert.embeddings.position_embeddings",
}


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv1d(4, 6, 3, stride=2, padding=1)
        self.two = nn.Conv2d(6, 5, (3, 1), padding="same", bias=False)
        self.three = nn.Conv3d(5, 4, 2)
        self.odd = nn.Conv1d(3, 3, 3, groups=3)
        self.eval()

    def forward(self, input_ids, attention_mask=None):
        x = torch.sin(input_ids.float()[:, None, :] + torch.arange(4)[None, :, None])
        x = self.two(self.one(x)[..., None].expand(-1, -1, -1, 3))
        return self.odd(self.three(torch.stack([x, x], -1)).flatten(2)[:, :3])


CONVS = {"conv": ["one", "two", "three"]}
CASES = {
    "llama lora": ("llama", LLAMA, "lora", ["attn.q", "mlp.out"], {"rank": 4}),
    "llama rslora": ("llama", LLAMA, "lora", ["attn.q"], {"rank": 4, "scaling": "rank_stabilised"}),
    "llama embed": ("llama", LLAMA, "lora", ["embed", "attn.v"], {"rank": 3}),
    "llama dora": ("llama", LLAMA, "dora", ["attn.q", "mlp.out"], {"rank": 4}),
    "llama ia3": ("llama", LLAMA, "ia3", ["attn.v", "mlp.out"], {}),
    "gpt2 fused": ("gpt2", GPT2, "lora", ["attn.q", "attn.v", "mlp.in"], {"rank": 4}),
    "gpt2 fused dora": ("gpt2", GPT2, "dora", ["attn.v", "mlp.in"], {"rank": 4}),
    "bert lora": ("bert", BERT, "lora", ["attn.q", "mlp.out", "pos"], {"rank": 4}),
    "bert dora": ("bert", BERT, "dora", ["attn.v"], {"rank": 4}),
    "convs lora": (Convs, CONVS, "lora", ["conv"], {"rank": 2}),
    "convs dora": (Convs, CONVS, "dora", ["conv"], {"rank": 2}),
}


def base(net):
    return net() if isinstance(net, type) else build(net).net


def outputs(net):
    tokens = ids(2, 16, high=19)
    with torch.no_grad():
        out = net(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return out if isinstance(out, torch.Tensor) else out.logits


def adapted(net, roles, method, targets, options):
    net = base(net)
    example = ((), {"input_ids": ids(2, 16, high=19), "attention_mask": torch.ones(2, 16, dtype=torch.long)})
    before = outputs(net)
    attach(net, method, targets=targets, roles=roles, example=example, seed=0, **options)
    torch.manual_seed(1)
    for p in trainable(net).values():
        p.data.add_(torch.randn_like(p) * 0.1)
    assert relative(outputs(net), before) > 1e-3
    return net, example


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("case", CASES)
def test_theirs_reads_ours_and_ours_reads_theirs(case, tmp_path):
    """Ours out, theirs in; what theirs then saves, ours in again."""
    net, example = adapted(*CASES[case])
    expected = outputs(net)
    export_peft(net, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(base(CASES[case][0]), tmp_path / "ours").eval()
    assert relative(outputs(theirs), expected) <= 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    again = import_peft(base(CASES[case][0]), tmp_path / "theirs", example=example)
    assert relative(outputs(again), expected) <= 1e-5


def test_their_own_ranks_scales_and_patterns_are_read(tmp_path):
    """Trained there: different ranks and alphas per module, rank-stabilised, named by suffix."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 3},
        use_rslora=True,
        lora_dropout=0.1,
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(build("llama").net, config).eval()
    expected = outputs(theirs)
    theirs.save_pretrained(tmp_path)
    net = import_peft(build("llama").net, tmp_path, example=((), {"input_ids": ids()}))
    assert relative(outputs(net), expected) <= 1e-5
    assert net._peft.adapters["default"].options["rank"] == 4


def test_the_head_travels_beside(tmp_path):
    net, example = adapted(*CASES["bert lora"])
    net._peft.heads["default"] = nn.Linear(32, 2)
    export_peft(net, tmp_path)
    mine = nn.Linear(32, 2)
    import_peft(build("bert").net, tmp_path, example=example, head=mine)
    assert torch.equal(mine.weight, head(net).weight)


def test_what_has_no_equivalent_is_refused_with_the_reason(tmp_path):
    net, _ = adapted("gpt2", GPT2, "lora", ["embed", "mlp.in"], {})
    with pytest.raises(UnsupportedError, match="tied with") as caught:
        export_peft(net, tmp_path / "x")
    assert len(caught.value.problems) == 1 and not (tmp_path / "x").exists()
    net, _ = adapted("bert", BERT, "ia3", ["attn.v"], {})
    with pytest.raises(UnsupportedError, match="bias"):
        export_peft(net, tmp_path / "x")
    net, _ = adapted(Convs, {"conv": "odd"}, "lora", ["conv"], {"rank": 1})
    with pytest.raises(UnsupportedError, match="groups 3"):
        export_peft(net, tmp_path / "x")
    net, _ = adapted("llama", {"mlp": "model.layers.*.mlp"}, "houlsby", ["mlp"], {})
    with pytest.raises(UnsupportedError, match="houlsby"):
        export_peft(net, tmp_path / "x")


def test_their_folders_that_are_not_exact_here_are_refused(tmp_path):
    def save(net="llama", edit=None, **options):
        model = peft.get_peft_model(build(net).net, peft.LoraConfig(r=2, **options))
        model.save_pretrained(tmp_path)
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **(edit or {})}))

    def refused(text, kind=UnsupportedError, net="llama"):
        other = build(net).net
        with pytest.raises(kind, match=text):
            import_peft(other, tmp_path, example=((), {"input_ids": ids()}))
        assert "_peft" not in other._modules

    save(target_modules=["q_proj"], modules_to_save=["lm_head"])
    refused("whole modules")
    save(target_modules=["q_proj"], bias="all")
    refused("bias")
    save(target_modules=["q_proj"], edit={"init_lora_weights": "pissa", "peft_type": "LORA"})
    refused("leaves the base as it is")
    save(target_modules=["q_proj"], edit={"peft_type": "VERA"})
    refused("VERA")
    save(net="gpt2", target_modules=["wte"])
    refused("tied", net="gpt2")
    save(target_modules=["q_proj"])
    refused("no such module", net="bert")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"PK\x03\x04")
    refused("never read", AdapterError)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    refused("adapter_model.bin", AdapterError)
    with pytest.raises(AdapterError, match="no such folder"):
        import_peft(build("llama").net, tmp_path / "nothing")


def test_a_suffix_shared_by_another_module_does_not_widen_the_targets(tmp_path):
    """`linear` is also the end of `block.linear`: the names of theirs would match both."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.block = nn.Linear(16, 16), nn.ModuleDict({"linear": nn.Linear(16, 16)})

        def forward(self, input_ids, attention_mask=None):
            return self.block["linear"](torch.tanh(self.linear(input_ids.float() / 10)))

    net, _ = adapted(Two, {"a": "linear"}, "lora", ["a"], {})
    export_peft(net, tmp_path)
    theirs = peft.PeftModel.from_pretrained(Two(), tmp_path)
    assert relative(outputs(theirs), outputs(net)) <= 1e-5
    assert len([n for n, m in theirs.named_modules() if hasattr(m, "lora_A")]) == 1
