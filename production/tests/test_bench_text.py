"""The benchmark from text to batches runs and writes its section; no rate is judged here."""

from __future__ import annotations

import pytest

pytest.importorskip("grain", reason="the extra data is not installed")
pytest.importorskip("sentencepiece", reason="the extra data is not installed")

from openmoe_conformance import vector_sets
from openmoe_production import bench_text

MODEL = vector_sets.built_in() / "vocabulary" / "bytefallback_umt5layout.model"
TEXTS = ["One sentence about nothing, and another one about it. " * (3 + i % 9) for i in range(800)]


@pytest.fixture
def corpus():
    return bench_text.Corpus("sentences", TEXTS, MODEL.read_bytes())


def test_the_section_has_a_row_a_text_and_a_row_a_way(corpus, tables):
    text = bench_text.section([corpus, corpus], batches=2, rounds=1)
    assert text.startswith("## From text to batches\n")
    stages, ways = tables(text)
    assert [row["text"] for row in stages] == ["sentences"] * 2
    for row in stages:
        parts = [float(row[name]) for name in ("reading", "tokenising", "objectives", "packing")]
        assert min(parts) >= 0
        assert parts[1] > 0
        # A group's time is told with its last example: so few batches may show too much of it.
        share = float(row["share"])
        assert share > 0
        if abs(share - 0.8) > 0.01:
            assert row["target"] == f">= 0.80: {'met' if share > 0.8 else 'missed'}"
    assert [row["workers"] for row in ways] == [*bench_text.WAYS, "2 processes"]
    assert ways[0]["ratio"] == "1.00"
    assert all(float(row["ratio"]) > 0 for row in ways)


def test_stages_are_those_of_the_batches_that_were_timed(corpus):
    found = bench_text.stages(corpus, batches=3, rounds=1)
    assert found.pieces == 800
    assert found.bytes_a_token == pytest.approx(
        sum(map(len, TEXTS[:500])) / sum(_tokens(corpus)[:500])
    )
    assert 3 * bench_text.BATCH <= found.examples <= 12 * bench_text.BATCH


def _tokens(corpus):
    from openmoe_production import vocabulary

    loaded = vocabulary.load(corpus.model)
    return [len(loaded.encode(text)) for text in corpus.texts]
