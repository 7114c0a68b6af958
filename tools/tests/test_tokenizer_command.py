"""`openmoe tokenizer`: a trained model is one, and every file that is none is told in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from openmoe_tools.data import tokenizer, tokenizing

pytest.importorskip("sentencepiece")
SCHEMA = json.loads(
    Path(tokenizing.__file__).with_name("tokenizer.schema.json").read_text(encoding="utf-8")
)
WORDS = np.random.default_rng(0).choice(list("aeimnorst"), (400, 5)).tolist()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    lines = "\n".join("".join(one) for one in WORDS)
    path.write_text(lines + "\nthe cat and a naïve dog" * 20, encoding="utf-8")
    return path


@pytest.fixture
def model(run, text, tmp_path):
    path = tmp_path / "own.model"
    found = run("tokenizer", "train", text, "--output", path, "--pieces", 320)
    assert found.code == 0, found.stderr
    return path


def test_a_trained_model_has_the_layout_of_umt5s(run, text, tmp_path, valid):
    output, report = tmp_path / "a.model", tmp_path / "report.json"
    found = run("tokenizer", "train", text, "--output", output, "--pieces", 320, "--json", report)
    assert found.code == 0
    made = json.loads(report.read_text(encoding="utf-8"))
    assert valid(made, SCHEMA)
    names = ("pieces", "vocabulary_size", "num_embeddings", "first_sentinel", "last_sentinel")
    assert [made[name] for name in names] == [320, 620, 640, 619, 320]
    assert [made[name] for name in ("pad", "end", "start", "unknown")] == [0, 1, 2, 3]
    assert made["byte_fallback"] is True
    assert made["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert made["umt5"] == [{"what": "pieces", "found": 320, "umt5": 256_000}]
    assert "This is not umT5's model: pieces 320, umT5 has 256000." in found.stdout
    tokenizer.Tokenizer(output)  # as the other commands load it


def test_training_is_the_same_each_time(run, text, model, tmp_path):
    again = tmp_path / "again.model"
    run("tokenizer", "train", text, "--output", again, "--pieces", 320)
    assert again.read_bytes() == model.read_bytes()


def test_json_lines_train_as_the_text_they_hold(run, text, model, tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"body": text.read_text(encoding="utf-8")}) + "\n")
    other = tmp_path / "lines.model"
    options = ("--output", other, "--pieces", 320, "--field", "body")
    assert run("tokenizer", "train", lines, *options).code == 0
    assert other.read_bytes() == model.read_bytes()


def test_a_text_is_shown_as_pieces(run, model, tmp_path, valid):
    report = tmp_path / "report.json"
    given = "the cat <extra_id_0> 猫"
    found = run("tokenizer", "inspect", model, "--text", given, "--json", report)
    assert found.code == 0
    made = json.loads(report.read_text(encoding="utf-8"))
    assert valid(made, SCHEMA)
    (shown,) = made["texts"]
    assert shown["text"] == given
    assert len(shown["ids"]) == len(shown["pieces"])
    assert shown["ids"][shown["pieces"].index("▁<extra_id_0>")] == 619
    assert "▁<extra_id_0>=619" in found.stdout
    assert [p for p in shown["pieces"] if p.startswith("<0x")] == ["<0xE7>", "<0x8C>", "<0xAB>"]


def test_a_model_of_umt5s_form_is_told_by_the_ids_of_texts(run, model, monkeypatch):
    from openmoe_production import vocabulary

    monkeypatch.setitem(vocabulary.UMT5, "pieces", 320)
    found = run("tokenizer", "inspect", model)
    assert "This is not umT5's model: ids of 'Bonjour monsieur" in found.stdout
    loaded = vocabulary.load(model)
    own = {text: (*loaded.encode(text).tolist(), 1) for text in vocabulary.UMT5_TEXTS}
    monkeypatch.setattr(vocabulary, "UMT5_TEXTS", own)
    found = run("tokenizer", "inspect", model)
    assert "This is umT5's model as far as can be told" in found.stdout


def test_mistakes_are_one_line(complains, text, model, tmp_path):
    output = tmp_path / "b.model"
    train = ("tokenizer", "train")
    complains(*train, "--output", output, words=["FILES", "--standard-library"])
    complains(
        *train,
        text,
        "--output",
        output,
        "--pieces",
        90_000,
        words=["too short for 90000 pieces, at most"],
    )
    for megabytes in ("nan", "inf"):
        complains(*train, text, "--megabytes", megabytes, words=["--megabytes"])
    complains(*train, text, "--output", tmp_path / "no" / "a", words=["its folder does not exist"])
    complains(*train, tmp_path / "absent", "--output", output, words=["absent: No such file"])
    complains(*train, text, "--standard-library", "--output", output, words=["goes without FILES"])
    assert not output.exists()
    for content, words in (
        (b"", "is no SentencePiece model"),
        (b"no model", "is no SentencePiece model"),
        (model.read_bytes()[:900], "is truncated"),
    ):
        output.write_bytes(content)
        complains("tokenizer", "inspect", output, words=[str(output), words])
    complains("tokenizer", "inspect", tmp_path, words=["Is a directory"])


def test_a_foreign_file_in_a_folder_is_named(complains, text, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    output = tmp_path / "c.model"
    train = ("tokenizer", "train", folder, "--output", output)
    complains(*train, words=[f"{folder}: holds no file"])
    (folder / "a.txt").write_bytes(text.read_bytes())
    (folder / "x.png").write_bytes(b"\x89PNG")
    complains(*train, words=[f"openmoe: {folder / 'x.png'}: byte 0 is no UTF-8"])
    assert not output.exists()


def test_the_least_number_of_pieces_is_told(run, complains, text, tmp_path):
    train = ("tokenizer", "train", text, "--output", tmp_path / "d.model", "--pieces")
    complains(*train, 5, words=["5 pieces are too few"])
    told = run(*train, 5).stderr
    assert "--character_coverage" not in told
    least = int(told.rpartition("at least ")[2])
    complains(*train, least - 1, words=[f"at least {least}"])
    assert run(*train, least).code == 0


def test_what_is_read_is_not_written_over(complains, text, model):
    before = text.read_bytes(), model.read_bytes()
    train = ("tokenizer", "train", text, "--pieces", 320)
    complains(*train, "--output", text, words=[f"{text}: would be written over"])
    complains(*train, "--json", text, words=[f"{text}: would be written over"])
    inside = ("tokenizer", "train", text.parent, "--output", text.parent / "new.model")
    complains(*inside, words=["new.model: would be written over or into"])
    complains("tokenizer", "inspect", model, "--json", model, words=[f"{model}: would be"])
    assert (text.read_bytes(), model.read_bytes()) == before


def test_without_the_package_the_extra_is_named(complains, model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    complains("tokenizer", "inspect", model, words=["sentencepiece", "openmoe-spec[text]"])
