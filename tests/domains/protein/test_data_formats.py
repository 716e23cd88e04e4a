"""Files as people have them: what is read, what is cleaned, and where a bad row is reported."""

import gzip
import io

import pytest
from biotite.sequence.io.fasta import FastaFile
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.text import read_table
from core.errors import ConfigError, DataError
from domains.protein.data.fasta import Fasta, read_fasta, unlabelled
from domains.protein.data.residues import STANDARD, clean, mutate, parse_mutations
from domains.protein.data.table import Csv
from domains.protein.data.variants import Variants

proteins = st.text(STANDARD, min_size=1, max_size=30)
HEADER = "sequence,target,split\n"
GOOD = HEADER + "MKV,1.5,train\nMRV,2,val\nMKL,-3e-1,test\n"


def write(folder, text, name="assay.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def ready(data):
    data.setup()
    return {split: data.items(split) for split in ("train", "val", "test")}


def problems(make):
    with pytest.raises(DataError) as caught:
        make()
    return caught.value.problems


# ------------------------------------------------------------------ what is understood

FORMS = {
    "plain": GOOD.encode(),
    "byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "windows line ends": GOOD.replace("\n", "\r\n").encode(),
    "old mac line ends": GOOD.replace("\n", "\r").encode(),
    "gzip without its name": gzip.compress(GOOD.encode()),
    "empty lines": GOOD.replace("\n", "\n\n").encode(),
    "quotes": GOOD.replace("MKV", '"MKV"').encode(),
    "a line break in quotes": GOOD.replace("MKV", '"M\nKV"').encode(),
    "tabs": GOOD.replace(",", "\t").encode(),
    "semicolons": GOOD.replace(",", ";").encode(),
    "lower case": GOOD.replace("MKV", "mkv").encode(),
    "closing stop": GOOD.replace("MKV", "MKV*").encode(),
    "spaces": GOOD.replace("MKV,1.5", " MKV , 1.5 ").encode(),
    "split words": GOOD.replace("val", "Validation").encode(),
    "no newline at the end": GOOD.rstrip().encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_one_table_is_the_same_data(tmp_path, form):
    found = ready(Csv(write(tmp_path, FORMS[form])))
    assert [(i["sequence"], i["label"]) for part in found.values() for i in part] == [
        ("MKV", 1.5),
        ("MRV", 2.0),
        ("MKL", -0.3),
    ]


def test_rows_are_numbered_as_an_editor_does(tmp_path):
    table = read_table(write(tmp_path, '\n\na,b\n"x\ny",1\n\nz,2\n'))
    assert [line for line, _ in table.rows] == [4, 7]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(proteins, st.integers(1, 12)), min_size=1, max_size=6))
def test_fasta_agrees_with_biotite(tmp_path_factory, records):
    """Any wrapping of any records is read as biotite reads it."""
    text = "".join(
        f">p{n} note\n" + "\n".join(s[i : i + width] for i in range(0, len(s), width)) + "\n"
        for n, (s, width) in enumerate(records)
    )
    path = write(tmp_path_factory.mktemp("fasta"), text, "p.fasta")
    ours = [(record.id, record.body) for record in read_fasta(path)[1]]
    assert ours == [(header.split()[0], body) for header, body in FastaFile.read_iter(io.StringIO(text))]


def test_flip_residue_labels(tmp_path):
    sequences = write(tmp_path, ">a\nMK\nVL\n>b x\nMKV\n>c\nAAAA\n>d\nWW\n", "s.fasta")
    labels = (
        ">a SET=train VALIDATION=False\nHH\nEC\n>b SET=train VALIDATION=True\nCCC\n>c SET=test VALIDATION=False\nEEEE\n"
    )
    labels = write(tmp_path, labels + ">d SET=train\nHH\n", "l.fasta")
    flags = write(tmp_path, ">a\n1110\n>b\n111\n>c\n0111\n>d\n11\n", "r.fasta")
    found = ready(Fasta(sequences, labels=labels, resolved=flags, split="given"))
    assert [i["id"] for i in found["train"]] == ["a", "d"] and [i["id"] for i in found["val"]] == ["b"]
    assert found["train"][0] == {
        "id": "a", "group": "a", "sequence": "MKVL", "label": "HHEC", "resolved": "1110",
    }  # fmt: skip


def test_header_labels_and_groups(tmp_path):
    text = (
        ">a TARGET=Nucleus SET=train FAM=1\nMKV\n>b TARGET=Cell SET=val FAM=2\nMKL\n>c TARGET=Cell SET=test FAM=3\nMK\n"
    )
    found = ready(Fasta(write(tmp_path, text, "s.fasta"), target="target", group="fam", split="given"))
    assert [(i["label"], i["group"]) for part in found.values() for i in part] == [
        ("Nucleus", "1"),
        ("Cell", "2"),
        ("Cell", "3"),
    ]


def test_flip_csv(tmp_path):
    rows = "sequence,target,set,validation\nMKV,1,train,\nMKL,2,train,True\nMKI,3,test,\nMKW,4,,\n"
    data = Csv(write(tmp_path, rows), validation="validation")
    found = ready(data)
    assert {split: [i["sequence"] for i in part] for split, part in found.items()} == {
        "train": ["MKV"],
        "val": ["MKL"],
        "test": ["MKI"],
    }
    assert data.audit().facts["rows in no split, left out"] == 1


def test_proteingym_mutants_give_sites_and_wild_type(tmp_path):
    rows = "mutant,mutated_sequence,DMS_score\nM1A:V3L,AKL,0.1\nK2R,MRV,0.2\n"
    data = Csv(
        write(tmp_path, rows), seq="mutated_sequence", target="DMS_score", id="mutant", mutant="mutant", split="random",
        val=0.0, test=0.5,
    )  # fmt: skip
    items = [i for part in ready(data).values() for i in part]
    assert {i["id"]: i["sites"] for i in items} == {"M1A:V3L": [0, 2], "K2R": [1]}
    assert {i["wildtype"] for i in items} == {"MKV"}


def test_library_template_and_mutant_forms_of_variants(tmp_path):
    rows = "v,target,split\nAC,1,train\nKV,0,val\nRW,2,test\n"
    found = ready(Variants(write(tmp_path, rows), variant="v", wildtype="MKVL", positions=[1, 2]))
    assert found["train"][0]["sequence"] == "MACL" and found["train"][0]["sites"] == [1, 2]
    found = ready(Variants(write(tmp_path, rows), variant="v", template="GG{}TT"))
    assert found["test"][0]["sequence"] == "GGRWTT" and found["test"][0]["sites"] == [2, 3]
    rows = "mutant,target,split\nK1R,1,train\nV2V,1,val\nV2A;M0L,2,val\nWT,0,test\n"
    data = Variants(write(tmp_path, rows), wildtype="MKVL", numbering=0)
    found = ready(data)
    assert [i["sequence"] for part in found.values() for i in part] == ["MRVL", "LKAL", "MKVL"]
    assert data.audit().facts["synonymous variants, left out"] == 1


@given(proteins, st.data())
def test_a_mutant_name_reads_back_as_the_change(wildtype, draw):
    """name -> changes -> sequence holds for any numbering."""
    positions = draw.draw(st.sets(st.integers(0, len(wildtype) - 1), min_size=1))
    changes = {p: draw.draw(st.sampled_from(STANDARD)) for p in sorted(positions)}
    numbering = draw.draw(st.integers(-3, 30))
    name = ":".join(f"{wildtype[p]}{p + numbering}{residue}" for p, residue in changes.items())
    assert parse_mutations(name, wildtype, numbering) == (changes, "")
    mutant = mutate(wildtype, changes)
    assert [mutant[p] for p in changes] == list(changes.values()) and len(mutant) == len(wildtype)


@given(st.text(max_size=30))
def test_cleaning_never_lets_a_foreign_letter_through(text):
    sequence, fault = clean(text)
    assert fault or (sequence and set(sequence) <= set(STANDARD + "BJOUXZ"))


# ------------------------------------------------------------------ what is refused, and where

BAD_ROWS = {
    "MK-V,1,train": ("sequence", "gaps"),
    "MK*V,1,train": ("sequence", "a stop inside, at residue 3"),
    "M1V,1,train": ("sequence", "'1' at residue 2"),
    ",1,train": ("sequence", "no residues"),
    "MKV,high,train": ("target", "'high'"),
    "MKV,nan,train": ("target", "no value"),
    "MKV,,train": ("target", "no value"),
    "MKV,inf,train": ("target", "'inf'"),
    "MKV,1,holdout": ("split", "'holdout'"),
    "MKV,1,train,more": ("", "4 cells"),
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row):
    field, got = BAD_ROWS[row]
    data = Csv(write(tmp_path, GOOD + row + "\n"))
    (found,) = problems(data.setup)
    assert found.where == ("assay.csv:5" + (f", {field}" if field else "")) and got in found.got


def test_all_bad_rows_are_reported_together_and_counted(tmp_path):
    data = Csv(write(tmp_path, HEADER + "".join(f"MK{i},x,train\n" for i in range(15))))
    found = problems(data.setup)
    assert len(found) == 21 and found[-1].got == "10 more of these"  # two faults per row


def test_missing_labels_can_be_left_out(tmp_path):
    data = Csv(write(tmp_path, GOOD + "MKW,n/a,train\n"), missing="drop")
    assert len(ready(data)["train"]) == 1 and data.audit().facts["rows without a label, left out"] == 1


def test_a_missing_column_lists_what_there_is(tmp_path):
    data = Csv(write(tmp_path, GOOD), seq="sequnce", target="fitness")
    first, second = problems(data.setup)
    assert "no column `sequnce` (data.seq)" in first.got and "did you mean `sequence`?" in first.fix
    assert "no column `fitness` (data.target)" in second.got and second.allowed == "sequence, target, split"


def test_a_given_split_without_a_column_says_what_to_type(tmp_path):
    data = Csv(write(tmp_path, "sequence,target\nMKV,1\n"))
    assert "data.split=identity" in problems(data.setup)[0].fix


FILES = {
    "no such file": None,
    "empty file": b"",
    "a header and no rows": HEADER.encode(),
    "broken gzip": gzip.compress(GOOD.encode() * 50)[:-9],
    "is not UTF-8": HEADER.encode() + b"M\xffV,1,train\n",
    "not a table": HEADER.encode() + b'"MKV,1,train\n',
    "column `target` twice": b"sequence,target,target\nMKV,1,2\n",
}


@pytest.mark.parametrize("got", FILES)
def test_a_broken_file_is_a_data_error(tmp_path, got):
    path = str(tmp_path / "assay.csv") if FILES[got] is None else write(tmp_path, FILES[got])
    assert any(got in problem.got for problem in problems(Csv(path).setup))


def test_a_misspelt_file_name_has_a_near_miss(tmp_path):
    write(tmp_path, GOOD)
    assert problems(Csv(str(tmp_path / "asay.csv")).setup)[0].fix == "did you mean `assay.csv`?"


def test_data_paths_name_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFT_ATLAS_DATA", str(tmp_path / "nowhere"))
    assert "PEFT_ATLAS_DATA" in problems(Csv("data://protein/x.csv").setup)[0].fix
    monkeypatch.setenv("PEFT_ATLAS_DATA", str(tmp_path))
    assert "no file" in problems(Csv("data://protein/x.csv").setup)[0].got


BAD_FASTA = {
    "MKV\n": "before any header",
    ">a\n>b\nMKV\n": "a header and no residues",
    ">\nMKV\n": "no id",
    ">a\nM2V\n": "'2' at residue 2",
    "; only a comment\n": "no record",
}


@pytest.mark.parametrize("text", BAD_FASTA)
def test_a_bad_fasta_is_a_data_error(tmp_path, text):
    path = write(tmp_path, text, "p.fasta")
    assert any(BAD_FASTA[text] in problem.got for problem in problems(lambda: unlabelled(path)))


def test_residue_labels_must_fit_their_sequences(tmp_path):
    sequences = write(tmp_path, ">a\nMKV*\n>b\nMKV\n>c\nMKV\n", "s.fasta")
    labels = write(tmp_path, ">a\nHHH*\n>b\nHH\n>d\nHHH\n", "l.fasta")
    found = problems(Fasta(sequences, labels=labels, split="random").setup)
    assert [(p.where, p.got) for p in found] == [
        ("l.fasta:3, b", "2 labels"),
        ("l.fasta, c", "no label record for this id"),
        ("l.fasta:5, d", "an id without a sequence"),
    ]


def test_repeated_ids_are_refused(tmp_path):
    text = "id,sequence,target,split\nx,MKV,1,train\ny,MKL,1,val\nx,MKI,1,test\n"
    (found,) = problems(Csv(write(tmp_path, text), id="id").setup)
    assert found.where == "assay.csv:4, id" and "line 2" in found.allowed


BAD_MUTANTS = {
    "A2R": "the wild type has K at 2",
    "K9R": "position 9 outside 1..4",
    "K2": "`K2` is no mutation",
    "K2R:K2A": "position 2 twice",
}


@pytest.mark.parametrize("name", BAD_MUTANTS)
def test_a_mutant_that_does_not_fit_is_named(tmp_path, name):
    data = Variants(write(tmp_path, f"mutant,target,split\n{name},1,train\n"), wildtype="MKVL")
    (found,) = problems(data.setup)
    assert found.where == "assay.csv:2, mutant" and BAD_MUTANTS[name] in found.got


def test_faults_of_the_config_are_config_errors(tmp_path):
    path = write(tmp_path, GOOD)
    for options in ({"split": "identty"}, {"val": 0.6, "test": 0.6}, {"limit": {"trian": 3}}, {"limit": {"train": 0}}):
        with pytest.raises(ConfigError):
            Csv(path, **options)
    with pytest.raises(ConfigError, match=r"data\.positions"):
        Variants(path, variant="sequence", wildtype="MKVL", positions=[1, 9]).setup()
    with pytest.raises(ConfigError, match="neither"):
        Variants(path)
