"""The corpus of a machine: what is found, what is left out, and that nothing held out is trained on."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from itertools import chain, pairwise

import numpy as np
import pytest

from openmoe_conformance.outcome import UsageError
from openmoe_tools.data import gathering, machine_text
from openmoe_tools.data.machine_text import KINDS


def prose(seed, count=120):
    """Return so many words that no other seed gives, in lines and paragraphs."""
    letters = np.random.default_rng(seed).integers(97, 123, (count, 6), np.uint8)
    words = [one.tobytes().decode() for one in letters]
    lines = [" ".join(words[i : i + 8]) for i in range(0, count, 8)]
    return "\n\n".join("\n".join(lines[i : i + 3]) for i in range(0, len(lines), 3)) + "\n"


def manual(seed):
    return f'.TH A 1\n.SH NAME\na \\- \\fBbold\\fR words\n.PP\n{prose(seed)}.SH "SEE ALSO"\n.BR b (1)\n'


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that puts files on a machine that has nothing else; names begin with a root."""
    roots = {one: tmp_path / one for one in ("stdlib", "purelib", "man", "doc")}
    monkeypatch.setattr(machine_text.sysconfig, "get_path", lambda name: str(roots[name]))
    monkeypatch.setattr(machine_text, "MANUALS", roots["man"])
    monkeypatch.setattr(machine_text, "SHARED_DOCUMENTATION", roots["doc"])

    def put(given):
        for name, content in given.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return put


def lines(folder):
    """Return the records of both files."""
    return {
        name: [json.loads(one) for one in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in (gathering.TRAIN, gathering.HELD_OUT)
    }


def texts(folder):
    """Return whole documents by kind and name."""
    found = {}
    for record in chain(*lines(folder).values()):
        place = (record["kind"], record["name"])
        found[place] = found.get(place, "") + record["text"]
    return found


# ---- what is found -----------------------------------------------------------------------------


def test_every_kind_is_found_and_only_what_is_worth_reading_is_kept(machine, tmp_path):
    licence = "# Copyright of somebody\n# under a licence\n\n"
    machine(
        {
            "stdlib/a.py": licence + prose(1),
            "stdlib/b/c.py": "# What it is for\n" + prose(2),
            "stdlib/test/d.py": prose(3),
            "stdlib/site-packages/e.py": prose(4),
            "stdlib/_sysconfigdata_x.py": prose(5),
            "stdlib/short.py": "x = 1\n",
            "stdlib/table.py": "0x10, 0x20\n" * 100,
            "stdlib/latin.py": b"caf\xe9 " * 100,
            "stdlib/pydoc_data/topics.py": f"topics = {{'assert': {prose(6)!r}, 'none': ''}}\n",
            "purelib/p/q.py": prose(7).replace("\n", "\r\n"),
            "purelib/p-1.dist-info/METADATA": f"Metadata-Version: 2\nName: p\n\n{prose(8)}",
            "purelib/p-1.dist-info/top_level.txt": prose(9),
            "man/man1/a.1": manual(10),
            "man/man1/b.1.gz": gzip.compress(manual(11).encode(), mtime=0),
            "man/man1/c.1.gz": b"\x1f\x8bbroken",
            "man/fr/man1/d.1": manual(12),
            "doc/f/README": prose(13),
            "doc/f/large.txt": prose(14, 60_000),
        }
    )
    made = gathering.gather(tmp_path / "out")
    assert texts(tmp_path / "out") == {
        ("library", "a.py"): prose(1),
        ("library", "b/c.py"): "# What it is for\n" + prose(2),
        ("packages", "p/q.py"): prose(7),
        ("manuals", "a.1"): f"NAME\na - bold words\n\n{prose(10)}\nSEE ALSO\nb(1)\n",
        ("manuals", "b.1.gz"): f"NAME\na - bold words\n\n{prose(11)}\nSEE ALSO\nb(1)\n",
        ("documentation", "topics/assert"): prose(6),
        ("documentation", "p-1.dist-info/METADATA"): prose(8),
        ("documentation", "f/README"): prose(13),
    }
    assert made["left_out"] == {
        "cannot be read": 1,
        "no UTF-8": 1,
        "no prose and no code": 1,
        "too long": 1,
        "too short": 2,
    }


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ('.\\" remark\n.SH A\n.B one "two three"\n.BI -f " file"\n', "A\none two three\n-f file\n"),
        (".SH A\n.TP 8\n.B \\-\\-all\nwhat \\(aqit\\(aq is\n", "A\n\n--all\nwhat 'it' is\n"),
        ('.SH A\n.IP "name" 4\nwhat\\&ever\\e\n', "A\n\nname\nwhatever\\\n"),
        (".SH A\n\\s-1SMALL\\s0 \\f(CWcode\\fP\\*(Rs\n.de XX\n", "A\nSMALL code\n"),
        (".so man1/other.1\n", ""),
        (".SH A\n.TS\ntable\n.TE\n", ""),
    ],
)
def test_manual_pages_lose_their_macros(page, text):
    assert machine_text.manual_text(page) == text


# ---- what is taken -----------------------------------------------------------------------------


def test_parts_are_the_text_and_end_where_it_pauses():
    text = "def one():\n    pass\n\n    more\n\n\ndef two():\n    pass\n"
    assert gathering.cut(text, 34) == [text[:32], text[32:]]
    assert text[32:].startswith("def two")
    assert gathering.cut("a b\n\nc", 6) == ["a b\n\nc"]
    assert gathering.cut("abcdefgh", 3) == ["abc", "def", "gh"]
    for seed in range(20):
        whole = prose(seed, 300)
        parts = gathering.cut(whole, 217)
        assert "".join(parts) == whole
        assert max(map(len, parts)) <= 217
        assert min(map(len, parts[:-1])) > 217 // 2
        assert all(one.endswith("\n\n") for one in parts[:-1])


def test_what_is_equal_or_nearly_so_is_taken_once(machine, tmp_path):
    text, words = prose(1, 400), prose(1, 400).split()
    wrapped = "".join("# " + " ".join(words[i : i + 5]) + "\n" for i in range(0, 390, 5))
    half = " ".join(words[:150]) + "\n" + prose(3, 250)
    machine(
        {
            "stdlib/a.py": text,
            "purelib/b.py": "\n" + text + "\n\n",
            "doc/c/COPYING": wrapped + "and a few words of their own\n",
            "doc/d/README": half,
            "doc/e/README": "the same line again and again and again, for ever\n" * 30,
        }
    )
    made = gathering.gather(tmp_path / "out", longest=10_000)
    assert set(texts(tmp_path / "out")) == {("library", "a.py"), ("documentation", "d/README")}
    assert made["left_out"] == {"seen before": 3}


def filled(machine, count=60):
    """Put so many documents of each kind on the machine, of some 2.4 kB each."""
    machine({f"stdlib/{i}.py": prose(i, 350) for i in range(count)})
    machine({f"purelib/many/{i}.py": prose(1000 + i, 350) for i in range(count)})
    machine({f"purelib/few/{i}.py": prose(2000 + i, 350) for i in range(3)})
    machine({f"man/man1/{i}.1": manual(3000 + i) for i in range(count)})
    machine({f"doc/{i}/README": prose(4000 + i, 350) for i in range(count)})


def test_kinds_have_their_shares_and_no_package_crowds_out_another(machine, tmp_path):
    filled(machine)
    made = gathering.gather(tmp_path / "out", megabytes=0.1)
    sizes = {
        kind: sum(told["bytes"] for told in counts.values())
        for kind, counts in made["kinds"].items()
    }
    assert 100_000 <= sum(sizes.values()) < 102_000
    total = sum(one.share for one in KINDS.values())
    for kind, size in sizes.items():
        assert abs(size - 100_000 * KINDS[kind].share / total) < 3000
    packages = [name for kind, name in texts(tmp_path / "out") if kind == "packages"]
    assert sum(name.startswith("few/") for name in packages) == 3
    assert len(packages) > 6
    taken = set(texts(tmp_path / "out"))
    gathering.gather(tmp_path / "out", megabytes=0.1, seed=1)
    assert len(taken & set(texts(tmp_path / "out"))) < 0.8 * len(taken)


def test_what_one_kind_lacks_the_others_fill(machine, tmp_path):
    machine({f"stdlib/{i}.py": prose(i, 350) for i in range(60)})
    machine({"doc/a/README": prose(1000)})
    made = gathering.gather(tmp_path / "out", megabytes=0.1)
    counts = made["kinds"]
    assert sum(told["documents"] for told in counts["documentation"].values()) == 1
    assert sum(told["bytes"] for told in counts["library"].values()) > 98_000


# ---- files -------------------------------------------------------------------------------------


def content(folder):
    return {one.name: one.read_bytes() for one in folder.iterdir()}


def test_the_same_machine_and_seed_give_the_same_bytes(machine, tmp_path):
    filled(machine)
    made = gathering.gather(tmp_path / "one", megabytes=0.2)
    assert gathering.gather(tmp_path / "two", megabytes=0.2) == made
    found = content(tmp_path / "one")
    assert found == content(tmp_path / "two")
    assert set(found) == {gathering.TRAIN, gathering.HELD_OUT, gathering.MANIFEST}
    assert json.loads(found[gathering.MANIFEST]) == made
    for name, told in made["files"].items():
        records = lines(tmp_path / "one")[name]
        assert told["sha256"] == hashlib.sha256(found[name]).hexdigest()
        assert told["parts"] == len(records)
        assert told["documents"] == len({(one["kind"], one["name"]) for one in records})
        assert told["bytes"] == sum(len(one["text"].encode()) for one in records)
    other = gathering.gather(tmp_path / "one", megabytes=0.2, seed=1)
    assert other["files"] != made["files"]
    assert other["files"][gathering.TRAIN]["parts"] == len(lines(tmp_path / "one")[gathering.TRAIN])


def test_documents_are_held_out_whole_by_their_text_alone(machine, tmp_path):
    filled(machine)
    gathering.gather(tmp_path / "out", held_out=0.2, longest=400)
    train, held_out = lines(tmp_path / "out").values()
    of_train, apart = ({(one["kind"], one["name"]) for one in some} for some in (train, held_out))
    assert not of_train & apart
    assert 0.12 < len(apart) / (len(apart) + len(of_train)) < 0.28
    assert not {one["text"].strip() for one in train} & {one["text"].strip() for one in held_out}
    for some in (train, held_out):
        parts = [one["part"] for one in some]
        assert all(b in (0, a + 1) for a, b in pairwise(parts))
    # More text beside it moves no document from one file to the other.
    machine({f"stdlib/new/{i}.py": prose(9000 + i, 350) for i in range(20)})
    gathering.gather(tmp_path / "out", held_out=0.2, longest=400)
    train, held_out = lines(tmp_path / "out").values()
    assert apart <= {(one["kind"], one["name"]) for one in held_out}
    assert of_train <= {(one["kind"], one["name"]) for one in train}


def test_a_machine_of_two_documents_holds_one_out(machine, tmp_path):
    machine({"stdlib/a.py": prose(1), "stdlib/b.py": prose(2)})
    for share in (1e-9, 0.5):
        made = gathering.gather(tmp_path / "out", held_out=share)
        assert [told["documents"] for told in made["files"].values()] == [1, 1]


def test_this_machine_has_text_of_its_library(tmp_path):
    made = gathering.gather(tmp_path, kinds=["library"], megabytes=1.0)
    assert 1_000_000 <= sum(told["bytes"] for told in made["files"].values()) < 1_002_001
    for record in lines(tmp_path)[gathering.TRAIN]:
        assert 0 < len(record["text"]) <= 2000


# ---- text that is named ------------------------------------------------------------------------


def test_one_named_file_is_enough_and_comes_back_whole(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(prose(1, 4000), encoding="utf-8")
    made = gathering.gather(tmp_path / "out", paths=[book], held_out=0.2, longest=300)
    assert set(made["kinds"]) == {"named"}
    records = list(chain(*lines(tmp_path / "out").values()))
    in_turn = sorted(records, key=lambda one: int(one["name"].split("/")[1]))
    assert "".join(one["text"] for one in in_turn) == prose(1, 4000)
    assert 0.1 < made["files"][gathering.HELD_OUT]["parts"] / len(records) < 0.3


def test_named_lines_and_folders_are_read_and_other_encodings_passed_over(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "a.txt").write_bytes("ä".encode("latin-1") * 300)
    (given / "b.jsonl").write_text(
        "".join(json.dumps({"body": one}) + "\n" for one in ("short", "brief", "short")),
        encoding="utf-8",
    )
    (given / "c.txt").write_text("中文\r\n", encoding="utf-8")
    made = gathering.gather(tmp_path / "out", paths=[given], field="body")
    assert sorted(texts(tmp_path / "out").values()) == ["brief", "short", "中文\n"]
    assert made["left_out"] == {"no UTF-8": 1, "seen before": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"megabytes": 0.0}, "megabytes 0.0: must be above 0"),
        ({"megabytes": math.inf}, "megabytes inf: must be above 0"),
        ({"held_out": 0.0}, "held_out 0.0: must be above 0"),
        ({"held_out": 0.6}, "held_out 0.6: must be above 0 and 0.5 at most"),
        ({"longest": 10}, "longest 10: must be 200 characters at least"),
        ({"kinds": ["books"]}, "kinds books: is none of library, packages"),
        ({"kinds": []}, "kinds none: is none of library, packages"),
        ({}, r"this machine \(library, .*\): gives 1 documents, 2 are needed"),
        ({"paths": ["one.txt"]}, "one.txt: gives 1 documents, 2 are needed"),
        ({"paths": ["."]}, "would be written over or into"),
        ({"paths": ["empty.txt"]}, "empty.txt: no document that is not empty"),
        ({"folder": "one.txt"}, "one.txt: is no folder"),
    ],
    ids=str,
)
def test_what_cannot_be_gathered_is_refused(machine, tmp_path, options, words):
    machine({"stdlib/a.py": prose(1), "one.txt": "one\n", "empty.txt": ""})
    paths = [tmp_path / one for one in options.get("paths", ())]
    folder = tmp_path / options.get("folder", "out")
    rest = {name: one for name, one in options.items() if name not in {"paths", "folder"}}
    with pytest.raises(UsageError, match=words) as refused:
        gathering.gather(folder, paths=paths, **rest)
    assert "\n" not in str(refused.value)
    assert not (folder / gathering.TRAIN).exists()
