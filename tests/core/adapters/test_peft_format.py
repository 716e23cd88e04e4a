"""Hugging Face peft reads what we write and we read what it writes, with equal outputs; or the reason why not."""

import json

import pytest
import torch
from torch import nn

from core.adapters import attach, head, methods, trainable
from core.adapters.peft_format import export_peft, writable
from core.adapters.peft_import import import_peft
from core.errors import AdapterError, UnsupportedError
from tests.core.adapters.tokens_zoo import KV, build, ids

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
        self.square = nn.Conv2d(6, 6, 3, padding=1)
        self.eval()

    def forward(self, input_ids, attention_mask=None):
        x = torch.sin(input_ids.float()[:, None, :] + torch.arange(4)[None, :, None])
        x = self.two(self.square(self.one(x)[..., None].expand(-1, -1, -1, 3)))
        return self.odd(self.three(torch.stack([x, x], -1)).flatten(2)[:, :3])


CONVS = {"conv": ["one", "two", "three"], "flat": ["one", "two"], "square": ["square"]}
LINEARS = {"attn": ["model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.o_proj"]}  # of one shape
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
    "llama pissa": ("llama", LLAMA, "pissa", ["attn.q", "mlp.out"], {"rank": 4}),
    "llama olora": ("llama", LLAMA, "olora", ["attn.q"], {"rank": 4}),
    "gpt2 lora_ga": ("gpt2", GPT2, "lora_ga", ["attn.v", "mlp.in"], {"rank": 2}),
    "llama eva": ("llama", LLAMA, "eva", ["attn.q"], {"rank": 2}),
    "llama lora_fa": ("llama", LLAMA, "lora_fa", ["attn.q"], {"rank": 2}),
    "llama lora_xs": ("llama", LLAMA, "lora_xs", ["attn.q"], {"rank": 2}),
    "llama delora": ("llama", LLAMA, "delora", ["attn.q", "mlp.out"], {"rank": 4}),
    "llama adalora": ("llama", LLAMA, "adalora", ["attn.q", "mlp.out"], {"rank": 4, "target_rank": 2}),
    "gpt2 adalora": ("gpt2", GPT2, "adalora", ["mlp.in"], {"rank": 4, "target_rank": 2}),
    "llama oft": ("llama", LLAMA, "oft", ["attn.q", "mlp.out"], {"block": 4}),
    "llama oft neumann": ("llama", LLAMA, "oft", ["attn.q"], {"block": 4, "cayley": "neumann"}),
    "llama boft": ("llama", LLAMA, "boft", ["attn.q", "mlp.out"], {"block": 4, "factors": 1}),
    "convs boft": (Convs, CONVS, "boft", ["square"], {"block": 6, "factors": 1}),
    "llama hra": ("llama", LLAMA, "hra", ["attn.q", "mlp.out"], {"rank": 4}),
    "convs hra": (Convs, CONVS, "hra", ["square"], {"rank": 4}),
    "llama loha": ("llama", LLAMA, "loha", ["attn.q", "mlp.out"], {"rank": 4}),
    "convs loha": (Convs, CONVS, "loha", ["flat"], {"rank": 2}),
    "llama lokr": ("llama", LLAMA, "lokr", ["attn.q", "mlp.out"], {"rank": 2}),
    "llama lokr full": ("llama", LLAMA, "lokr", ["attn.q"], {"rank": 8, "factor": 4}),
    "llama hira": ("llama", LLAMA, "hira", ["attn.q", "mlp.out"], {"rank": 4}),
    "convs hira": (Convs, CONVS, "hira", ["conv"], {"rank": 2}),
    "llama miss": ("llama", LLAMA, "miss", ["attn.q", "mlp.out"], {"rank": 5}),
    "llama bone": ("llama", LLAMA, "bone", ["attn.q", "mlp.out"], {"rank": 4}),
    "llama vera": ("llama", LINEARS, "vera", ["attn"], {"rank": 8, "projection_seed": 3}),
    "llama vera shapes": ("llama", LLAMA, "vera", ["attn.v", "mlp.out"], {"rank": 8, "projection_shape": [32, 48]}),
    "llama randlora": ("llama", LLAMA, "randlora", ["attn.v", "mlp.out"], {"rank": 4, "projection_shape": [32, 48]}),
    "llama fourierft": ("llama", LLAMA, "fourierft", ["attn.v", "mlp.out"], {"frequencies": 50, "projection_seed": 9}),
    "llama shira": ("llama", LLAMA, "shira", ["attn.q", "mlp.out"], {"rank": 2}),
    "llama norm": ("llama", LLAMA, "norm", None, {}),
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
        p.data.add_(torch.randn_like(p) * {"fourierft": 1.0, "vera": 3.0}.get(method, 0.1))
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
    assert relative(outputs(theirs), expected) <= 1e-5  # measured 3e-6 at most
    theirs.save_pretrained(tmp_path / "theirs")
    again = import_peft(base(CASES[case][0]), tmp_path / "theirs", example=example)
    assert relative(outputs(again), expected) <= 1e-5


TOKENS = {
    "prompt": {"tokens": 4},
    "p_tuning": {"tokens": 4, "encoder": "mlp", "hidden": 8},
    "prefix": {"tokens": 4},
    "prefix mlp": {"tokens": 4, "encoder": "mlp", "hidden": 8},
}


@pytest.mark.parametrize("net", ["llama", "gpt2"])  # llama with fewer key heads than query heads
@pytest.mark.parametrize("case", TOKENS)
def test_virtual_tokens_are_tables_there(case, net, tmp_path):
    """An encoder's table is what both write; it comes back as the method without the encoder."""
    method, fresh = case.split()[0], lambda: build(net, KV).net
    host = fresh()
    attach(host, method, roles={}, example=((), {"input_ids": ids(2, 16, high=19)}), seed=0, **TOKENS[case])
    for p in trainable(host).values():
        p.data.add_(torch.randn_like(p) * 0.1)
    expected = outputs(host)
    export_peft(host, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "ours").eval()
    assert relative(outputs(theirs)[:, -16:], expected) <= 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    again = import_peft(fresh(), tmp_path / "theirs", example=((), {"input_ids": ids()}))
    assert relative(outputs(again), expected) <= 1e-5
    plain = {"p_tuning": "prompt"}.get(method, method)
    assert again._peft.adapters["default"].method == plain


@pytest.mark.parametrize("kind", ["P_TUNING", "PREFIX_TUNING"])
def test_their_trained_encoders_are_read_by_their_table(kind, tmp_path):
    config = {"num_virtual_tokens": 3, "encoder_hidden_size": 8, "task_type": "CAUSAL_LM"}
    config |= {"prefix_projection": True} if kind == "PREFIX_TUNING" else {}
    torch.manual_seed(0)
    theirs = peft.get_peft_model(build("gpt2", KV).net, peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**config)).eval()
    expected = outputs(theirs)[:, -16:]
    theirs.save_pretrained(tmp_path)
    net = import_peft(build("gpt2", KV).net, tmp_path, example=((), {"input_ids": ids()}))
    assert relative(outputs(net), expected) <= 1e-5


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
    net, _ = adapted("llama", LLAMA, "vera", ["attn.v", "mlp.out"], {"rank": 8})
    with pytest.raises(UnsupportedError, match=r"projection_shape=\[32, 48\]"):
        export_peft(net, tmp_path / "x")
    net, _ = adapted("llama", LLAMA, "boft", ["mlp.out"], {"block": 4, "factors": 2})
    with pytest.raises(UnsupportedError, match="CUDA extension"):
        export_peft(net, tmp_path / "x")
    net, _ = adapted(Convs, CONVS, "oft", ["square"], {"block": 6})
    with pytest.raises(UnsupportedError, match="another definition"):
        export_peft(net, tmp_path / "x")
    net, _ = adapted(Convs, {"conv": "two"}, "hra", ["conv"], {"rank": 2})
    with pytest.raises(UnsupportedError, match="square"):
        export_peft(net, tmp_path / "x")
    net, _ = adapted("gpt2", GPT2, "hira", ["attn.v"], {"rank": 2})
    with pytest.raises(UnsupportedError, match="whole modules"):
        export_peft(net, tmp_path / "x")
    for name in ("t5", "bert"):
        net = build(name).net
        attach(net, "prompt", roles={}, example=lambda: ((), {}), verify=False)
        with pytest.raises(UnsupportedError, match="theirs knows"):
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
    save(target_modules=["q_proj"], edit={"peft_type": "POLY"})
    refused("POLY")
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


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("OFT", {"oft_block_size": 4, "r": 0, "coft": True}, "coft"),
        ("OFT", {"oft_block_size": 4, "r": 0, "module_dropout": 0.1}, "module_dropout"),
        ("HRA", {"r": 2, "apply_GS": True}, "apply_GS"),
        ("LOKR", {"r": 2, "decompose_both": True}, "decompose_both"),
        ("RANDLORA", {"r": 2, "sparse": True}, "sparse"),
        ("LILY", {"r": 2, "stride_A": 1, "num_B": 2}, "LILY"),
    ],
)
def test_other_definitions_of_theirs_are_refused(kind, options, text, tmp_path):
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](target_modules=["q_proj"], **options)
    peft.get_peft_model(build("llama").net, config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=text):
        import_peft(build("llama").net, tmp_path, example=((), {"input_ids": ids()}))


def test_another_projection_than_the_seeds_is_refused(tmp_path):
    config = peft.VeraConfig(r=4, target_modules=["q_proj"])
    theirs = peft.get_peft_model(build("llama").net, config)
    theirs.base_model.vera_A["default"].add_(1)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="random projection"):
        import_peft(build("llama").net, tmp_path, example=((), {"input_ids": ids()}))


def test_a_form_for_every_type_that_both_have():
    """Data beside the method; a new method's form is found like the method."""
    types = {form.type for name in writable() if (form := getattr(methods.find(name), "peft", None))}
    assert types >= {
        "LORA", "ADALORA", "IA3", "OFT", "BOFT", "HRA", "LOHA", "LOKR", "VERA", "RANDLORA", "FOURIERFT", "HIRA", "MISS",
        "SHIRA", "DELORA", "LN_TUNING", "PROMPT_TUNING", "PREFIX_TUNING",
    }  # fmt: skip
    assert {"pissa", "olora", "lora_ga", "eva", "lora_fa", "lora_xs"} <= set(writable())  # as LoRA
    assert not {"houlsby", "prefix_gated", "full"} & set(writable())


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
