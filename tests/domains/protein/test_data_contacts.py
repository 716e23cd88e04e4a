"""Contacts: the twin's packing by hand, and JSON lines as written."""

import json

import pytest

from core.errors import DataError
from domains.protein.data.jsonl import Jsonl
from domains.protein.data.packing import contacts
from domains.protein.data.twin import Twin


def test_hairpins_by_hand():
    """Two strands of four around a turn of six: the last of the first meets the first of the second, then outwards."""
    assert contacts("EEEECCCCCCEEEE") == [[0, 13], [1, 12], [2, 11], [3, 10]]
    assert contacts("EEEECCEEEE") == [[0, 9], [1, 8]]  # the inner pairs are closer than six
    assert contacts("HHHHHHHHCCCCCCEEE") == [[7, 14]]  # a helix shows every third or fourth residue
    assert contacts("CCHHCCEEEECC") == []


def test_the_twin_has_contacts_inside_its_proteins():
    data = Twin("contacts", train=5, val=2, test=6)
    data.setup()
    items = data.items("test")
    assert all(0 <= i < j < len(x["sequence"]) for x in items for i, j in x["contacts"])
    assert sum(len(x["contacts"]) for x in items) > 20 and "label" not in items[0]


def test_json_lines(tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [{"id": f"p{i}", "sequence": "MKVLAWYD", "contacts": [[0, 7]], "split": s, "y": "HHHHCCCC"}
            for i, s in enumerate(("train", "val", "test"))]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = Jsonl(str(file), target="y", target_type="residue", split="given")
    data.setup()
    assert data.items("test")[0] == {
        "id": "p2",
        "group": "p2",
        "sequence": "MKVLAWYD",
        "label": "HHHHCCCC",
        "contacts": [[0, 7]],
    }
    file.write_text('{"id": "a", "sequence": "MKV", "contacts": [[0, 3]]}\nnot json\n{"id": "b"}\n')
    with pytest.raises(DataError) as found:
        Jsonl(str(file)).setup()
    assert [p.where.split(":")[1].split(",")[0] for p in found.value.problems] == ["1", "2", "3"]
