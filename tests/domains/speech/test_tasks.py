"""Tasks from items to scores: losses, free synthesis, heads, classification; what does not suit is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.adapters import attach
from core.compose import compose
from core.contracts import Data, Output
from core.errors import ConfigError, DataError, EnvironmentError_
from core.training.run import run
from domains.speech.backbones.fastspeech import FastSpeech
from domains.speech.backbones.listener import RECIPE, Listener
from domains.speech.backbones.speecht5 import SpeechT5
from domains.speech.data.twin import Twin
from domains.speech.tasks.classification import Classification, UtteranceHead
from domains.speech.tasks.losses import terms
from domains.speech.tasks.tts import FORCED, TTS

SIXTEEN = {"sample_rate": 16000}


class Rows(Data):
    def __init__(self, **splits):
        self.splits = splits

    def items(self, split):
        return self.splits[split]


@pytest.fixture(scope="module")
def twin():
    data = Twin(train=3, val=2, test=3)
    data.setup()
    return data


@pytest.fixture(scope="module")
def speaking(twin):
    model = FastSpeech(pretrained=False, speakers=["base0", "base1"], recipe=SIXTEEN).eval()
    task = TTS(rounds=4)
    task.check(twin, model)
    return model, task


def test_losses_are_means_over_what_is_there():
    """Closed form: one utterance is off by 1 everywhere, the other exact but for its padding."""
    mask, phones = torch.tensor([[True] * 4, [True, True, False, False]]), torch.tensor([[True, True], [True, False]])
    mel = torch.zeros(2, 4, 80)
    batch = {"mel": mel, "mel_mask": mask, "phone_mask": phones, "durations": torch.tensor([[2, 2], [2, 0]])}
    said = {"mel": mel.clone(), "log_durations": batch["durations"].float().log1p()}
    said["mel"][0] += 1
    said["mel"][1, 2:] += 9
    said["log_durations"][1, 1] = 5
    found = terms(Output(extras=said), batch)
    assert found["mel"].tolist() == [1.0, 0.0] and found["log_durations"].tolist() == [0.0, 0.0]
    stop = torch.full((2, 4), -20.0)
    stop[0, 3] = stop[1, 1] = 20.0
    assert terms(Output(extras={"stop": stop}), batch)["stop"].max() < 1e-6
    assert terms(Output(extras={"stop": -stop}), batch)["stop"].min() > 10


def test_a_batch_has_what_was_spoken(twin, speaking):
    model, task = speaking
    items = twin.items("train")[:2]
    batch = task.collate(items, model.tokenizer)
    assert batch["durations"].sum(1).tolist() == batch["mel_mask"].sum(1).tolist()
    assert batch["speaker"].tolist() == [2, 2] and task.speakers == ["new"]
    item, counts = items[0], batch["durations"][0]
    truth = np.array(item["f0"])
    heard = (150 * batch["pitch"][0].exp2()).numpy()[: len(truth)]
    long = (truth > 0) & (counts[: len(truth)].numpy() >= 4)
    assert np.median(np.abs(heard[long] / truth[long] - 1)) < 0.05
    total, count = task.loss(model(batch), batch, None)
    assert count == 2 and torch.isfinite(total)


def test_a_batch_can_be_moved_to_a_device(speaking, tmp_path):
    """Readers of files are frozen dataclasses, which Lightning will not walk through."""
    from lightning.fabric.utilities.apply_func import move_data_to_device

    from domains.speech.data.audio import Audio
    from tests.domains.speech.folders import sound

    model, task = speaking
    read = Audio(str(sound(tmp_path / "a.wav")))
    item = {"id": "file", "speaker": "new", "phones": [("aa", 0.5)], "text": "a", "read": read}
    moved = move_data_to_device(task.collate([item], model.tokenizer), torch.device("cpu"))
    assert len(moved["sounds"][0]()[0]) == 8000


def test_free_synthesis_is_scored_beside_its_truth_and_does_not_depend_on_neighbours(twin, speaking):
    model, task = speaking
    items = list(twin.items("test"))
    with torch.no_grad():
        rows = list(task.infer(model, task.collate(items, model.tokenizer), None))
        alone = next(iter(task.infer(model, task.collate(items[1:2], model.tokenizer), None)))
        quick = list(task.infer(model, task.collate(items, model.tokenizer), None, final=False))
    assert rows[1]["mcd"] == pytest.approx(alone["mcd"], rel=1e-4)
    assert all(set(row) == {"id", FORCED} for row in quick)
    json.dumps(rows)
    assert all(row["score"] == row["mcd"] > 0 and row["duration_error"] > 0 for row in rows)
    found = task.score([{**row, "group": row["id"]} for row in rows])
    assert found["mcd"].ci95 is not None and not found["mcd"].higher_is_better
    assert set(task.score([{**row, "group": row["id"]} for row in quick])) == {FORCED}


def test_the_truth_itself_scores_nothing(twin, speaking):
    """Oracle: a model that says the recorded mel has MCD 0, and pitch errors of the vocoder alone."""
    model, task = speaking
    item = twin.items("test")[0]
    batch = task.collate([item], model.tokenizer)

    class Parrot:
        recipe = model.recipe

        def synthesise(self, one):
            return one["mel"], one["mel_mask"].sum(1), {"durations": one["durations"]}

    row = task._spoken(Parrot(), batch, 0)
    assert row["mcd"] == 0 and row["mel_l1"] == 0 and row["duration_error"] == 0 and row["length_error"] == 0
    assert row["f0_cents"] < 100 and row["vuv"] < 0.2


def test_forgetting_is_measured_on_the_speakers_that_the_base_knows(twin, speaking):
    model, task = speaking
    with torch.no_grad():
        before = task.retention(model, twin)
    assert before.n == 4 and before.unit == "nat"
    assert TTS(forgetting=0).retention(model, twin) is None


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda i: i | {"phones": []}, DataError, "phones"),
        (lambda i: i | {"phones": [("aa", float("nan"))]}, DataError, "seconds of 0 or more"),
        (lambda i: i | {"speaker": ""}, DataError, "speaker"),
        (lambda i: i | {"read": lambda: (np.zeros(8000, np.float32), 8000)}, ConfigError, "8000 Hz"),
        (lambda i: i | {"read": lambda: (np.full(9000, np.nan, np.float32), 16000)}, DataError, "not finite"),
        (lambda i: i | {"read": lambda: (np.zeros(10, np.float32), 16000)}, DataError, "one window"),
    ],
)
def test_items_that_cannot_be_spoken_are_refused(twin, change, error, said):
    model = FastSpeech(pretrained=False, recipe=SIXTEEN)
    rows = Rows(**{split: [change(item) for item in twin.items(split)] for split in ("train", "val", "test")})
    task = TTS()
    with pytest.raises(error, match=said):
        task.check(rows, model)
        task.collate(rows.items("train"), model.tokenizer)


def test_what_does_not_fit_together_is_refused(twin):
    with pytest.raises(ConfigError, match="one that speaks"):
        TTS().check(twin, Listener(pretrained=False))
    with pytest.raises(ConfigError, match="one that listens"):
        Classification().check(twin, FastSpeech(pretrained=False, recipe=SIXTEEN))
    with pytest.raises(ConfigError, match="vocoder: sample_rate"):
        TTS("hifigan_ljspeech").check(twin, FastSpeech(pretrained=False, recipe=SIXTEEN))
    with pytest.raises(ConfigError, match="16000 Hz"):
        TTS().check(twin, FastSpeech(pretrained=False))  # 22.05 kHz
    stranger = [item | {"speaker": "else"} for item in twin.items("test")]
    rows = Rows(train=twin.items("train"), val=twin.items("val"), test=stranger)
    with pytest.raises(DataError, match="speaker else"):
        TTS().check(rows, FastSpeech(pretrained=False, recipe=SIXTEEN))


def test_judges_speak_of_the_truth_as_well(twin, monkeypatch):
    from importlib import util

    from domains.speech.tasks import panel

    items = twin.items("train")
    said, rate = items[0]["read"]()
    judges = [name for name in ("similarity", "quality") if all(map(util.find_spec, panel.PACKAGES[name][0]))]
    asked = panel.Panel(judges, panel.references(items[1:]))
    found = asked(items[0]["id"], "", "new", said, said, rate)
    assert set(found) == {f"{name}{end}" for name in judges for end in ("", "_true")}
    assert all(found[name] == found[f"{name}_true"] for name in judges)
    assert set(panel.references(items)) == {"new"} and "cer" not in found  # no text, nothing to recognise
    monkeypatch.setattr(panel.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentError_, match="3 problems"):
        panel.check(["recogniser", "similarity", "quality"])


def test_speecht5_learns_a_speaker_from_text(twin):
    model = SpeechT5(pretrained=False).eval()
    task = TTS(rounds=2)
    task.check(twin, model)
    head = task.head(model)
    attach(model, "lora", head=head)
    batch = task.collate(twin.items("train")[:2], model.tokenizer)
    total, _ = task.loss(model(batch), batch, head)
    total.backward()
    assert torch.isfinite(head.vectors.grad).all() and 0 < head.vectors.grad.abs().max() < 1e3
    with torch.no_grad():
        row = next(iter(task.infer(model, task.collate(twin.items("test")[:1], model.tokenizer), head)))
    assert "stopped" in row and row["mcd"] > 0 and "duration_error" not in row


def test_classification_pools_what_is_there_and_scores_uar():
    head = UtteranceHead(4, 3, depth=2)
    hidden = torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    noisy = hidden.clone()
    noisy[1, 2:] += 100
    first, second = (head(Output(h, mask, extras={"layers": [h, h]})) for h in (hidden, noisy))
    assert torch.equal(first, second)
    task = Classification(["a", "b", "c"])
    rows = [task.row(str(i), [0.6, 0.3, 0.1], truth) | {"group": str(i)} for i, truth in enumerate([0, 0, 1, 2])]
    found = task.score(rows)
    assert found["uar"].value == pytest.approx(1 / 3) and found["accuracy"].value == 0.5
    assert np.mean([row["score"] for row in rows]) == pytest.approx(1 / 3)


def test_labels_that_are_missing_or_unknown_are_refused():
    def item(name, **more):
        return {"id": name, "group": name, "read": lambda: (np.zeros(4000, np.float32), 16000), **more}

    listener = Listener(pretrained=False)
    with pytest.raises(DataError, match="label"):
        Classification().check(Rows(train=[item("a")], val=[], test=[]), listener)
    good = [item("a", label="x"), item("b", label="y")]
    with pytest.raises(DataError, match="z"):
        Classification().check(Rows(train=good, val=[], test=[item("c", label="z")]), listener)
    with pytest.raises(ConfigError, match="at least two classes"):
        Classification().check(Rows(train=good[:1], val=[], test=[]), listener)
    slow = [i | {"read": lambda: (np.zeros(4000, np.float32), 8000)} for i in good]
    with pytest.raises(ConfigError, match="8000 Hz"):
        Classification().check(Rows(train=slow, val=[], test=[]), listener)
    assert replace(RECIPE) == listener.recipe


def test_a_vocoder_learns_from_cuts_of_what_was_recorded(tmp_path):
    from domains.speech.backbones.vocoder import HifiGan
    from domains.speech.data.audio import Audio
    from domains.speech.tasks.vocoding import Vocoding
    from tests.domains.speech.folders import sound

    files = [sound(tmp_path / f"{i}.wav", i, rate=22050) for i in range(2)]
    items = [{"id": f.stem, "group": f.stem, "read": Audio(str(f))} for f in files]
    rows, task, gan = (
        Rows(train=items, val=items, test=items),
        Vocoding(frames=10),
        HifiGan(pretrained=False, channels=16),
    )
    task.check(rows, gan)
    attach(gan, "lora", rank=1)
    batch = task.collate(items, gan.tokenizer)
    assert batch["mel"].shape == (2, 10, 80) and batch["samples"].shape == (2, 2560)
    total, count = task.loss(gan(batch), batch, None)
    total.backward()
    assert count == 2 and all(p.grad is not None for p in gan.parameters() if p.requires_grad)
    assert [row["id"] for row in task.zero_shot(gan, rows)] == ["0", "1"]
    with pytest.raises(ConfigError, match="a vocoder"):
        task.check(rows, FastSpeech(pretrained=False))


@pytest.mark.parametrize("method", ["none", "lora", "full"])
def test_a_run_speaks_and_remembers(tmp_path, method):
    """Free synthesis on test only, the checkpoint by the forced error, the head's vector saved, forgetting noted."""
    small = ["backbone=fastspeech_tiny", "backbone.speakers=[base0]", "data.train=2", "data.val=1", "data.test=2"]
    small += ["trainer.max_steps=2", "task.rounds=2", "task.sounds=1", "task.forgetting=1", f"adapter={method}"]
    record = run(compose("speech", small), tmp_path)
    assert record.primary.name == "mcd" and record.selected.name == FORCED
    assert record.forgetting.metric == FORCED and record.forgetting.before > 0
    assert record.certificate.reload_equal and record.head_trainable == 32
    assert (record.forgetting.before == record.forgetting.after) == (method == "none")
    assert record.certificate.base_bit_equal or method == "full"
    assert {"truth", "mcd", "rtf"} <= set(json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0]))
    assert list((tmp_path / "plots").glob("*_after.ogg"))
