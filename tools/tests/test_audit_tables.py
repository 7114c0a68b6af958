"""Tables of a routing audit: each is what plain loops count, in any parts, and kept bit for bit."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import zipfile
from dataclasses import fields, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from itertools import combinations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmoe_conformance.outcome import UsageError
from openmoe_reference import audit_drops
from openmoe_tools.audit.counting import cells, queues, table_files, weighing
from openmoe_tools.audit.counting.layout import (
    FOLDS,
    GROUP_BINS,
    POSITION_BINS,
    REPLICATES,
    Sizes,
    WhatIf,
    forms,
)
from openmoe_tools.audit.counting.routed import Groups, Routed
from openmoe_tools.audit.counting.tables import Tables

ALL = dict.fromkeys(("dropped", "place", "margin", "gate", "entropy"), True)
"""What may be known of tokens or not."""


# ---- what is counted, made by chance -------------------------------------------------------------


@st.composite
def sizes_of(draw):
    experts = draw(st.integers(1, 5))
    rules = ("t5x", "torch_port")[: draw(st.integers(0, 2))]
    most = {"vocabulary": 6, "length": 40, "slices": 3, "layers": 3}
    return Sizes(
        **{name: draw(st.integers(1, one)) for name, one in most.items()},
        experts=experts,
        choices=draw(st.integers(1, min(experts, 3))),
        rules=rules,
    )


@st.composite
def routed_of(draw, sizes):
    """Rows of documents, some of them in several rows and slices, and their routing."""
    lengths = draw(st.lists(st.integers(1, min(sizes.length, 6)), max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    known = {name: draw(st.booleans()) for name in ALL}
    return routed_by(rng, sizes, lengths, known)


def routed_by(rng, sizes, lengths, known=ALL):
    n, rows = sum(lengths), len(lengths)
    v, s, d, l = sizes.vocabulary, sizes.length, sizes.slices, sizes.layers  # noqa: E741
    e, k, r = sizes.experts, sizes.choices, len(sizes.rules)
    starts = [int(rng.integers(0, s - one + 1)) for one in lengths]
    names = [f"text/{one}" for one in rng.choice(50, 5, replace=False)]
    of_row = rng.integers(0, len(names), rows), rng.integers(0, d, rows)
    more = {
        "dropped": rng.random((r, n, l, k)) < 0.4,
        "place": rng.integers(0, GROUP_BINS, (r, n)).astype(np.int32),
        "margin": rng.integers(0, 256, (2, n, l)).astype(np.uint8),
        "gate": (rng.integers(0, 65, (n, l, k)) / 64 * rng.random((n, l, k))).astype(np.float32),
        "entropy": rng.integers(0, 65, (n, l)).astype(np.uint8),
    }
    if more["gate"].size:
        more["gate"].flat[0] = 1
    return Routed(
        row=np.repeat(rng.permutation(rows) * 1000, lengths).astype(np.int64),
        position=np.concatenate(
            [np.arange(a, a + b) for a, b in zip(starts, lengths, strict=True)] or [np.zeros(0)]
        ).astype(np.int32),
        token=rng.integers(0, v, n).astype(np.int32),
        slice=np.repeat(of_row[1], lengths).astype(np.int16),
        document=np.repeat(of_row[0], lengths).astype(np.int32),
        expert=rng.random((n, l, e)).argsort(axis=-1)[..., :k].astype(np.uint16),
        documents=names,
        **{name: one if known[name] else None for name, one in more.items()},
    )


@st.composite
def groups_of(draw, sizes):
    if draw(st.booleans()):
        return ()
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return [
        [_groups(rng, sizes, draw(st.integers(0, 3))) for _ in range(draw(st.integers(0, 2)))]
        for _ in sizes.rules
    ]


def _groups(rng, sizes, number):
    load = rng.integers(0, 6, (number, sizes.layers, sizes.experts))
    load *= rng.integers(0, 2, load.shape) | rng.integers(0, 2, (number, sizes.layers, 1))
    first = rng.integers(0, GROUP_BINS + 1, (number, sizes.layers))
    return Groups(load.astype(np.int32), first.astype(np.int32), int(rng.integers(1, 6)))


@st.composite
def cases(draw):
    sizes = draw(sizes_of())
    return sizes, draw(routed_of(sizes)), draw(groups_of(sizes))


def filled(sizes, routed, groups=()):
    made = Tables(sizes)
    made.add(routed, groups)
    return made


def equal(one, other):
    """Compare arrays by name, bit for bit."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    return True


# ---- plain loops --------------------------------------------------------------------------------


@cache
def thresholds():
    with localcontext() as context:
        context.prec = 50
        chances = [Decimal(-1).exp() / factorial(count) for count in range(12)]
        return [int(sum(chances[: count + 1]) * 2**32) for count in range(12)]


@cache
def fold_and_weights(name):
    def words(text):
        digest = hashlib.sha256(text.encode()).digest()
        return [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 32, 4)]

    drawn = [u for number in range(13) for u in words(f"0 {number} {name}")][:REPLICATES]
    weights = [sum(threshold <= u for threshold in thresholds()) for u in drawn]
    return words(name)[0] % FOLDS, np.array(weights)


def columns(dropped):
    """The DROP_COLUMNS of one token."""
    second = len(dropped) > 1 and dropped[1]
    return np.array([True, dropped[0], second, any(dropped), all(dropped)], np.int64)


def by_loops(sizes, routed, groups):
    made = {name: np.zeros(form.shape, form.dtype) for name, form in forms(sizes).items()}
    for n in range(len(routed.token)):
        token(made, sizes, routed, n)
    for rule, ones in enumerate(groups):
        for one in ones:
            for group in range(len(one.load)):
                for layer in range(sizes.layers):
                    group_of(made, rule, layer, one, group)
    return made


def token(made, sizes, routed, n):
    _, weights = fold_and_weights(routed.documents[routed.document[n]])
    d = routed.slice[n]
    made["slice_token"][d, routed.token[n]] += 1
    for layer in range(sizes.layers):
        chosen = routed.expert[n, layer].tolist()
        choices(made, routed, n, layer)
        if n + 1 < len(routed.row) and routed.row[n + 1] == routed.row[n]:
            following = routed.expert[n + 1, layer].tolist()
            made["transition"][layer, chosen[0], following[0]] += 1
            meeting = bool(set(chosen) & set(following))
            found = np.array([1, chosen[0] == following[0], meeting], np.int64)
            made["repetition"][d, layer] += found
            made["replicate_repetition"][:, layer] += weights[:, None] * found
        if routed.dropped is not None:
            drops(made, sizes, routed, n, layer)
        probabilities(made, routed, n, layer)
    for pair, (a, b) in enumerate(combinations(range(sizes.layers), 2)):
        for one in routed.expert[n, a]:
            for other in routed.expert[n, b]:
                made["cross_layer"][pair, one, other] += 1


def choices(made, routed, n, layer):
    fold, weights = fold_and_weights(routed.documents[routed.document[n]])
    chosen = routed.expert[n, layer].tolist()
    for rank, expert in enumerate(chosen):
        cell = layer, expert, rank
        made["token"][(fold, routed.token[n], *cell)] += 1
        made["position"][(fold, routed.position[n], *cell)] += 1
        made["slice"][(fold, routed.slice[n], *cell)] += 1
        made["replicate_slice"][(slice(None), routed.slice[n], *cell)] += weights
    for one, other in combinations(chosen, 2):
        made["coactivation"][layer, one, other] += 1
        made["coactivation"][layer, other, one] += 1


def probabilities(made, routed, n, layer):
    d = routed.slice[n]
    if routed.margin is not None:
        for which in range(2):
            made["margin"][which, d, layer, routed.margin[which, n, layer]] += 1
    if routed.gate is not None:
        for rank, gate in enumerate(routed.gate[n, layer].tolist()):
            made["gate"][d, layer, rank, min(int(gate * 64), 63)] += 1
    if routed.entropy is not None:
        made["entropy"][layer, routed.entropy[n, layer]] += 1


def drops(made, sizes, routed, n, layer):
    _, weights = fold_and_weights(routed.documents[routed.document[n]])
    s, d = int(routed.position[n]), routed.slice[n]
    for rule in range(len(sizes.rules)):
        dropped = routed.dropped[rule, n, layer].tolist()
        found = columns(dropped)
        made["drop"][rule, d, s, layer] += found
        part = s * POSITION_BINS // sizes.length
        made["replicate_drop"][:, rule, d, part, layer] += weights[:, None] * found
        if routed.place is not None:
            made["drop_in_group"][rule, routed.place[rule, n], layer] += found
        if routed.gate is not None:
            for gate, late in zip(routed.gate[n, layer].tolist(), dropped, strict=True):
                units = round(Fraction(gate) * 2**30)
                made["lost_gate"][rule, d, layer] += (units * late, units)


def group_of(made, rule, layer, groups, group):
    load = groups.load[group, layer].tolist()
    if sum(load):
        ratio = Fraction(max(load) * len(load), sum(load))
        eighths = max(one for one in range(64) if ratio**8 >= 2**one)
        made["group_load"][rule, layer, eighths] += 1
    for expert, one in enumerate(load):
        used, beyond = min(one, groups.capacity), max(one - groups.capacity, 0)
        made["group_use"][rule, layer, expert] += (1, used, beyond, one > groups.capacity)
    made["first_drop"][rule, layer, groups.first[group, layer]] += 1


@given(cases())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_every_table_is_what_loops_count(case):
    assert equal(filled(*case).arrays, by_loops(*case))


@given(cases())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_documents_are_held_a_few_at_a_time(case):
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(weighing, "MEMORY", 1)
        assert equal(filled(*case).arrays, by_loops(*case))


def test_a_batch_of_many_tokens():
    """Both ways to count cells are taken, and 256 experts and layers of them do not collide."""
    rng = np.random.default_rng(0)
    sizes = Sizes(700, 50, 2, 2, 256, 4, ("t5x",))
    routed = routed_by(rng, sizes, [50] * 12)
    groups = [[_groups(rng, sizes, 2)]]
    assert equal(filled(sizes, routed, groups).arrays, by_loops(sizes, routed, groups))
    ratios = np.zeros((1, 3, 256), np.int32)
    ratios[0, 0, 0], ratios[0, 1], ratios[0, 2, :128] = 7, 3, 1
    made = filled(sizes, routed, [[Groups(ratios[:, :2], np.zeros((1, 2), np.int32), 1)]])
    assert np.flatnonzero(made.arrays["group_load"][0, 0]).tolist() == [63]
    assert np.flatnonzero(made.arrays["group_load"][0, 1]).tolist() == [0]
    made = filled(sizes, routed, [[Groups(ratios[:, 1:], np.zeros((1, 2), np.int32), 1)]])
    assert np.flatnonzero(made.arrays["group_load"][0, 1]).tolist() == [8]


def test_sums_are_exact_however_large():
    rng = np.random.default_rng(1)
    keys, values = rng.integers(0, 3, 99), rng.integers(2**52 - 9, 2**52, 99)
    wanted = [sum(values[keys == key].tolist()) for key in range(3)]
    assert cells.sums(keys, values, 3).tolist() == wanted
    assert cells.sums(keys[:0], values[:0], 3).tolist() == [0, 0, 0]


@given(st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_counted_apart(data):
    """Replays, documents, and sums of probabilities."""
    sizes = replace(data.draw(sizes_of()), what_if=(WhatIf("choices", 4, 1.0, 2),) * 2)
    tables = Tables(sizes)
    wanted = {name: np.zeros_like(array) for name, array in tables.arrays.items()}
    for index in data.draw(st.lists(st.integers(0, 1), max_size=3)):
        rng = np.random.default_rng(index)
        position = rng.integers(0, sizes.length, 9).astype(np.int32)
        dropped = rng.random((9, sizes.layers, sizes.choices)) < 0.5
        tables.add_what_if(index, dropped, position)
        for n, s in enumerate(position.tolist()):
            for layer in range(sizes.layers):
                part = s * POSITION_BINS // sizes.length
                wanted["what_if"][index, part, layer] += columns(dropped[n, layer].tolist())
        names = [f"{index}/{n}" for n in range(9)]
        slices = rng.integers(0, sizes.slices, 9)
        tables.count_documents(names, slices)
        for name, d in zip(names, slices, strict=True):
            wanted["documents"][fold_and_weights(name)[0], d] += 1
        sums = rng.integers(0, 2**40, (sizes.layers, sizes.experts))
        log_sums = rng.integers(0, 2**40, (sizes.layers, 2))
        tables.add_probabilities(sums, log_sums)
        wanted["probability"] += sums
        wanted["log_sum"] += log_sums
    assert equal(tables.arrays, wanted)


# ---- parts --------------------------------------------------------------------------------------


def part_of(routed, rows, rng):
    """Some rows, in another order, of documents that are listed in another order."""
    chosen = [np.flatnonzero(routed.row == row) for row in rng.permutation(rows)]
    at = np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64)
    order = rng.permutation(len(routed.documents))
    made = {
        field.name: one if (one := getattr(routed, field.name)) is None else one[at]
        for field in fields(Routed)
        if field.name not in {"documents", "dropped", "place", "margin"}
    }
    for name in ("dropped", "place", "margin"):
        one = getattr(routed, name)
        made[name] = None if one is None else one[:, at]
    made["document"] = np.argsort(order)[made["document"]]
    return Routed(**made, documents=[routed.documents[one] for one in order])


@given(cases(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rows_in_any_parts_and_order_give_the_same_bits(case, seed):
    sizes, routed, groups = case
    rng = np.random.default_rng(seed)
    whole = filled(sizes, routed, groups)
    rows = np.unique(routed.row)
    of_part = rng.integers(0, 4, len(rows))
    parts = [part_of(routed, rows[of_part == one], rng) for one in range(4)]
    given_with = rng.integers(0, 4)
    shares = [groups if one == given_with else () for one in range(4)]

    added = Tables(sizes)
    for one in rng.permutation(4):
        added.add(parts[one], shares[one])
    assert equal(added.arrays, whole.arrays)

    merged = [filled(sizes, part, share) for part, share in zip(parts, shares, strict=True)]
    merged = [merged[one] for one in rng.permutation(4)]
    while len(merged) > 1:  # pairs of neighbours, whichever comes first: any bracketing
        at = int(rng.integers(0, len(merged) - 1))
        merged[at].merge(merged.pop(at + 1))
    assert equal(merged[0].arrays, whole.arrays)


def test_groups_of_a_rule_may_come_apart():
    rng = np.random.default_rng(2)
    sizes = Sizes(3, 4, 1, 2, 4, 2, ("t5x", "torch_port"))
    nothing = routed_by(rng, sizes, [])
    groups = [[_groups(rng, sizes, 5)], [_groups(rng, sizes, 1), _groups(rng, sizes, 2)]]
    whole, apart = filled(sizes, nothing, groups), Tables(sizes)
    for rule, ones in enumerate(groups):
        for one in ones:
            for at in range(len(one.load)):
                single = Groups(one.load[at : at + 1], one.first[at : at + 1], one.capacity)
                apart.add(nothing, [[single] if number == rule else [] for number in range(2)])
    assert equal(apart.arrays, whole.arrays)
    assert whole.arrays["group_use"][..., 0].sum() == (5 + 1 + 2) * 2 * 4


def test_only_tables_of_the_same_sizes_are_merged():
    sizes = Sizes(3, 4, 1, 2, 4, 2, ("t5x",))
    with pytest.raises(UsageError, match=r"rules \(t5x\) and \(torch_port\) cannot be merged"):
        Tables(sizes).merge(Tables(replace(sizes, rules=("torch_port",))))
    with pytest.raises(UsageError, match="vocabulary 3 and 4 cannot be merged"):
        Tables(sizes).merge(Tables(replace(sizes, vocabulary=4)))


# ---- what a table cannot hold, what does not fit ---------------------------------------------------

SMALL = Sizes(3, 8, 2, 2, 4, 2, ("t5x",), (WhatIf("choices", 4, 1.0, 2),))


def small(**changes):
    routed = routed_by(np.random.default_rng(3), SMALL, [4, 3])
    return replace(routed, **changes)


def test_a_token_is_never_counted_beyond_32_bits():
    routed = small(token=np.zeros(7, np.int32))
    once = filled(SMALL, routed).arrays["token"].copy()
    cell = np.unravel_index(once.argmax(), once.shape)
    most, number = 2**32 - 1, int(once[cell])
    assert number > 1
    tables = Tables(SMALL)
    tables.arrays["token"][cell] = most - number
    tables.add(routed)
    assert tables.arrays["token"][cell] == most
    for start in (most - number + 1, most):
        tables = Tables(SMALL)
        tables.arrays["token"][cell] = start
        before = {name: array.copy() for name, array in tables.arrays.items()}
        with pytest.raises(UsageError, match="table token: a cell would exceed 4294967295"):
            tables.add(routed)
        with pytest.raises(UsageError, match="table token: a cell would exceed 4294967295"):
            tables.merge(filled(SMALL, routed))
        assert equal(tables.arrays, before)


@pytest.mark.parametrize("name", ["lost_gate", "probability", "log_sum", "slice"])
def test_no_sum_is_beyond_64_bits(name):
    sums = np.ones((2, 4), np.int64), np.ones((2, 2), np.int64)
    more = filled(SMALL, small())
    more.add_probabilities(*sums)
    tables = Tables(SMALL)
    cell = np.unravel_index(more.arrays[name].argmax(), more.arrays[name].shape)
    tables.arrays[name][cell] = 2**63 - 1
    before = {name: array.copy() for name, array in tables.arrays.items()}
    with pytest.raises(UsageError, match=f"table {name}: a cell would exceed"):
        tables.merge(more)
    if name == "lost_gate":
        with pytest.raises(UsageError, match=f"table {name}: a cell would exceed"):
            tables.add(small())
    if name in {"probability", "log_sum"}:
        with pytest.raises(UsageError, match=f"table {name}: a cell would exceed"):
            tables.add_probabilities(*sums)
    assert equal(tables.arrays, before)


WRONG = {
    "token": (3, "token: goes from .* to 3; must be 0 at least and at most 2"),
    "position": (8, "position: .* at most 7"),
    "slice": (-1, "slice: goes from -1"),
    "document": (5, "document: .* at most 4"),
    "expert": (4, "expert: .* at most 3"),
    "place": (64, "place: .* at most 63"),
    "entropy": (65, "entropy: .* at most 64"),
    "gate": (np.nan, "gate: goes from nan to nan"),
    "row": (-1, "row: goes from -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_counted_as_another_is_refused(name):
    value, words = WRONG[name]
    array = getattr(small(), name).copy()
    array.flat[3] = value
    tables = Tables(SMALL)
    with pytest.raises(UsageError, match=words):
        tables.add(small(**{name: array}))
    with pytest.raises(UsageError, match=r"routing: .*: is .*; must be \w+ \["):
        tables.add(small(**{name: array[:-1]}))
    with pytest.raises(UsageError, match=f"routing: {name}: is complex128"):
        tables.add(small(**{name: array.astype(np.complex128)}))
    assert not any(array.any() for array in tables.arrays.values())


def test_other_things_that_do_not_fit_are_refused():
    tables, groups = Tables(SMALL), _groups(np.random.default_rng(4), SMALL, 2)
    twice = small().expert.copy()
    twice[5, 1] = 2
    late = np.zeros((7, 2, 2), bool)
    empty = small(documents=["", *"abcd"], document=np.zeros(7, np.int32))
    for words, call in {
        "expert 2 is named twice for the token at position": lambda: tables.add(
            small(expert=twice)
        ),
        "groups of 2 capacity rules; the audit has 1": lambda: tables.add(small(), [[], []]),
        "load of groups of t5x: goes from -1": lambda: tables.add(
            small(), [[replace(groups, load=np.full_like(groups.load, -1))]]
        ),
        "first drop of groups of t5x: .* at most 64": lambda: tables.add(
            small(), [[replace(groups, first=np.full((2, 2), 65))]]
        ),
        "load of groups of t5x: is int32 .2, 2, 3.": lambda: tables.add(
            small(), [[replace(groups, load=groups.load[..., :3])]]
        ),
        "document '': is no name": lambda: tables.add(empty),
        "replayed drops: is bool .7, 2, 1.; must be bool .7, 2, 2.": lambda: tables.add_what_if(
            0, late[..., :1], np.zeros(7, np.int32)
        ),
        "positions: goes from 2 to 8": lambda: tables.add_what_if(0, late, np.arange(2, 9) % 9),
        "slices of documents: .* at most 1": lambda: tables.count_documents("a", np.array([2])),
        "sums of probability: is int64": lambda: tables.add_probabilities(
            np.zeros((4, 2), np.int64), np.zeros((2, 2), np.int64)
        ),
        "sums of log_sum: is float64": lambda: tables.add_probabilities(
            np.zeros((2, 4), np.int64), np.zeros((2, 2))
        ),
        "layers is 0; must be a whole number": lambda: Tables(replace(SMALL, layers=0)),
        "5 choices among 4 experts": lambda: Tables(replace(SMALL, choices=5)),
    }.items():
        with pytest.raises(UsageError, match=words):
            call()
    assert not any(array.any() for array in tables.arrays.values())


# ---- files --------------------------------------------------------------------------------------


@given(cases())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_file_is_read_as_it_was_written(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("tables")
    tables = filled(*case)
    tables.save(folder / "one.npz")
    found = Tables.load(folder / "one.npz")
    assert found.sizes == tables.sizes
    assert equal(found.arrays, tables.arrays)
    found.save(folder / "two.npz")
    assert (folder / "one.npz").read_bytes() == (folder / "two.npz").read_bytes()
    found.add(*case[1:])
    tables.merge(tables)
    assert equal(found.arrays, tables.arrays)
    assert sorted(one.name for one in folder.iterdir()) == ["one.npz", "two.npz"]


@pytest.fixture
def stored(tmp_path):
    """A file, and what is in it."""
    tables = filled(SMALL, small(), [[_groups(np.random.default_rng(5), SMALL, 3)]])
    tables.save(tmp_path / "tables.npz")
    return tmp_path / "tables.npz", tables


def test_others_can_read_it(stored):
    path, tables = stored
    with np.load(path, allow_pickle=False) as archive:
        for name, array in tables.arrays.items():
            np.testing.assert_array_equal(archive[name], array)
        told = json.loads(archive["sizes.json"])
    assert (told["schema"], told["vocabulary"], told["rules"]) == (table_files.SCHEMA, 3, ["t5x"])
    assert told["what_if"] == [
        {"priority": "choices", "group_size": 4, "factor": 1.0, "capacity": 2}
    ]


def test_damage_is_refused_or_changes_nothing(stored):
    path, tables = stored
    content = path.read_bytes()
    rng = np.random.default_rng(6)
    refused = []
    for number in range(400):
        damaged = bytearray(content)
        if number % 4:
            damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        else:
            at, size = rng.integers(len(content)), rng.integers(1, 40)
            damaged[at : at + size] = rng.bytes(size) if number % 8 else b""
        path.write_bytes(damaged)
        try:
            assert equal(Tables.load(path).arrays, tables.arrays)
        except UsageError as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert all(str(path) in error and "\n" not in error for error in refused)
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UsageError, match=r"tables\.npz: is no file of an audit's tables"):
            Tables.load(path)


def rewritten(path, change, method=zipfile.ZIP_DEFLATED):
    """Write the archive's entries again, after a change of their contents by name."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def packed(array):
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def told(**changes):
    def change(entries):
        content = json.loads(entries["sizes.json"]) | changes
        entries["sizes.json"] = json.dumps(content).encode()

    return change


OTHERS = {
    "a table is missing": lambda entries: entries.pop("token.npy"),
    "one too many": lambda entries: entries.update({"x.npy": packed(np.zeros(3))}),
    "no sizes": lambda entries: entries.pop("sizes.json"),
    "no words": lambda entries: entries.update({"sizes.json": b"\xff"}),
    "nested": lambda entries: entries.update({"sizes.json": b"[" * 100_000}),
    "a list": lambda entries: entries.update({"sizes.json": b"[]"}),
    "another schema": told(schema="openmoe-audit-tables/2"),
    "a size too many": told(depth=3),
    "other sizes": told(vocabulary=4),
    "sizes beyond memory": told(vocabulary=10**15),
    "sizes beyond any": told(vocabulary=10**400),
    "no number": told(vocabulary="3"),
    "below 1": told(layers=-2),
    "no rules": told(rules=None),
    "a rule without a name": told(rules=[1]),
    "half a rule": told(what_if=[{"priority": "choices"}]),
    "a rule of words": told(
        what_if=[{"priority": "choices", "group_size": "4", "factor": 1.0, "capacity": 2}]
    ),
    "below 0": lambda e: e.update({"documents.npy": packed(np.full((8, 2), -1))}),
    "other numbers": lambda e: e.update({"documents.npy": packed(np.zeros((8, 2)))}),
    "another order": lambda e: e.update(
        {"documents.npy": packed(np.zeros((8, 2), np.int64, order="F"))}
    ),
    "objects": lambda e: e.update({"documents.npy": packed(np.full((8, 2), None))}),
    "too long": lambda e: e.update({"documents.npy": e["documents.npy"] + b"\0"}),
    "too short": lambda e: e.update({"documents.npy": e["documents.npy"][:-1]}),
    "empty": lambda e: e.update({"documents.npy": b""}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_archives_are_refused(stored, name):
    path, _ = stored
    rewritten(path, OTHERS[name])
    with pytest.raises(UsageError, match=r"tables\.npz: is no file of an audit's tables") as caught:
        Tables.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_other_ways_to_pack(stored):
    path, tables = stored
    rewritten(path, lambda _: None, zipfile.ZIP_STORED)
    assert equal(Tables.load(path).arrays, tables.arrays)
    rewritten(path, lambda _: None, zipfile.ZIP_BZIP2)
    with pytest.raises(UsageError, match="compressed in another way"):
        Tables.load(path)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "no.npz"):
        with pytest.raises(UsageError, match="is no file of an audit's tables"):
            Tables.load(path)
    np.savez(tmp_path / "foreign.npz", token=np.zeros(3))
    with pytest.raises(UsageError, match="is no file of an audit's tables"):
        Tables.load(tmp_path / "foreign.npz")
    with pytest.raises(UsageError, match="cannot be written"):
        Tables(SMALL).save(tmp_path / "no" / "tables.npz")


def test_tables_take_memory_where_something_was_counted(tmp_path):
    sizes = Sizes(50_000, 8, 2, 4, 32, 2, ("t5x",))
    routed = routed_by(np.random.default_rng(7), sizes, [4])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tables, other = filled(sizes, routed), filled(sizes, routed)
    tables.merge(other)
    tables.save(tmp_path / "tables.npz")
    assert Tables.load(tmp_path / "tables.npz").arrays["token"].sum() == 2 * 4 * 4 * 2
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert tables.arrays["token"].nbytes > 400e6
    assert grown < 200_000  # kibibytes


# ---- queues -------------------------------------------------------------------------------------


@st.composite
def queued(draw):
    """Choices of tokens in groups, padding among them, and gates of which many are equal."""
    groups, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    experts = draw(st.integers(1, 6))
    k = draw(st.integers(1, min(experts, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    expert = rng.random((groups, tokens, experts)).argsort(axis=-1)[..., :k]
    # Whatever floats there are: any order of them is the reference's.
    some = np.array([-1, -0.3, -0.0, 0, 2.0**-140, 0.3, np.nextafter(0.3, 1), 1], np.float32)
    gate = rng.choice(some, expert.shape)
    if draw(st.booleans()):
        expert[rng.random((groups, tokens)) < 0.3] = -1
    dtype = np.uint16 if expert.min() >= 0 and draw(st.booleans()) else np.int32
    return expert.astype(dtype), gate, experts


@given(queued(), st.sampled_from(audit_drops.PRIORITIES), st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_places_are_the_references(case, priority, whole_key):
    expert, gate, experts = case
    shown = gate if priority == "gates" else None
    with pytest.MonkeyPatch.context() as changed:
        if not whole_key:
            changed.setattr(queues, "_KEYS", experts + 1)  # a group at a time
        place = queues.positions(expert, experts, priority, shown)
    assert (place.dtype, place.shape) == (np.int32, expert.shape)
    np.testing.assert_array_equal(place == -1, expert.astype(np.int64) == -1)
    for capacity in range(1, expert.size + 1):
        dropped = audit_drops.replay(
            expert.astype(np.int32),
            num_experts=experts,
            capacity=capacity,
            priority=priority,
            gate=shown,
        )
        np.testing.assert_array_equal(place >= capacity, dropped)


@given(queued(), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_groups_are_what_loops_count(case, layers, capacity):
    expert, _, experts = case
    rng = np.random.default_rng(layers)
    expert = np.stack([rng.permutation(expert, axis=1) for _ in range(layers)])
    place = np.stack([queues.positions(one, experts, "choices") for one in expert])
    found = queues.groups_of(expert, place, capacity, experts)
    groups, tokens = expert.shape[1:3]
    load = np.zeros((groups, layers, experts), np.int32)
    first = np.full((groups, layers), 64, np.int32)
    for layer, group, token_, rank in np.ndindex(expert.shape):
        one = int(expert[layer, group, token_, rank])
        if one >= 0:
            load[group, layer, one] += 1
        if place[layer, group, token_, rank] >= capacity:
            first[group, layer] = min(first[group, layer], 64 * token_ // tokens)
    assert equal({"load": found.load, "first": found.first}, {"load": load, "first": first})
    assert found.capacity == capacity


def test_more_queues_than_are_sorted_at_once():
    rng = np.random.default_rng(8)
    for experts, dtype in ((300, np.uint16), (65_535, np.int32), (65_536, np.int32)):
        expert = rng.integers(0, experts, (5, 40, 2)).astype(dtype)
        expert[:, :, 0] = experts - 1
        expert[:, 3::4] = 0 if dtype == np.uint16 else -1
        place = queues.positions(expert, experts, "tokens")
        wanted = np.zeros_like(place)
        for group, queue in enumerate(expert.reshape(5, -1).tolist()):
            for at, one in enumerate(queue):
                wanted[group].flat[at] = -1 if one < 0 else queue[:at].count(one)
        np.testing.assert_array_equal(place, wanted)


def test_many_rules_are_replayed_at_once():
    rng = np.random.default_rng(9)
    layers, tokens, experts = 3, 24, 5
    expert = rng.random((layers, tokens, experts)).argsort(axis=-1)[..., :2].astype(np.uint16)
    gate = rng.random(expert.shape, np.float32)
    rules = [
        WhatIf(priority, size, 1.0, capacity)
        for capacity in (1, 3)
        for size in (8, 24)
        for priority in audit_drops.PRIORITIES
    ]
    found = dict(queues.replay(expert, experts, rules, gate))
    assert found.keys() == set(range(len(rules)))
    for number, rule in enumerate(rules):
        shape = (-1, rule.group_size, 2)
        wanted = audit_drops.replay(
            expert.astype(np.int32).reshape(shape),
            num_experts=experts,
            capacity=rule.capacity,
            priority=rule.priority,
            gate=gate.reshape(shape) if rule.priority == "gates" else None,
        )
        np.testing.assert_array_equal(found[number], wanted.reshape(expert.shape))


def test_queues_refuse_what_they_cannot_tell():
    expert, gate = np.zeros((1, 6, 2), np.int32), np.full((1, 6, 2), np.nan, np.float32)
    for words, call in {
        "group size 4: 6 tokens": lambda: list(
            queues.replay(expert, 3, [WhatIf("tokens", 4, 1, 1)])
        ),
        "priority 'best': must be one of choices, tokens, gates": lambda: queues.positions(
            expert, 3, "best"
        ),
        "priority 'gates': needs the gates": lambda: queues.positions(expert, 3, "gates"),
        "some are not known": lambda: queues.positions(expert, 3, "gates", gate),
        "are of experts -2 to 3; there are 3": lambda: queues.positions(
            expert + np.array([-2, 3], np.int32), 3, "tokens"
        ),
        "there are 0": lambda: queues.groups_of(expert[None], expert[None], 1, 0),
    }.items():
        with pytest.raises(UsageError, match=words):
            call()
