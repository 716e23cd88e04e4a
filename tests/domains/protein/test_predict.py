"""New input for a run: FASTA and tables, with the sites that the run's own data would have given."""

import pytest

from core.errors import DataError
from domains.protein.predict import read

NATIVE = "MKVLAWYDEQ"


def test_fasta_gets_sites_from_the_runs_wild_type(tmp_path):
    file = tmp_path / "new.fasta"
    file.write_text(f">a first\nMKVLA\nWYDEQ\n>b\nMRVLAWYDEN\n>longer\n{NATIVE}A\n")
    plain = read(file)
    assert [(i["id"], i["sequence"]) for i in plain] == [("a", NATIVE), ("b", "MRVLAWYDEN"), ("longer", NATIVE + "A")]
    assert all("sites" not in item for item in plain)
    placed = read(file, {"wildtype": NATIVE, "path": "train.csv"})
    assert [item.get("sites") for item in placed] == [[], [1, 9], None]
    library = read(file, {"wildtype": NATIVE, "positions": [1, 3]})
    assert [item.get("sites") for item in library] == [[1, 3], [1, 3], None]
    insert = read(file, {"template": "MKVL{}YDEQ"})
    assert [item.get("sites") for item in insert] == [[4, 5], None, None]


def test_tables_are_read_as_the_runs_data_is(tmp_path):
    file = tmp_path / "new.csv"
    file.write_text("mutant,note\nK2R,x\nK2R:Q10N,y\nWT,z\n")
    rows = read(file, {"variant": "mutant", "wildtype": NATIVE, "numbering": 1, "target": "score", "split": "modulo"})
    assert [r["sequence"] for r in rows] == ["MRVLAWYDEQ", "MRVLAWYDEN", NATIVE]
    assert [r["sites"] for r in rows] == [[1], [1, 9], []] and all("label" not in r and "line" not in r for r in rows)
    file.write_text("name;sequence\nx;MKV\ny;MRV\n")
    assert [r["id"] for r in read(file, {"seq": "sequence", "id": "name"})] == ["x", "y"]
    assert [r["id"] for r in read(file)] == ["row2", "row3"]


def test_faults_name_file_and_column(tmp_path):
    file = tmp_path / "new.csv"
    file.write_text("seqs,id\nMKV,a\n")
    with pytest.raises(DataError, match="a column `sequence`"):
        read(file)
    file.write_text(">a\nMKV\n>a\nMKL\n")
    with pytest.raises(DataError, match="`a` again"):
        read(file)
    file.write_text(">a\nMK1V\n")
    with pytest.raises(DataError, match="amino-acid letters"):
        read(file)
