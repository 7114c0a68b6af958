"""Traces: what is written is read again, exactly or not at all; SQL over one gives the tables' numbers."""
# ruff: noqa: S608 - SQL is what is tested

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("duckdb")
from pyarrow import parquet

from openmoe_conformance.outcome import UsageError
from openmoe_reference import audit, audit_drops, audit_measures
from openmoe_tools.audit.counting.layout import Sizes
from openmoe_tools.audit.counting.routed import SELECTION, Routed
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.trace import queries, querying, reading, writing
from openmoe_tools.audit.trace.columns import MORE

SIZES = Sizes(40, 24, 3, 3, 6, 2, ("t5x", "torch_port"))
SLICES = ("code", "law", "verse")
MODEL = {"digest": "a" * 64, "layers": [2, 5, 8], "experts": 6, "choices": 2, "vocabulary_size": 40}
MANIFEST = {
    "model": MODEL,
    "tokenizer": {"digest": "b" * 64},
    "corpus": {"digest": "c" * 64, "slices": [{"name": one} for one in SLICES]},
    "recipe": {"length": 24, "rules": [{"name": "t5x"}, {"name": "torch_port"}], "rows": 4},
    "recorded": ["drops", "margins"],
}

UNASKED = ("place", "margin", "gate", "entropy")
"""What a trace has not unless it is asked for; of margins it has one."""


def drawn(seed=0, rows=60, sizes=SIZES):
    """Draw rows of documents and their routing; ids and experts are skewed."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, sizes.length + 1, rows)
    n = int(lengths.sum())
    row = np.repeat(np.arange(rows), lengths)
    document = row // 2  # in the order of their numbers, as a run sees them
    position = np.arange(n) - np.repeat(lengths.cumsum() - lengths, lengths)
    likely = 1 / np.arange(1, sizes.vocabulary + 1)
    token = rng.choice(sizes.vocabulary, n, p=likely / likely.sum())
    noise = rng.gumbel(size=(n, sizes.layers, sizes.experts))
    liking = rng.normal(size=(sizes.vocabulary, sizes.layers, sizes.experts)) * 2
    expert = np.argsort(-(noise + liking[token]), axis=-1)[..., : sizes.choices]
    rules = len(sizes.rules)
    dropped = rng.random((rules, n, sizes.layers, sizes.choices)) < position[:, None, None] / 60
    gate = rng.random((n, sizes.layers, sizes.choices)).astype(np.float16).astype(np.float32)
    return Routed(
        row=row,
        position=position.astype(np.int32),
        token=token.astype(np.int32),
        slice=(document % sizes.slices).astype(np.int16),
        document=document.astype(np.int32),
        expert=expert.astype(np.uint16),
        documents=[f"{SLICES[i % 3]}/{i}" for i in range(rows // 2)],
        dropped=dropped,
        place=rng.integers(64, size=(rules, n)).astype(np.int32),
        margin=rng.integers(256, size=(2, n, sizes.layers)).astype(np.uint8),
        gate=gate,
        entropy=rng.integers(65, size=(n, sizes.layers)).astype(np.uint8),
    )


def cut(routed, *rows):
    """Cut before the first tokens of rows."""
    at = [0, *np.searchsorted(routed.row, rows).tolist(), len(routed.row)]
    return [reading.part(routed, a, b) for a, b in itertools.pairwise(at)]


def written(folder, *parts, manifest=MANIFEST, **options):
    with writing.TraceWriter(folder, manifest, **options) as writer:
        for one in parts:
            writer.add(one)
            writer.flush()
    return folder


def whole(folder, **options):
    """Read a trace as one."""
    found = None
    for one in reading.read(folder, **options):
        found = reading.joined(found, one)
    return found


def same(one, other, but=()):
    """Return whether two hold the same, of the same dtypes, and the same documents."""
    for name in set(reading.FIELDS) - set(but):
        a, b = getattr(one, name), getattr(other, name)
        if (a is None) != (b is None):
            return False
        if a is not None and not (a.dtype == b.dtype and np.array_equal(a, b)):
            return False
    names = [[r.documents[i] for i in r.document] for r in (one, other)]
    return names[0] == names[1]


# ---- what is written is read -----------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 64, 1 << 17])
def test_everything_comes_back(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(writing, "ROWS", 50)  # rows of the text lie in two row groups, and batches
    routed = drawn()
    folder = written(tmp_path / "trace", *cut(routed, 11, 12, 40), more=MORE)
    assert sorted(one.name for one in folder.iterdir()) == [
        "documents.parquet",
        *(f"part-0000{i}.parquet" for i in range(4)),
    ]
    assert parquet.ParquetFile(folder / "part-00000.parquet").metadata.num_row_groups > 1
    assert same(whole(folder, batch=batch), routed)
    for one in reading.read(folder, batch=batch):  # whole rows, a few at a time
        assert len(one.row) <= batch + SIZES.length
        assert set(one.row.tolist()).isdisjoint(set(routed.row.tolist()) - set(one.row.tolist()))
        assert all(
            (routed.row == row).sum() == (one.row == row).sum() for row in set(one.row.tolist())
        )


def test_what_is_not_asked_for_is_left_out(tmp_path):
    routed = drawn()
    folder = written(tmp_path / "trace", routed)
    found = whole(folder)
    assert same(found, routed, but=UNASKED)
    assert found.place is found.margin is found.gate is found.entropy is None
    table = parquet.read_table(folder / "part-00000.parquet")
    for m in range(3):  # the selection margin is always there
        column = table.column(f"l{m}_margin").to_numpy()
        assert np.array_equal(column, routed.margin[SELECTION, :, m])
    with pytest.raises(UsageError, match="gates are to be written, and are not recorded"):
        written(tmp_path / "other", replace(routed, gate=None), more=["gates"])
    with pytest.raises(UsageError, match="knows no 'logits'"):
        written(tmp_path / "third", routed, more=["logits"])


def test_a_trace_that_knows_little_is_one_too(tmp_path):
    routed = replace(drawn(), dropped=None, place=None, margin=None, gate=None, entropy=None)
    assert same(whole(written(tmp_path / "trace", routed)), routed)


def test_many_experts_and_many_bits(tmp_path):
    sizes = Sizes(500, 24, 1, 9, 300, 8, ("t5x",))  # 72 bits of dropped choices
    routed = replace(drawn(1, 8, sizes), place=None, margin=None, gate=None, entropy=None)
    manifest = {
        **MANIFEST,
        "model": MODEL
        | {"experts": 300, "choices": 8, "vocabulary_size": 500, "layers": [*range(9)]},
        "corpus": {"digest": None, "slices": [{"name": "code"}]},
        "recipe": {"length": 24, "rules": [{"name": "t5x"}]},
    }
    folder = written(tmp_path / "audit" / "trace", routed, manifest=manifest)
    assert same(whole(folder), routed)
    schema = parquet.read_schema(folder / "part-00000.parquet")
    assert schema.field("l0_e0").type == pa.uint16()
    assert schema.field("dropped_t5x").type == pa.uint64()
    assert schema.field("dropped_t5x__1").type == pa.uint8()
    for layer, figure in ((0, "load"), (8, "load"), (8, "drop_by_position")):  # and in SQL
        rows = asked(tmp_path / "audit", figure=figure, layer=layer)
        if figure == "load":
            counts = np.zeros((300, 8), int)
            for expert, rank, chosen in rows:
                counts[expert, rank] = chosen
            assert np.array_equal(
                counts, _counts(routed, layer, np.zeros(len(routed.row), int), 1, 300)[0]
            )
        else:
            first = sum(row[3] for row in rows)
            assert first == routed.dropped[0, :, layer, 0].sum() > 0


def test_documents_and_metadata_are_in_the_files(tmp_path):
    routed = drawn()
    folder = written(tmp_path / "trace", *cut(routed, 30))
    trace = reading.open_trace(folder)
    assert trace.tokens == len(routed.row)
    assert (trace.head.model_digest, trace.head.corpus_digest) == ("a" * 64, "c" * 64)
    assert (trace.head.layers, trace.head.slices) == ((2, 5, 8), SLICES)
    assert trace.head.recipe == MANIFEST["recipe"]
    documents = reading.documents(trace)
    assert documents.names == routed.documents
    assert documents.tokens == np.bincount(routed.document).tolist()
    assert documents.slices == [SLICES[i % 3] for i in range(30)]
    pairs = parquet.read_metadata(folder / "part-00001.parquet").metadata
    assert pairs[b"schema"] == b"openmoe-trace/1"


def test_a_token_takes_at_most_ten_bytes(tmp_path):
    # 4 layers, two choices, drops by two rules, margins: ids by Zipf's law, experts by ids, skewed.
    sizes = Sizes(256_384, 2048, 1, 4, 32, 2, ("t5x", "torch_port"))
    rng, n = np.random.default_rng(3), 1 << 18
    likely = (np.arange(1, sizes.vocabulary + 1) + 2.7) ** -1.1
    token = rng.choice(sizes.vocabulary, n, p=likely / likely.sum())
    row, position = np.divmod(np.arange(n), 2048)
    favourite = rng.normal(size=(4, 32)) * 0.6
    expert = np.empty((n, 4, 2), np.uint16)
    for m in range(4):
        liking = np.random.default_rng(m).gumbel(size=(4096, 32)) + favourite[m]
        expert[:, m] = np.argsort(-liking[token % 4096], axis=-1)[:, :2]
        other = rng.random(n) < 0.3
        expert[other, m] = (expert[other, m] + rng.integers(1, 31, (other.sum(), 1))) % 32
    likely = np.array([0.02, 0.05]) * (0.5 + position[:, None, None] / 2048)
    dropped = rng.random((n, 4, 2)) < likely  # one rule has more room than the other
    margin = audit_measures.margin_codes(rng.exponential(0.5, (2, n, 4)).astype(np.float32))
    routed = Routed(
        row=row,
        position=position.astype(np.int32),
        token=token.astype(np.int32),
        slice=np.zeros(n, np.int16),
        document=row.astype(np.int32),
        expert=expert,
        documents=[str(i) for i in range(n // 2048)],
        dropped=np.stack([dropped, dropped & (rng.random(dropped.shape) < 0.3)]),
        margin=margin,
    )
    manifest = {
        **MANIFEST,
        "model": MODEL | {"experts": 32, "vocabulary_size": 256_384, "layers": [5, 11, 17, 23]},
        "recipe": MANIFEST["recipe"] | {"length": 2048},
    }
    folder = written(tmp_path / "trace", routed, manifest=manifest)
    assert sum(one.stat().st_size for one in folder.iterdir()) / n < 10


# ---- interruptions ---------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818 - what a test does to a run
    """An interruption."""


def interrupted(folder, parts, promised, **options):
    """Write parts, of which the first are promised, and be interrupted."""

    def run():
        with writing.TraceWriter(folder, MANIFEST, **options) as writer:
            for number, one in enumerate(parts):
                writer.add(one)
                if number < promised:
                    assert writer.flush() == number + 1
            raise Killed

    with pytest.raises(Killed):
        run()


def test_an_interrupted_run_keeps_what_it_promised_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROWS", 64)
    routed = drawn()
    parts = cut(routed, 10, 20, 30, 45)
    folder = tmp_path / "trace"
    interrupted(folder, parts[:4], 2)
    assert sorted(one.name for one in folder.iterdir()) == [
        *("documents.parquet", "part-00000.parquet", "part-00001.parquet"),
    ]
    assert same(
        whole(folder),
        reading.joined(parts[0], parts[1]),
        but=UNASKED,
    )
    written(folder, *parts[2:], after=2)
    assert same(whole(folder), routed, but=UNASKED)
    assert reading.documents(reading.open_trace(folder)).names == routed.documents


def test_parts_that_were_not_promised_are_written_again(tmp_path):
    routed = drawn()
    parts = cut(routed, 10, 20, 30)
    folder = written(tmp_path / "trace", *parts)  # the run knows of the first alone, and was killed
    (folder / "part-00007.parquet.part").write_bytes(b"half")
    written(folder, *parts[1:], after=1)
    assert same(whole(folder), routed, but=UNASKED)
    assert not list(folder.glob("*.part"))
    written(folder, *parts[2:], after=0)
    # Documents are numbered as they are seen, so the numbers are others and the names are not.
    assert same(whole(folder), reading.joined(*parts[2:]), but=(*UNASKED, "document"))


def test_a_run_goes_on_with_its_own_trace_alone(tmp_path):
    parts = cut(drawn(), 30)
    folder = written(tmp_path / "trace", parts[0])
    with pytest.raises(UsageError, match="holds a trace"):
        written(folder, parts[1])
    other = {**MANIFEST, "model": MODEL | {"digest": "d" * 64}}
    with pytest.raises(UsageError, match="another model digest"):
        written(folder, parts[1], manifest=other, after=1)
    with pytest.raises(UsageError, match=r"part-00001.parquet: is missing"):
        written(folder, parts[1], after=2)
    with pytest.raises(UsageError, match="record other columns"):
        written(folder, parts[1], after=1, more=["gates"])


def test_a_trace_without_a_token_is_none(tmp_path):
    with pytest.raises(UsageError, match="no token was counted"):
        written(tmp_path / "trace")


def test_what_does_not_fit_is_not_cut_off(tmp_path):
    routed = drawn()
    with pytest.raises(UsageError, match="row does not fit int32"):
        written(tmp_path / "trace", replace(routed, row=routed.row + (1 << 31)))
    rule = {**MANIFEST, "recipe": {"length": 24, "rules": [{"name": "a__1"}]}}
    with pytest.raises(UsageError, match="rule 'a__1'"):
        written(tmp_path / "other", routed, manifest=rule)


# ---- what is no trace ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "audit" / "trace", *cut(drawn(), 20, 40))


def changed(path, change, **metadata):
    """Change the columns of a file, as a dictionary of arrays, and its metadata."""
    table = parquet.read_table(path)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    change(columns)
    pairs = dict(table.schema.metadata) | {k.encode(): v.encode() for k, v in metadata.items()}
    parquet.write_table(pa.table(columns).replace_schema_metadata(pairs), path)


def put(name, at, value):
    def change(columns):
        values = columns[name].to_numpy(zero_copy_only=False).copy()
        values[at] = value
        columns[name] = pa.array(values.tolist() if values.dtype == object else values)

    return change


def nothing(columns):
    del columns


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_half_written_part_is_named(folder, number):
    path = folder / f"part-0000{number}.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for read in (whole, lambda folder: querying.query(querying.Request(folder.parent, "SELECT 1"))):
        with pytest.raises(UsageError, match=f"{path.name}: is no complete Parquet file"):
            read(folder)


def test_flipped_bytes_are_found_or_change_nothing(folder):
    path = folder / "part-00001.parquet"
    expected, content = whole(folder), path.read_bytes()
    rng = np.random.default_rng(5)
    found = 0
    for at in rng.integers(len(content), size=60).tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            assert same(whole(folder), expected)
        except UsageError:
            found += 1
    assert found > 30


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_part_is_named(folder, number):
    (folder / f"part-0000{number}.parquet").unlink()
    with pytest.raises(UsageError, match=f"part-0000{number}.parquet: is missing"):
        whole(folder)


@pytest.mark.parametrize("name", ["model_digest", "corpus_digest", "recipe", "experts"])
def test_parts_of_different_runs_are_refused(folder, name):
    value = {"recipe": '{"length": 23}', "experts": "7"}.get(name, "e" * 64)
    changed(folder / "part-00001.parquet", nothing, **{name: value})
    words = f"part-00001.parquet: is of another {name.replace('_', ' ')} than part-00000.parquet"
    with pytest.raises(UsageError, match=words):
        whole(folder)


WRONG = {
    "expert": (put("l1_e0", 5, 6), "token 5, layer 1: choice 0 is 6, and there are 6 experts"),
    "sentinel": (put("l2_e1", 3, 255), "token 3, layer 2: choice 1 is 255"),
    "token": (put("token", 2, 40), "token of token 2 is 40, not below 40"),
    "position": (put("position", 2, 24), "position of token 2 is 24, not below 24"),
    "document": (put("document", 2, 99), "document of token 2 is 99, not below 30"),
    "bits": (put("dropped_t5x", 4, 64), "dropped_t5x of token 4 is 64, not below 64"),
    "row": (put("row", slice(None), 3), "row 3 is longer than 24 tokens"),
    "slice": (lambda c: c.update(slice=pa.array(["else"] * len(c["row"]))), "slice 'else'"),
    "gaps": (
        lambda c: c.update(l0_e0=pa.array([None] * len(c["row"]), pa.uint8())),
        "column l0_e0 has gaps",
    ),
    "kind": (
        lambda c: c.update(row=c["row"].cast(pa.float64())),
        "is of other columns|column row is double",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_cannot_be_are_refused_with_their_place(tmp_path, name):
    change, words = WRONG[name]
    folder = written(tmp_path / "trace", drawn())
    changed(folder / "part-00000.parquet", change)
    with pytest.raises(UsageError, match=words) as refused:
        whole(folder)
    assert "part-00000.parquet" in str(refused.value)


def test_an_expert_that_is_named_twice_is_refused(tmp_path):
    routed = drawn()
    routed.expert[7, 1] = 4
    folder = written(tmp_path / "trace", routed)
    with pytest.raises(UsageError, match="token 7, layer 1: expert 4 is named twice"):
        whole(folder)


def test_folders_and_files_that_are_no_trace(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="holds no trace"):
            whole(path)
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "empty" / "part-00000.parquet")
    with pytest.raises(UsageError, match=r"documents.parquet: is missing"):
        whole(tmp_path / "empty")
    parquet.write_table(pa.table({"a": [1]}), folder / "part-00000.parquet")
    with pytest.raises(UsageError, match=r"part-00000.parquet: is no file of a trace"):
        whole(folder)
    changed(folder / "part-00001.parquet", nothing, layers="[true]")
    with pytest.raises(UsageError, match=r"is no file of a trace|is not that of a trace"):
        whole(folder)


def test_a_damaged_table_of_documents_is_named(folder):
    path = folder / "documents.parquet"
    content = path.read_bytes()
    for change, words in (
        (lambda columns: columns.pop("tokens"), "column tokens is missing"),
        (put("name", 3, None), "column name is missing, or has gaps"),
        (put("tokens", 3, 1000), r"counts \d+ tokens, and the parts have"),
    ):
        path.write_bytes(content)
        changed(path, change)
        with pytest.raises(UsageError, match=words):
            whole(folder)
    path.write_bytes(content)
    changed(path, nothing, corpus_digest="e" * 64)
    with pytest.raises(UsageError, match=r"documents.parquet: is of another corpus digest"):
        whole(folder)


def test_a_lacking_column_is_named(tmp_path):
    folder = written(tmp_path / "trace", drawn())
    changed(folder / "part-00000.parquet", lambda columns: columns.pop("l2_e1"))
    with pytest.raises(UsageError, match="has no column l2_e1"):
        whole(folder)


# ---- SQL -------------------------------------------------------------------------------------------


def asked(folder, sql=None, **options):
    """Return the rows of a query, as its JSON has them."""
    path = Path(folder) / "answer.json"
    assert querying.query(querying.Request(folder, sql, json=path, **options)) == 0
    return [tuple(one) for one in json.loads(path.read_text())["rows"]]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """An audit's folder with a trace and pieces, and what was routed."""
    path = tmp_path_factory.mktemp("traced")
    routed = drawn(7, 400)
    written(path / "trace", *cut(routed, 100, 101, 350))
    (path / "pieces.json").write_text(json.dumps([f"piece {i}" for i in range(40)]))
    return path, routed


@pytest.fixture(scope="module")
def tables(traced):
    found = Tables(SIZES)
    found.add(traced[1])
    return found.arrays


NUMBERS = {"token": 40, "position": 24, "slice": 3}


def _counts(routed, layer, keys, number, experts=6):
    return audit.count_choices(
        keys.astype(np.int64),
        routed.expert[:, layer].astype(np.int64),
        num_keys=number,
        num_experts=experts,
    )


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize(("field", "least"), [("token", 128), ("position", 0)])
def test_spreads_are_those_of_the_tables(traced, tables, layer, field, least):
    figure, number = f"{field}_spread", NUMBERS[field]
    rows = asked(traced[0], figure=figure, layer=layer)
    counts = tables[field].sum(axis=0)[:, layer].astype(np.int64)
    assert np.array_equal(counts, _counts(traced[1], layer, getattr(traced[1], field), number))
    tokens, spread = audit.tokens_of(counts), audit.share_spread(counts)
    kept = np.flatnonzero(tokens > least)
    assert 0 < len(kept) < (number if least else number + 1)
    assert [(row[0], row[1]) for row in rows] == [
        (key, tokens[key]) for key in sorted(kept, key=lambda key: (-tokens[key], key))
    ]
    for key, _, found in rows:
        assert math.isclose(found, spread[key], rel_tol=1e-12)
    mean = sum(row[2] for row in rows) / len(rows)
    assert math.isclose(mean, audit.mean_spread(counts, least=least), rel_tol=1e-12)


def test_the_filter_of_figure_14_is_strict(traced):
    _, routed = traced
    tokens = np.bincount(routed.token, minlength=40)
    least = int(np.sort(tokens)[20])
    sql = queries.token_spread(1, least)
    assert (
        sorted(row[0] for row in asked(traced[0], sql)) == np.flatnonzero(tokens > least).tolist()
    )


def test_experts_that_nobody_chose_count_in_a_spread(tmp_path):
    routed = drawn(2, 40)
    routed.expert[...] = np.array([3, 5])
    written(tmp_path / "trace", routed)
    for row in asked(tmp_path, queries.token_spread(0, 0)):
        assert math.isclose(row[2], audit.largest_spread(2, 6), rel_tol=1e-12)


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("field", ["slice", "position"])
def test_shares_are_those_of_the_tables(traced, tables, layer, field):
    figure, number = f"{field}_shares", NUMBERS[field]
    counts = tables[field].sum(axis=0)[:, layer]
    shares = audit.choice_shares(counts)
    names = SLICES if field == "slice" else range(number)
    expected = {
        (name, e): (int(counts[i, e].sum()), float(shares[i, e]))
        for i, name in enumerate(names)
        for e in range(6)
        if counts[i, e].any()
    }
    assert {
        (r[0], r[1]): (r[2], r[3]) for r in asked(traced[0], figure=figure, layer=layer)
    } == expected


def test_shares_of_an_id(traced, tables):
    most = int(np.bincount(traced[1].token).argmax())
    shares = audit.choice_shares(tables["token"].sum(axis=0)[:, 2].astype(np.int64))
    for token, given in ((most, None), (most, most), (9, 9)):
        rows = asked(traced[0], figure="token_shares", token=given)
        assert rows
        assert all(row[0] == token and row[3] == shares[token, row[1]] for row in rows)


@pytest.mark.parametrize("layer", range(3))
def test_loads_pairs_neighbours_and_margins_are_those_of_the_tables(traced, tables, layer):
    path, routed = traced
    experts = routed.expert[:, layer].astype(np.int64)

    def matrix(figure, **options):
        found = np.zeros((6, 6), int)
        for one, other, tokens in asked(path, figure=figure, **options):
            found[one, other] = tokens
        return found

    load = matrix("load", layer=layer)[:, :2]
    assert np.array_equal(load, _counts(routed, layer, np.zeros(len(experts)), 1)[0])
    assert np.array_equal(load, tables["slice"].sum(axis=(0, 1))[layer])
    pairs = matrix("coactivation", layer=layer)
    assert np.array_equal(pairs, audit_measures.coactivation(experts, num_experts=6))
    assert np.array_equal(pairs, tables["coactivation"][layer])
    assert np.array_equal(matrix("transition", layer=layer), tables["transition"][layer])
    by_slice = {row[0]: row[1:] for row in asked(path, figure="repetition", layer=layer)}
    for number, name in enumerate(SLICES):
        own = routed.slice == number
        expected = audit_measures.repetition(experts[own], routed.row[own])
        assert by_slice[name] == tuple(expected.tolist())
        assert np.array_equal(expected, tables["repetition"][number, layer])
    codes = np.zeros((3, 256), int)
    for name, code, tokens in asked(path, figure="margins", layer=layer):
        codes[SLICES.index(name), code] = tokens
    assert np.array_equal(codes, tables["margin"][SELECTION, :, layer])
    for name, tokens, _, share in asked(path, figure="near_ties", layer=layer):
        histogram = codes[SLICES.index(name)]
        assert tokens == histogram.sum()
        assert share == audit_measures.near_tie_share(histogram)


def test_experts_in_two_layers(traced, tables):
    for number, (above, below) in enumerate([(0, 1), (0, 2), (1, 2)]):
        for sql in (queries.cross_layer(above, below), queries.cross_layer(below, above)):
            found = np.zeros((6, 6), int)
            for one, other, tokens in asked(traced[0], sql):
                found[one, other] = tokens
            assert np.array_equal(found, tables["cross_layer"][number])
    assert queries.cross_layer(0) == queries.cross_layer(1) == queries.cross_layer(0, 1)


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("rule", range(2))
def test_drops_are_those_of_the_tables(traced, tables, layer, rule):
    path, routed = traced
    name = SIZES.rules[rule]
    rows = asked(path, figure="drop_by_position", layer=layer, rule=name)
    found = np.zeros((3, 24, 5), int)
    for row in rows:
        found[SLICES.index(row[0]), row[1]] = row[2:]
    assert np.array_equal(found, tables["drop"][rule, :, :, layer])
    by_document = asked(path, figure="drop_by_document", layer=layer, rule=name)
    expected = audit_drops.drop_counts(
        routed.dropped[rule, :, layer], routed.document.astype(np.int64), num_keys=200
    )
    assert by_document == [(i, *row) for i, row in enumerate(expected.tolist())]


def test_top_tokens_are_those_of_the_tables(traced, tables):
    counts = tables["token"].sum(axis=0)[:, 2].astype(np.int64)
    top = audit_measures.top_tokens(counts, by="count")
    for expert in range(6):
        rows = asked(traced[0], figure="top_tokens", expert=expert)
        assert [row[0] for row in rows] == [one for one in top[expert].tolist() if one >= 0]
        assert [row[1] for row in rows] == [int(counts[row[0], expert].sum()) for row in rows]


def test_views_hold_what_was_routed(traced):
    path, routed = traced
    n = len(routed.row)
    assert asked(path, "SELECT count(*), min(position), max(token) FROM trace") == [
        (n, 0, int(routed.token.max()))
    ]
    sql = (
        'SELECT "row", position, expert, dropped_t5x, dropped_torch_port, margin FROM choices '
        'WHERE layer = 1 AND rank = 1 ORDER BY "row", position'
    )
    expected = zip(
        routed.row.tolist(),
        routed.position.tolist(),
        routed.expert[:, 1, 1].tolist(),
        routed.dropped[0, :, 1, 1].tolist(),
        routed.dropped[1, :, 1, 1].tolist(),
        routed.margin[SELECTION, :, 1].tolist(),
        strict=True,
    )
    assert asked(path, sql) == list(expected)
    assert asked(path, "SELECT count(*) FROM choices") == [(n * 6,)]
    assert asked(path, "SELECT name FROM documents WHERE document = 4") == [("law/4",)]
    assert asked(path, "SELECT piece FROM pieces WHERE token = 4") == [("piece 4",)]
    assert asked(path, "SELECT model_layer FROM layers ORDER BY layer") == [(2,), (5,), (8,)]
    assert asked(path, "FROM sizes") == [(3, 6, 2, 24, 40)]


def test_every_named_query_runs(traced):
    for name in queries.QUERIES:
        assert asked(traced[0], figure=name), name


def test_many_choices_are_joined_in_another_way_to_the_same_rows(traced, monkeypatch):
    from openmoe_tools.audit.trace import views

    sql = "SELECT * FROM choices ORDER BY ALL"
    expected = asked(traced[0], sql)
    monkeypatch.setattr(views, "_BRANCHES", 1)
    assert asked(traced[0], sql) == expected


# ---- the command -----------------------------------------------------------------------------------


def refused(folder, sql=None, **options):
    with pytest.raises(UsageError) as found:
        querying.query(querying.Request(folder, sql, **options))
    assert "\n" not in str(found.value)
    return str(found.value)


def test_answers_are_printed_and_written(traced, tmp_path, capsys, valid):
    path, routed = traced
    names = {"json": tmp_path / "a.json", "csv": tmp_path / "a.csv"}
    sql = 'SELECT token, piece, [token, 0.5 / 0] AS list FROM trace JOIN pieces USING (token) ORDER BY "row", position'
    assert querying.query(querying.Request(path, sql, **names)) == 0
    printed = capsys.readouterr().out
    assert f"{len(routed.row):,} rows, of which the first 40 are shown" in printed
    assert len(re.findall(r"piece \d", printed)) == 40
    report = json.loads(names["json"].read_text())
    schema = json.loads((Path(querying.__file__).parent / "query.schema.json").read_text())
    assert valid(report, schema)
    assert report["count"] == len(report["rows"]) == len(routed.row)
    assert [one["name"] for one in report["columns"]] == ["token", "piece", "list"]
    assert report["rows"][0] == [
        int(routed.token[0]),
        f"piece {routed.token[0]}",
        [int(routed.token[0]), None],
    ]
    with names["csv"].open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["token", "piece", "list"]
    assert [row[0] for row in rows[1:]] == [str(one) for one in routed.token.tolist()]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_no_rows_are_an_answer(traced, tmp_path):
    assert asked(traced[0], "SELECT token FROM trace WHERE token > 1000") == []
    querying.query(querying.Request(traced[0], "FROM trace WHERE false", csv=tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_text().startswith("document,row,position,token")


def test_names_of_strangers_do_not_reach_the_terminal_as_they_are(tmp_path, capsys):
    routed = drawn()
    names = [f"[bold]\x1b[31m{i}" for i in range(30)]
    written(tmp_path / "trace", replace(routed, documents=names))
    querying.query(querying.Request(tmp_path, "SELECT name, name AS '[red]\x1b' FROM documents"))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"[bold]\x1b[31m7" in printed


def test_without_a_question_it_says_what_there_is_to_ask(traced, capsys):
    assert querying.query(querying.Request(traced[0])) == 0
    printed = capsys.readouterr().out
    for word in ("choices", "decisions", "pieces", "token_spread", "figure 14"):
        assert word in printed
    assert "need SQL or --figure" in refused(traced[0], json=traced[0] / "x.json")


def test_a_figure_of_the_caller_is_answered(traced, capsys):
    request = querying.Request(traced[0], figure="mine")
    assert querying.query(request, {"mine": "SELECT 41 + 1 AS mine"}) == 0
    assert "42" in capsys.readouterr().out


def test_wrong_requests_are_one_line(traced, tmp_path):
    path = traced[0]
    for sql, words in {
        "SELECT nothing FROM trace": "nothing",
        "SELEC 1": "syntax error",
        "SELECT CAST('x' AS INTEGER)": "x",
        "SELECT error('late') FROM trace": "late",
        "": "one statement, got 0",
        "SELECT 1; SELECT 2": "one statement, got 2",
        "SELECT ?": "parameters",
    }.items():
        assert words in refused(path, sql)
        assert refused(path, sql).startswith("SQL")
    assert "one of them, not both" in refused(path, "SELECT 1", figure="load")
    assert "is none of slice_shares, token_shares" in refused(path, figure="figure 99")
    assert "the trace has sparse layers 0 to 2" in refused(path, figure="load", layer=3)
    assert "the trace has t5x, torch_port" in refused(
        path, figure="drop_by_position", rule="elsewhere"
    )
    assert "is read" in refused(path, "SELECT 1", csv=path / "trace" / "part-00000.parquet")
    (tmp_path / "audit").mkdir()
    assert "--trace" in refused(tmp_path / "audit", "SELECT 1")
    assert "is no folder of an audit" in refused(tmp_path / "nowhere", "SELECT 1")


def test_an_answer_that_fails_leaves_no_file(traced, tmp_path):
    sql = "SELECT CASE WHEN i > 200000 THEN error('late') ELSE i END FROM range(300000) AS t(i)"
    refused(traced[0], sql, csv=tmp_path / "a.csv", json=tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_a_query_reads_the_trace_alone_and_writes_nothing(traced, tmp_path):
    path = traced[0]
    other = tmp_path / "other.csv"
    other.write_text("a\n1\n")
    part = path / "trace" / "part-00000.parquet"
    content = part.read_bytes()
    target = f"COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)"
    secret = 7  # a variable of this program is no table
    for sql in (
        f"SELECT * FROM read_csv('{other}')",
        f"SELECT * FROM '{other}'",
        f"SELECT * FROM read_text('{other}')",
        f"SELECT * FROM glob('{tmp_path}/*')",
        "SELECT * FROM secret",
        f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
        f"WITH a AS (COPY (SELECT 1) TO '{tmp_path / 'out.csv'}') SELECT * FROM a",
        target,
        f"WITH a AS ({target}) SELECT * FROM a",
        f"((WITH a AS ({target}) SELECT * FROM a))",
        f"EXPLAIN ANALYZE {target}",
        f"SELECT * FROM query($$WITH a AS ({target}) SELECT * FROM a$$)",
        "WITH a AS (INSERT INTO pieces VALUES (1, 'x') RETURNING *) SELECT * FROM a",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW trace",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        f"ATTACH '{tmp_path / 'mine.db'}'",
        f"EXPORT DATABASE '{tmp_path / 'all'}'",
        "INSTALL httpfs",
        "PRAGMA version",
    ):
        assert refused(path, sql), sql
    assert secret
    assert part.read_bytes() == content
    assert [one.name for one in tmp_path.iterdir()] == ["other.csv"]
    for sql in (
        "SHOW TABLES",
        "DESCRIBE trace",
        "SUMMARIZE sizes",
        "SELECT 1 -- one",
        "SELECT 1;",
        "FROM sizes",
    ):
        assert asked(path, sql)
    assert asked(path, "PIVOT (SELECT slice, 1 AS n FROM documents) ON slice USING sum(n)")


def test_a_program_that_cannot_read_the_encoding_is_refused(traced, monkeypatch):
    import duckdb

    monkeypatch.setattr(duckdb, "__version__", "1.4.0")
    assert "needs duckdb 2 or newer" in refused(traced[0], "SELECT 1")


def test_damaged_pieces_are_named(tmp_path):
    written(tmp_path / "trace", drawn())
    for content in ('{"a": 1}', "[1, 2]", "[", '"text"'):
        (tmp_path / "pieces.json").write_text(content)
        assert "pieces.json: " in refused(tmp_path, "SELECT 1")
