"""`openmoe data corpus`: slices of what the machine has, the same every time, and nothing twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from openmoe_tools.data.slices import building, machine

SCHEMA = json.loads(
    Path(building.__file__).with_name("corpus.schema.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "made"
    assert building.build(building.Request(folder, "machine", megabytes=0.15)) == 0
    return folder


def lines(path):
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]


def test_any_machine_with_the_environment_has_several_slices(corpus, valid):
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    assert valid(manifest, SCHEMA)
    names = [one["name"] for one in manifest["slices"]]
    assert {"python", "python_packages", "python_stubs", "c", "documentation"} <= set(names)
    assert {one["kind"] for one in manifest["slices"]} >= {"code", "prose"}
    assert sorted(one.stem for one in corpus.glob("*.jsonl")) == sorted(names)
    for one in manifest["slices"]:
        content = (corpus / f"{one['name']}.jsonl").read_bytes()
        assert hashlib.sha256(content).hexdigest() == one["sha256"]
        found = lines(corpus / f"{one['name']}.jsonl")
        assert len(found) == one["parts"]
        assert sum(len(line["text"].encode()) for line in found) == one["bytes"]
        assert len({line["name"] for line in found}) == one["documents"]
        assert one["bytes"] < 160_000


def test_parts_of_a_document_follow_each_other_and_no_text_comes_twice(corpus):
    seen = set()
    for path in corpus.glob("*.jsonl"):
        found = lines(path)
        names = [line["name"] for line in found]
        changes = [
            name for before, name in zip([None, *names], names, strict=False) if name != before
        ]
        assert len(changes) == len(set(changes)), path
        for before, line in zip([None, *found], found, strict=False):
            if before and before["name"] == line["name"]:
                assert line["part"] > before["part"]
            assert line["text"] not in seen
            seen.add(line["text"])


def test_the_same_is_made_again(corpus, tmp_path):
    again = tmp_path / "again"
    assert building.build(building.Request(again, "machine", megabytes=0.15)) == 0
    for path in corpus.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    other = tmp_path / "other"
    request = building.Request(other, "machine", ("python",), megabytes=0.15, seed=1)
    assert building.build(request) == 0
    assert (other / "python.jsonl").read_bytes() != (corpus / "python.jsonl").read_bytes()


def test_slices_that_are_asked_for_alone(tmp_path, run):
    found = run("data", "corpus", tmp_path / "one", "--slice", "c", "--megabytes", "0.1")
    assert found.code == 0, found
    assert [one.name for one in sorted((tmp_path / "one").iterdir())] == [
        "c.jsonl",
        "manifest.json",
    ]
    assert "openmoe audit run CHECKPOINT --corpus" in found.stdout


def test_a_slice_that_the_machine_has_not_is_missing(tmp_path, run, monkeypatch):
    nothing = machine.Kind(1, dict, str)
    changed = {"python": machine.SLICES["python"], "nowhere": ("code", nothing)}
    monkeypatch.setattr(machine, "SLICES", changed)
    small = ("--megabytes", "0.1")
    found = run("data", "corpus", tmp_path / "all", *small)
    assert (found.code, "left out: nowhere (there is none)" in found.stdout) == (0, True)
    found = run(
        "data", "corpus", tmp_path / "two", "--slice", "python", "--slice", "nowhere", *small
    )
    assert found.code == 2
    told = json.loads((tmp_path / "two" / "manifest.json").read_text(encoding="utf-8"))
    assert told["missing"] == [{"name": "nowhere", "reason": "there is none"}]


def test_wrong_options_are_one_line(tmp_path, corpus, complains):
    new = tmp_path / "new"
    complains("data", "corpus", new, "--recipe", "web", words=["--recipe web", "machine"])
    complains("data", "corpus", new, "--slice", "pyton", words=["pyton", "did you mean python?"])
    complains("data", "corpus", corpus, words=["holds a corpus already"])
    complains("data", "corpus", new, "--downloads", tmp_path, words=["--downloads", "packages"])
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    complains("data", "corpus", file, words=["is no folder"])


def test_an_audit_reads_a_corpus(corpus, trained, run, tmp_path):
    more = ("--tokens", "300", "--length", "32", "--rows", "4", "--out", tmp_path / "audit")
    found = run("audit", "run", trained, "--corpus", corpus, *more)
    assert found.code == 0, found
    assert "slices" in found.stdout


def test_sentences_of_a_catalogue(tmp_path):
    messages = {
        "": "Content-Type: text/plain; charset=UTF-8\n",
        "A sentence of some length that is translated.": "Ein Satz von einiger Länge, der übersetzt ist.",
        "Another sentence which nobody has translated yet.": "Another sentence which nobody has translated yet.",
        "short": "kurz",
    }
    (tmp_path / "one.mo").write_bytes(catalogue(messages))
    assert list(machine._sentences(tmp_path / "one.mo")) == [
        "Ein Satz von einiger Länge, der übersetzt ist."
    ]
    (tmp_path / "two.mo").write_bytes(b"no catalogue")
    assert list(machine._sentences(tmp_path / "two.mo")) == []


def catalogue(messages):
    """Return a compiled message catalogue, as GNU gettext's manual describes it."""
    pairs = [(one.encode(), there.encode()) for one, there in sorted(messages.items())]
    start = 28 + 16 * len(pairs)
    tables = [[], []]
    texts = b""
    for side in (0, 1):
        for pair in pairs:
            tables[side] += [len(pair[side]), start + len(texts)]
            texts += pair[side] + b"\0"
    head = [0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start]
    numbers = [*head, *tables[0], *tables[1]]
    return b"".join(one.to_bytes(4, "little") for one in numbers) + texts
