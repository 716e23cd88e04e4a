"""Tasks: labels land on their residues, losses equal closed forms, few steps learn, faults are named."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.contracts import Output
from core.errors import ConfigError, DataError, UnsupportedError
from domains.protein.backbones.bert import ProteinBert
from domains.protein.backbones.esm import ESM2
from domains.protein.backbones.t5 import ProteinT5
from domains.protein.tasks.contacts import Contacts
from domains.protein.tasks.heads import ProteinHead, at_sites, pooled
from domains.protein.tasks.masked_lm import MaskedLM
from domains.protein.tasks.protein import ProteinClassification
from domains.protein.tasks.regression import Regression
from domains.protein.tasks.residue import ResidueClassification
from domains.protein.tasks.variant_effect import VariantEffect
from tests.domains.protein.worlds import Profile, Rows


def item(identity, sequence, label=None, **more):
    return {"id": identity, "group": identity, "sequence": sequence, "label": label} | more


def learn(task, data, backbone, steps=60, lr=0.05):
    """The head on frozen features by plain Adam; prediction rows on the test split."""
    task.check(data, backbone)
    head = task.head(backbone)
    optimizer = torch.optim.Adam(head.parameters(), lr)
    batch = task.collate(list(data.items("train")), backbone.tokenizer)
    with torch.no_grad():
        features = backbone(batch)
    for _ in range(steps):
        total, count = task.loss(features, batch, head)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    head.eval()
    batch = task.collate(list(data.items("test")), backbone.tokenizer)
    with torch.no_grad():
        rows = list(task.predict(backbone(batch), batch, head))
    for row, one in zip(rows, data.items("test"), strict=True):
        row["group"] = one["group"]
    json.dumps(rows)
    return rows


# ---------------------------------------------------------------------- residues


@pytest.mark.parametrize("build", [ESM2, ProteinT5, ProteinBert])
def test_labels_stand_on_their_residues(build):
    """The label is a function of the residue, so a head reaches 100 % on random features unless shifted by
    <cls>, </s> or padding."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("AVKWDE"), n)) for n in (9, 14, 5, 11)]
    rows = [item(f"p{i}", s, "".join("H" if a in "AVK" else "E" for a in s)) for i, s in enumerate(texts)]
    task = ResidueClassification(classes="HEC", measure="q3")
    found = learn(task, Rows(rows), build(pretrained=False, width=64), steps=150)
    assert [row["truth"] for row in found] == [r["label"] for r in rows]
    assert task.score(found)["q3"].value == 1.0
    shifted = [item(r["id"], r["sequence"], r["label"][1:] + r["label"][0]) for r in rows]
    again = ResidueClassification(classes="HEC", measure="q3")
    assert again.score(learn(again, Rows(shifted), build(pretrained=False, width=64), steps=30))["q3"].value < 0.99


def test_unresolved_and_unknown_residues_count_nowhere():
    one = item("a", "MKVL", "HGX-", resolved="0111")
    other = item("b", "MK", "BC")
    task = ResidueClassification(classes="HEC", merge={"G": "H", "B": "E"}, unknown="-X", measure="q3")
    backbone = ESM2(pretrained=False)
    task.check(Rows([one, other]), backbone)
    batch = task.collate([one, other], backbone.tokenizer)
    assert batch["targets"].tolist() == [[-100, -100, 0, -100, -100, -100], [-100, 1, 2, -100, -100, -100]]
    head = torch.nn.Linear(32, 3)
    total, count = task.loss(backbone(batch), batch, head)
    assert count == 3
    logits = head(backbone(batch).hidden)
    expected = sum(F.cross_entropy(logits[r, t], torch.tensor(c)) for r, t, c in ((0, 2, 0), (1, 1, 1), (1, 2, 2)))
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    rows = [
        {"id": "a", "group": "a", "truth": "-H--", "prediction": "HHHH"},
        {"id": "b", "group": "b", "truth": "EC", "prediction": "EE"},
    ]
    found = task.score(rows)
    assert found["q3"].value == 0.75 and found["q3_residue"].value == pytest.approx(2 / 3)  # proteins, residues
    assert [row["score"] for row in rows] == [1.0, 0.5]
    dark = {"id": "c", "group": "c", "truth": "--", "prediction": "HH"}
    assert task.score([*rows, dark])["q3"]._replace(ci95=None) == found["q3"]._replace(ci95=None)
    assert dark["score"] is None  # one protein without a label has no share in anything


def test_balanced_weights_make_classes_equal():
    """Class a occurs 3 times, b once: the mean weight is 1, and b weighs three times as much."""
    task = ResidueClassification(weights="balanced")
    task.check(Rows([item("p", "MKVL", "aaab")]), ESM2(pretrained=False))
    assert torch.allclose(task.class_weight, torch.tensor([4 / 6, 2.0]))


def test_residue_faults_are_listed_together():
    backbone = ESM2(pretrained=False)
    bad = [
        item("short", "MKV", "HH"),
        item("none", "MKV"),
        item("flag", "MK", "HH", resolved="2"),
    ]
    with pytest.raises(DataError) as found:
        ResidueClassification(classes="HEC").check(Rows(bad, [item("dark", "MKV", "---")], []), backbone)
    assert [p.where.split()[0] for p in found.value.problems] == ["short", "none", "flag", "split", "split"]
    with pytest.raises(DataError, match="classes HEC"):
        ResidueClassification(classes="HEC").check(Rows([item("p", "MKV", "HHZ")]), backbone)


# ---------------------------------------------------------------------- pooling and heads


def test_pools_closed_form():
    hidden = torch.arange(12.0).reshape(1, 6, 2)
    residues = torch.tensor([[False, True, True, True, False, False]])  # cls, three residues, eos, pad
    sites = at_sites(residues, [[0, 2]])
    assert sites.tolist() == [[False, True, False, True, False, False]]
    assert pooled(hidden, residues, "mean").tolist() == [[4.0, 5.0]]
    assert pooled(hidden, residues, "cls").tolist() == [[0.0, 1.0]]
    assert pooled(hidden, residues, "sites", sites).tolist() == [[4.0, 5.0]]
    assert pooled(hidden, residues, "sites", at_sites(residues, [[2]])).tolist() == [[6.0, 7.0]]
    assert pooled(hidden, residues, "sites", at_sites(residues, [[]])).tolist() == [[4.0, 5.0]]  # no site: the whole
    weights = torch.tensor([[99.0, 0.0, math.log(3.0), -1e9, 99.0, 99.0]])
    assert torch.allclose(pooled(hidden, residues, "attention", None, weights), torch.tensor([[3.5, 4.5]]))


@pytest.mark.parametrize("pool", ["mean", "cls", "attention", "sites"])
def test_a_head_does_not_see_padding(pool):
    torch.manual_seed(0)
    backbone, head = ESM2(pretrained=False).eval(), ProteinHead(32, 2, pool, hidden=8).eval()
    both = backbone.tokenizer(["MKVLAWYDE", "MKW"])
    alone = backbone.tokenizer(["MKW"])
    with torch.no_grad():
        a = head(backbone(both).hidden, both["residues"], at_sites(both["residues"], [[1], [1]]))[1]
        b = head(backbone(alone).hidden, alone["residues"], at_sites(alone["residues"], [[1]]))[0]
    assert torch.allclose(a, b, atol=1e-5)


# ---------------------------------------------------------------------- proteins


def test_two_classes_learn_and_score():
    rows = [item(f"p{i}", "MKVLA" + ("WWW" if i % 2 else "DDD") * (1 + i % 3), i % 2) for i in range(12)]
    task = ProteinClassification()
    found = learn(task, Rows(rows), ESM2(pretrained=False))
    scores = task.score(found)
    assert task.metric == "auroc" and next(iter(scores)) == "auroc" and scores["auroc"].value == 1.0
    assert all(0 <= row["prediction"] <= 1 and sum(row["probabilities"]) == pytest.approx(1) for row in found)
    flipped = ProteinClassification(positive="0")
    flipped.check(Rows(rows), ESM2(pretrained=False))
    assert flipped.classes == ["1", "0"]


def test_more_classes_headline_is_a_mean_of_row_scores():
    task = ProteinClassification(classes=["a", "b", "c"])
    rows = [
        task.row(str(i), p, t) | {"group": str(i)}
        for i, (p, t) in enumerate(
            [([0.6, 0.2, 0.2], 0), ([0.1, 0.8, 0.1], 0), ([0.1, 0.8, 0.1], 1), ([0.2, 0.5, 0.3], 2), ([0, 0, 1], 2)]
        )
    ]
    found = task.score(rows)
    assert found["balanced_accuracy"].value == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert np.mean([row["score"] for row in rows]) == pytest.approx(found["balanced_accuracy"].value)


def test_pools_that_have_no_meaning_are_refused():
    rows = Rows([item("a", "MKV", 0.0), item("b", "MKL", 1.0)])
    with pytest.raises(ConfigError, match="no token in front"):
        Regression(pool="cls").check(rows, ProteinT5(pretrained=False))
    with pytest.raises(ConfigError, match="no mutated sites"):
        Regression(pool="sites").check(rows, ESM2(pretrained=False))
    with pytest.raises(DataError, match="new: sites"):  # at prediction, too: never pooled differently in silence
        Regression(pool="sites").collate([{"id": "new", "sequence": "MKV"}], ESM2(pretrained=False).tokenizer)


# ---------------------------------------------------------------------- regression


def test_regression_learns_and_answers_in_the_labels_unit():
    """Sites differ in one residue; targets around 100 with spread 10 come back as such."""
    torch.manual_seed(0)
    effect = dict(zip("ACDEFGHIKLMNPQRSTVWY", np.linspace(80, 120, 20), strict=True))
    rows = [item(a, "MKV" + a + "LLWDE", v, sites=[3]) for a, v in effect.items()]
    task = Regression(pool="sites")
    found = learn(task, Rows(rows), ESM2(pretrained=False, width=64), steps=200)
    scores = task.score(found)
    assert scores["spearman"].value > 0.95 and scores["mse"].value < 20
    assert [row["truth"] for row in found] == pytest.approx([r["label"] for r in rows])


def test_targets_are_standardised_on_train_alone():
    train, rest = [item(str(i), "MK", float(i)) for i in range(5)], [item("x", "MK", 1000.0)]
    task, backbone = Regression(), ESM2(pretrained=False)
    task.check(Rows(train, rest, rest), backbone)
    head = task.head(backbone)
    assert head.mean.item() == 2.0 and head.scale.item() == pytest.approx(math.sqrt(2))
    assert {"mean", "scale"} <= head.state_dict().keys()  # saved with the head
    batch = task.collate(train, backbone.tokenizer)
    with torch.no_grad():
        total, count = task.loss(Output(torch.zeros(5, 4, 32), batch["residues"]), batch, zeroed(head))
    assert (total / count).item() == pytest.approx(1.0)  # a head that answers the mean has unit error


def zeroed(head):
    for p in head.parameters():
        p.data.zero_()
    return head


def test_constant_prediction_is_flagged():
    rows = [{"id": str(i), "group": str(i), "truth": float(i), "prediction": 1.0} for i in range(5)]
    found = Regression().score(rows)
    assert found["spearman"].value == 0.0 and found["spearman"].ci95 is None and found["constant"].value == 1.0
    with pytest.raises(DataError, match="finite number"):
        Regression().check(Rows([item("a", "MK", 1.0), item("b", "MK", float("nan"))]), ESM2(pretrained=False))


# ---------------------------------------------------------------------- language-model tasks


def test_masked_lm_hides_residues_only_and_scores_a_closed_form():
    p = np.full((6, 20), 0.02)
    p[:, 0] = 1 - 0.02 * 19  # A .62, others .02 at every position
    backbone, task = Profile(p), MaskedLM(share=0.999999)
    rows = [item("a", "AAAAAA"), item("w", "WWWWWW")]
    task.check(Rows(rows), backbone)
    batch = task.collate(rows, backbone.tokenizer)
    assert (batch["tokens"][batch["residues"]] == backbone.tokenizer.mask).all()
    assert (batch["tokens"][~batch["residues"]] != backbone.tokenizer.mask).all()
    out = backbone(batch)
    total, count = task.loss(out, batch, None)
    assert count == 12 and total.item() == pytest.approx(-6 * math.log(0.62) - 6 * math.log(0.02), rel=1e-5)
    found = list(task.predict(out, batch, None))
    assert found[0]["prediction"] == "AAAAAA" and found[0]["score"] == pytest.approx(-math.log(0.62), rel=1e-4)
    scores = task.score([{**row, "group": row["id"]} for row in found])
    assert scores["perplexity"].value == pytest.approx(math.sqrt(1 / (0.62 * 0.02)), rel=1e-4)
    assert scores["masked_accuracy"].value == 0.5
    few = MaskedLM(share=0.15)
    few.check(Rows(rows), backbone)
    assert all((few.collate([item("s", "MK")], backbone.tokenizer)["targets"] >= 0).sum() >= 1 for _ in range(20))


def test_variant_scores_of_a_site_independent_model_are_its_log_odds():
    """The oracle: both marginals equal the sum of log p_i(mutant) / p_i(wild), for many mutations and for none."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(20), 8)
    letters = "ACDEFGHIKLMNPQRSTVWY"
    wild = "MKVLAWYD"
    rows = []
    for n in (0, 1, 1, 2, 3):
        sites = rng.choice(8, n, replace=False)
        text = list(wild)
        for s in sites:
            text[s] = rng.choice([a for a in letters if a != wild[s]])
        rows.append(item(f"v{len(rows)}", "".join(text), float(n), wildtype=wild))
    odds = [
        sum(
            math.log(p[i][letters.index(a)] / p[i][letters.index(w)])
            for i, (a, w) in enumerate(zip(r["sequence"], wild, strict=True))
        )
        for r in rows
    ]
    from domains.protein import zero_shot

    for how in ("masked", "wildtype"):
        backbone, task = Profile(p), VariantEffect(how)
        task.check(Rows(rows), backbone)
        batch = task.collate(rows, backbone.tokenizer)
        found = [row["prediction"] for row in task.predict(backbone(batch), batch, None)]
        assert found == pytest.approx(odds, abs=1e-5)
        assert zero_shot.marginals(backbone, rows, how) == pytest.approx(odds, abs=1e-5)
        assert [row["prediction"] for row in task.zero_shot(backbone, Rows(rows))] == pytest.approx(odds, abs=1e-5)
        if how == "wildtype":  # one forward reads one wild type, however many variants it has
            assert len(backbone.calls[0]) == 1
        else:  # never more than one mask in a row: many would rescale an ESM's embeddings
            assert all(((c == backbone.tokenizer.mask).sum(1) == 1).all() for c in backbone.calls)
    nll = [-sum(math.log(p[i][letters.index(a)]) for i, a in enumerate(r["sequence"])) / 8 for r in rows]
    assert zero_shot.pseudo_perplexity(Profile(p), [r["sequence"] for r in rows]) == pytest.approx(
        np.exp(nll), rel=1e-5
    )
    task = VariantEffect("pseudo_perplexity")
    batch = task.collate(rows, Profile(p).tokenizer)
    found = [row["prediction"] for row in task.predict(Profile(p)(batch), batch, None)]
    assert found == pytest.approx([-x for x in nll], abs=1e-5)


def test_variant_ranking_loss_counts_ordered_pairs():
    """Equal scores: log 2 for each pair whose labels differ."""
    wild = "MKVL"
    rows = [item(a, "MKV" + a, v, wildtype=wild) for a, v in (("A", 1.0), ("C", 1.0), ("D", 2.0))]
    backbone, task = Profile(np.full((4, 20), 0.05)), VariantEffect()
    batch = task.collate(rows, backbone.tokenizer)
    total, count = task.loss(backbone(batch), batch, None)
    assert count == 2 and total.item() == pytest.approx(2 * math.log(2))
    with pytest.raises(UnsupportedError, match="no masked language-model head"):
        task.check(Rows(rows), ProteinT5(pretrained=False))
    with pytest.raises(DataError, match="pseudo_perplexity needs none"):
        task.check(Rows([item("a", "MKV", 1.0)]), backbone)


def test_masked_marginal_of_esm_has_one_mask_scale():
    """Token dropout rescales by the share of masks: a double mutant's score is the sum of its single ones, exactly."""
    from domains.protein import zero_shot

    backbone, wild = ESM2(pretrained=False), "MKVLAWYDEQ"
    rows = [item(s, s, 0.0, wildtype=wild) for s in ("MRVLAWYDEQ", "MKVLAWYDEN", "MRVLAWYDEN")]
    one, other, both = zero_shot.marginals(backbone, rows, "masked")
    assert both == pytest.approx(one + other, abs=1e-6) and both != 0
    modes = {m.training for m in backbone.modules()}
    backbone.train()
    zero_shot.marginals(backbone, rows, "wildtype")
    assert modes and all(m.training for m in backbone.modules())  # modes are put back


# ---------------------------------------------------------------------- contacts


def test_contacts_learn_symmetric_maps():
    """K touches E and nothing else does: a head on features finds the pairs."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    rows = []
    for n in range(6):
        text = rng.choice(list("AGV"), 24)
        i, j = rng.integers(0, 8), rng.integers(14, 24)
        text[i], text[j] = "K", "E"
        rows.append(item(f"p{n}", "".join(text), contacts=[[int(j), int(i)]]))
    task = Contacts(separation=6, kernel=3)
    data = Rows(rows)
    found = learn(task, data, ESM2(pretrained=False, width=64), steps=80, lr=0.02)
    assert all([r["truth"][0]] == [sorted(x["contacts"][0])] for r, x in zip(found, rows, strict=True))
    assert all(row["prediction"][0][:2] == row["truth"][0] for row in found)  # the true pair comes first
    scores = task.score(found)
    assert scores["P@L/5 (6+)"].value == pytest.approx(1 / 4)  # one contact, L/5 = 4 pairs
    assert len(scores) == 9
    head, backbone = task.head(ESM2(pretrained=False)).eval(), ESM2(pretrained=False).eval()
    both, alone = backbone.tokenizer(["MKVLAWYDEQ", "MKWDE"]), backbone.tokenizer(["MKWDE"])
    with torch.no_grad():
        a = head(backbone(both).hidden, both["residues"])[1, :7, :7]
        b = head(backbone(alone).hidden, alone["residues"])[0]
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(b, b.T)
    with pytest.raises(DataError, match="outside the protein"):
        task.check(Rows([item("a", "MKV", contacts=[[0, 3]])]), ESM2(pretrained=False))


# ---------------------------------------------------------------------- limits and pictures


def test_sequences_over_the_limit_are_counted_and_refused():
    backbone = ProteinBert(positions=12, pretrained=False)
    rows = [item(f"p{i}", "A" * (11 + i), "H" * (11 + i)) for i in range(4)]
    with pytest.raises(DataError) as found:
        ResidueClassification(classes="HEC").check(Rows(rows), backbone)
    text = str(found.value)
    assert "12 too long" in text and "at most 10 residues" in text and "data.max_length=10" in text


def test_pictures_are_small_and_show_the_worst(tmp_path):
    task = ResidueClassification(classes="HEC", measure="q3")
    guesses = ["CCCCCCCCC"] + ["HHHHEEECC"] * 4
    rows = [
        {"id": f"p{i}", "group": "g", "truth": "-HHHEEECC" * 20, "prediction": g * 20} for i, g in enumerate(guesses)
    ]
    task.score(rows)
    assert task.pictures(rows, tmp_path) == ["strips.svg"]
    text = (tmp_path / "strips.svg").read_text()
    assert "worst: p0, q3 0.25" in text and len(text) < 200_000
    line = [{"id": f"v{i}", "truth": float(i), "prediction": float(i != 7) * i} for i in range(40)]
    assert Regression().pictures(line, tmp_path) == ["scatter.svg"]
    assert "v7" in (tmp_path / "scatter.svg").read_text() and "Spearman" in (tmp_path / "scatter.svg").read_text()
    two = ProteinClassification(classes=["0", "1"])
    rows = [two.row(f"x{i}", [1 - p, p], t) for i, (p, t) in enumerate([(0.9, 1), (0.2, 0), (0.95, 0), (0.4, 1)])]
    assert two.pictures(rows, tmp_path) == ["roc.svg"]
    assert "surest mistake: x2" in (tmp_path / "roc.svg").read_text()
    assert "AUROC 0.500" in (tmp_path / "roc.svg").read_text()
