"""From an audit's tables to its report: every figure against plain counting, and what is not there."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path

import drawn_audits as drawn_of
import numpy as np
import pytest
from rich.console import Console

from openmoe_conformance.outcome import UsageError
from openmoe_reference import audit_measures
from openmoe_tools.audit import measures, summary
from openmoe_tools.audit.counting.layout import WhatIf, forms
from openmoe_tools.audit.counting.routed import Groups, Routed
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.measures import pairs, report
from openmoe_tools.audit.measures.figures import number, numbers

SCHEMA = json.loads(Path(measures.__file__).parents[1].joinpath("report.schema.json").read_text())
WHAT_IF = tuple(
    WhatIf(priority, size, factor, int(factor * size / 4))
    for priority in ("choices", "tokens")
    for size in (16, 32)
    for factor in (1.0, 2.0)
)
HOSTILE = "</script><b>\u202e\x00"


def routed(drawn):
    """Return the drawn routing as a recorder gives it, with margins, gates and entropies that were drawn too."""
    rng = np.random.default_rng(5)
    document, position = np.nonzero(drawn.counted)
    n, sizes = len(document), drawn.sizes
    gate = np.sort(rng.random((n, sizes.layers, sizes.choices)), axis=-1)[..., ::-1] / sizes.choices
    return Routed(
        row=document,
        position=position.astype(np.int32),
        token=drawn.token[document, position].astype(np.int32),
        slice=drawn.slices[document].astype(np.int16),
        document=document.astype(np.int32),
        expert=drawn.expert[document, position].astype(np.uint16),
        documents=drawn.names,
        dropped=drawn.dropped[:, document, position],
        place=rng.integers(64, size=(len(sizes.rules), n)).astype(np.int32),
        margin=audit_measures.margin_codes(
            rng.lognormal(0, 3, (2, n, sizes.layers)).astype(np.float32)
        ),
        gate=np.ascontiguousarray(gate).astype(np.float32),
        entropy=rng.integers(65, size=(n, sizes.layers)).astype(np.uint8),
    )


def tables_of(drawn):
    """Return tables as a run makes them."""
    rng, sizes = np.random.default_rng(6), drawn.sizes
    found = routed(drawn)
    made = Tables(sizes)
    load = rng.integers(20, size=(5, sizes.layers, sizes.experts)).astype(np.int32)
    first = rng.integers(65, size=(5, sizes.layers)).astype(np.int32)
    made.add(found, [[Groups(load, first, 8)] for _ in sizes.rules])
    made.count_documents(drawn.names, drawn.slices)
    for index in range(len(sizes.what_if)):
        made.add_what_if(index, found.dropped[0], found.position)
    probability = rng.dirichlet(np.ones(sizes.experts), (len(found.row), sizes.layers)).sum(axis=0)
    logs = np.full((sizes.layers, 2), len(found.row), np.int64)
    logs[:, 1] <<= 11  # squares of 2 on the mean
    made.add_probabilities((probability * 2**30).astype(np.int64), logs)
    return made, found


@pytest.fixture(scope="module")
def made():
    """An audit with everything, its drawn routing, and its report."""
    drawn = drawn_of.draw(
        11, "token id", documents=80, layers=3, whole_rows=False, late=0.2, strength=0.8
    )
    drawn = drawn_of.sized(drawn, what_if=WHAT_IF)
    tables, found = tables_of(drawn)
    sample = [
        {
            "slice": "slice 0",
            "document": HOSTILE,
            "token": found.token[:5].tolist(),
            "expert": found.expert[:5].swapaxes(0, 1).tolist(),
            "gate": found.gate[:5].swapaxes(0, 1).tolist(),
            "dropped": {"t5x": np.ones((3, 5, 2), bool).tolist()},
        }
    ]
    pieces = [f"\u2581piece{one}" for one in range(39)] + [HOSTILE]
    audit = drawn_of.audit(drawn, tables=tables.arrays, pieces=pieces, sample=sample)
    swapped = drawn.expert.copy()
    swapped[drawn.expert == 0], swapped[drawn.expert == 3] = 3, 0
    series = [
        ("step 10", "step", 10, drawn_of.mixed(drawn, 0.2)),
        ("step 200", "step", 200, drawn_of.mixed(drawn, 0.9)),
        ("swapped", "other", None, swapped),
    ]
    audit = drawn_of.with_pairs(audit, drawn, series)
    return audit, drawn, report.make(audit)


def figure(made, name):
    found = [one for part in made["sections"] for one in part["figures"] if one["id"] == name]
    assert len(found) == 1, name
    return found[0]


def data(made, name, **keys):
    found = [one["data"] for one in figure(made, name)["panels"] if one["keys"] == keys]
    assert len(found) == 1, (name, keys)
    return found[0]


def choices(drawn, layer=2):
    """Return of all counted tokens: id, position, slice, document, experts in a layer."""
    document, position = np.nonzero(drawn.counted)
    return (
        drawn.token[document, position],
        position,
        drawn.slices[document],
        document,
        drawn.expert[document, position, layer],
    )


def shares(experts, size=8):
    return np.bincount(experts.reshape(-1), minlength=size) / experts.size


# ---- the form ----------------------------------------------------------------------------------


def test_a_report_is_json_and_obeys_its_schema(made, valid):
    found = json.loads(json.dumps(made[2], allow_nan=False))
    assert valid(found, SCHEMA)
    names = [one["id"] for part in found["sections"] for one in part["figures"]]
    assert len(set(names)) == len(names)
    for part in found["sections"]:
        for one in part["figures"]:
            kind = SCHEMA["$defs"][one["kind"]] | {"$defs": SCHEMA["$defs"]}
            assert one["panels"], one["id"]
            assert len({tuple(panel["keys"]) for panel in one["panels"]}) == 1
            combinations = [tuple(panel["keys"].values()) for panel in one["panels"]]
            assert len(set(combinations)) == len(combinations)
            axes = [dict.fromkeys(axis) for axis in zip(*combinations, strict=True)]
            assert set(combinations) == set(itertools.product(*axes)), one["id"]
            for panel in one["panels"]:
                assert valid(panel["data"], kind), (one["id"], panel)


def test_sections_come_in_order_with_formulas_clauses_and_queries(made):
    assert [one["id"] for one in made[2]["sections"]] == [
        *("slices", "tokens", "positions", "drops", "checkpoints", "load", "neighbours"),
        *("margins", "predictors", "experts", "sample", "methods"),
    ]
    for part in made[2]["sections"][:-1]:
        assert part["text"]
        for one in part["figures"]:
            assert one["formula"], one["id"]
            assert one["clauses"], one["id"]
            assert all(1 <= int(clause.removeprefix("AUDIT-")) <= 28 for clause in one["clauses"])
    told = (
        *("slice_shares", "token_spread", "position_spread", "drop_by_position", "load"),
        *("coactivation", "top_tokens", "repetition", "margins"),
    )
    for name in told:
        assert "layer = 2" in figure(made[2], name)["query"], name
    assert figure(made[2], "gates")["query"] is None


def test_every_shape_of_tables_has_a_report(valid):
    for sizes in (
        {"experts": 4, "choices": 1},
        {"experts": 2, "choices": 2},
        {"experts": 8, "choices": 3, "layers": 2},
        {"slices": 1, "rules": ()},
        {"length": 3, "documents": 20},
        {"length": 50, "documents": 3},
    ):
        drawn = drawn_of.draw(3, "token id", **sizes)
        found = report.make(drawn_of.audit(drawn, tables=tables_of(drawn)[0].arrays))
        assert valid(json.loads(json.dumps(found, allow_nan=False)), SCHEMA), sizes


def test_tables_that_counted_nothing_are_refused():
    drawn = drawn_of.draw(3, layers=2)
    empty = {name: np.zeros(form.shape, form.dtype) for name, form in forms(drawn.sizes).items()}
    with pytest.raises(UsageError, match="drawn: no token was counted"):
        report.make(drawn_of.audit(drawn, tables=empty))


def test_what_a_source_does_not_tell_is_said_and_not_shown():
    drawn = drawn_of.draw(3, "token id")
    found = report.make(drawn_of.audit(drawn, recorded=("tokens",)))
    shown = {one["id"]: [f["id"] for f in one["figures"]] for one in found["sections"]}
    assert shown["positions"] == shown["drops"] == shown["margins"] == []
    assert shown["neighbours"] == ["coactivation"]
    assert "checkpoints" not in shown
    assert "sample" not in shown
    for part in found["sections"]:
        if part["id"] in {"positions", "drops", "margins"}:
            assert "not recorded" in part["text"]
    answers = {one["id"]: one["answer"] for one in found["verdict"]["lines"]}
    for name in ("token_id", "position", "slice", "early_learning", "drop_towards_the_end"):
        assert answers[name] == "not recorded", name
    assert "Not recorded: documents, positions, drops, margins, gates." in found["verdict"]["notes"]


# ---- against plain counting --------------------------------------------------------------------


def test_slices(made):
    token, _, of, _, expert = choices(made[1])
    panel = data(made[2], "slice_shares", layer="5")
    expected = np.array([shares(expert[of == one]) for one in range(4)])
    np.testing.assert_allclose(panel["values"], expected, rtol=1e-5)
    assert panel["row_tokens"] == np.bincount(of).tolist()
    assert panel["centre"] == 1 / 8
    assert data(made[2], "slice_radar", layer="5")["series"][1]["values"] == panel["values"][1]
    bars = data(made[2], "slice_distance", layer="5")
    distance = np.abs(expected - shares(expert)).sum(axis=1) / 2
    np.testing.assert_allclose(bars["values"], distance, rtol=1e-4)
    assert all(
        low < one < high
        for low, one, high in zip(*map(bars.get, ("low", "values", "high")), strict=True)
    )
    by_id = np.array([shares(expert[token == one]) for one in token[of == 2]])
    left = np.abs(expected[2] - by_id.mean(axis=0)).sum() / 2
    found = data(made[2], "slice_unexplained", layer="5")["values"][2]
    assert found == pytest.approx(left / distance[2], rel=1e-4)


def test_token_ids(made):
    token, _, _, _, expert = choices(made[1])
    kept = [one for one in range(40) if (token == one).sum() > 128]
    assert 1 < len(kept) < 20
    panel = data(made[2], "token_spread", layer="5")
    ids = [row[0] for row in panel["rows"]]
    assert sorted(ids) == kept
    assert panel["x"] == sorted(panel["x"], reverse=True)
    spreads = [math.sqrt(((shares(expert[token == one]) - 1 / 8) ** 2).mean()) for one in ids]
    np.testing.assert_allclose(panel["y"], spreads, rtol=1e-5)
    assert panel["labels"] == [f"\u2581piece{one}" for one in ids]
    curves = {one["name"]: one for one in panel["curves"]}
    assert curves["mean"]["y"][0] == pytest.approx(np.mean(spreads), rel=1e-5)
    assert curves["mean of debiased"]["y"][0] < curves["mean"]["y"][0]
    floor = curves["floor: chance alone"]
    assert floor["x"][0] == min(panel["x"])
    assert floor["y"][0] == pytest.approx(math.sqrt(0.25 * 0.75 / floor["x"][0]) / 2, rel=1e-5)
    assert curves["largest possible"]["y"] == [number(math.sqrt(1 / 16 - 1 / 64))] * 2
    assert curves["uniform (the paper's line)"]["y"] == [0, 0]


def test_no_id_over_the_filter_is_said():
    drawn = drawn_of.draw(3, documents=16, length=8)
    found = figure(report.make(drawn_of.audit(drawn)), "token_spread")
    assert found["panels"] == []
    assert "No id has more than 128 tokens" in found["caption"]


def test_positions(made):
    _, position, _, _, expert = choices(made[1])
    panel = data(made[2], "position_spread", layer="5")
    spread, floor = panel["series"][:2]
    expected = [
        math.sqrt(((shares(expert[position == one]) - 1 / 8) ** 2).mean()) for one in range(32)
    ]
    np.testing.assert_allclose(spread["y"], expected, rtol=1e-5)
    tokens = np.bincount(position)
    assert panel["tokens"] == tokens.tolist()
    np.testing.assert_allclose(floor["y"], np.sqrt(0.25 * 0.75 / tokens) / 2, rtol=1e-5)
    assert panel["series"][2]["y"] == [None] * 32  # no position has more than 128 tokens
    debiased = data(made[2], "position_debiased", layer="5")["series"][0]["y"]
    assert all(found < one for found, one in zip(debiased, expected, strict=True))


def test_drops(made):
    drawn = made[1]
    _, position, of, document, _ = choices(drawn)
    lost = drawn.dropped[1, document, position, 2]
    for name, chosen in (("all", slice(None)), ("slice 3", of == 3)):
        panel = data(made[2], "drop_by_position", rule="torch_port", layer="5", slice=name)
        found = {one["name"]: one for one in panel["series"]}
        for at in (0, 9, 31):
            here = lost[chosen][position[chosen] == at]
            assert panel["tokens"][at] == len(here)
            if len(here):
                assert found["first choice"]["y"][at] == number(here[:, 0].mean())
                assert found["second choice"]["y"][at] == number(here[:, 1].mean())
                assert found["any choice"]["y"][at] == number(here.any(axis=1).mean())
                assert found["every choice"]["y"][at] == number(here.all(axis=1).mean())
    band = found["any choice"]
    assert any(one is not None for one in band["low"])
    assert all(one is None or 0 <= one <= 1 for one in [*band["low"], *band["high"]])
    rows = {row[0]: row for row in data(made[2], "drop_statistics", rule="torch_port")["rows"]}
    early, late = (lost[part].any(axis=1).mean() for part in (position < 8, position >= 24))
    assert rows["5"][6:9] == numbers([early, late, late - early])
    assert rows["5"][9] < rows["5"][8] < rows["5"][10]


def test_replays_and_their_limit(made):
    panel = data(made[2], "what_if", layer="5")
    assert panel["x"] == [1.0, 2.0]
    assert len(panel["series"]) == 4
    drawn = made[1]
    document, position = np.nonzero(drawn.counted)
    lost = drawn.dropped[0, document, position, 2].any(axis=1)
    assert panel["series"][0]["y"] == [number(lost.mean())] * 2
    assert "deeper layer would see other inputs" in figure(made[2], "what_if")["caption"]


def test_lost_gate_mass(made):
    found, drawn = routed(made[1]), made[1]
    document, position = np.nonzero(drawn.counted)
    lost, of = drawn.dropped[0, document, position], drawn.slices[document]
    bars = data(made[2], "lost_gate", rule="t5x", layer="3")
    for name, here in (("all", slice(None)), ("slice 1", of == 1)):
        gate = found.gate[here, 1].astype(np.float64)
        expected = gate[lost[here, 1]].sum() / gate.sum()
        assert bars["values"][bars["labels"].index(name)] == pytest.approx(expected, rel=1e-5)


def test_load_and_neighbours(made):
    _, _, _, document, expert = choices(made[1])
    np.testing.assert_allclose(
        data(made[2], "load", layer="5")["values"], shares(expert), rtol=1e-5
    )
    row = data(made[2], "load_statistics", layer="5")["rows"][0]
    loads = shares(expert)
    assert row[0] == "all"
    assert row[2:4] == numbers([loads.std() / loads.mean(), loads.max() * 8])
    together = np.zeros((8, 8))
    for one, other in expert:
        together[one, other] += 1
        together[other, one] += 1
    expected = together / np.bincount(expert.reshape(-1))[:, None]
    np.testing.assert_allclose(
        data(made[2], "coactivation", layer="5")["values"], expected, rtol=1e-5
    )
    same = document[1:] == document[:-1]
    repeated = (expert[1:, 0] == expert[:-1, 0])[same].mean()
    bars = data(made[2], "repetition", layer="5", measure="same first choice")
    assert bars["values"][0] == number(repeated)
    assert bars["low"][0] < bars["values"][0] < bars["high"][0]
    assert bars["low"][1:] == [None] * 4
    assert bars["reference"]["value"] == 1 / 8
    above = choices(made[1], 0)[4]
    crossed = np.zeros((8, 8))
    for one, other in itertools.product(range(2), repeat=2):
        np.add.at(crossed, (above[:, one], expert[:, other]), 1)
    panel = data(made[2], "cross_layer", layers="1 and 5")
    np.testing.assert_allclose(
        panel["values"], crossed / crossed.sum(axis=1, keepdims=True), rtol=1e-5
    )


def test_groups_in_the_report(made):
    table = made[0].tables.arrays["group_use"][0, 2]
    rows = data(made[2], "capacity_use", rule="t5x", layer="5")["rows"]
    assert rows[3][:4] == ["3", 5, int(table[3, 1]), number(table[3, 1] / (5 * 4))]
    bars = data(made[2], "group_load", rule="t5x", layer="5")
    assert sum(bars["values"]) == 5
    assert bars["values"][-1] > 0
    assert bars["labels"][:2] == ["1.00", "1.09"]
    assert sum(data(made[2], "first_drop", rule="t5x", layer="5")["values"]) == 5


def test_margins_and_losses(made):
    found = routed(made[1])
    panel = data(made[2], "margins", layer="5", margin="choice 2 and the next")
    codes = found.margin[0, :, 2]
    assert sum(panel["y"]) == pytest.approx(1, rel=1e-4)
    assert len(panel["x"]) == codes.max() - codes.min() + 1
    most = int(np.bincount(codes).argmax())
    assert panel["x"][int(np.argmax(panel["y"]))] == number(
        audit_measures.MARGIN_THRESHOLDS[most - 1]
    )
    assert panel["curves"][1]["x"] == [2**-7, 2**-7]
    ties = data(made[2], "near_ties", layer="5")["rows"][0]
    step = np.flatnonzero(np.float32(2**-7) == audit_measures.MARGIN_THRESHOLDS)[0] + 1
    assert ties[2] == number((codes < step).mean())
    ((_, first, every, over_k, z),) = data(made[2], "router_losses")["rows"][2:]
    tokens, arrays = len(codes), made[0].tables.arrays
    mean = arrays["probability"][2] / 2**30 / tokens
    expert = choices(made[1])[4]
    assert first == number(8 * (np.bincount(expert[:, 0], minlength=8) / tokens * mean).sum())
    assert every == number(8 * (shares(expert) * 2 * mean).sum())
    assert over_k == pytest.approx(every / 2, rel=1e-5)
    assert z == 2.0


def test_cards(made):
    token, _, _, _, expert = choices(made[1])
    card = data(made[2], "top_tokens", layer="5")["cards"][3]
    assert card["title"] == "Expert 3"
    by_count = card["tables"][0]["rows"]
    chosen = np.bincount(token[(expert == 3).any(axis=1)], minlength=40)
    order = sorted(range(40), key=lambda one: (-chosen[one], one))[:10]
    assert [row[0] for row in by_count] == order
    assert [row[2] for row in by_count] == chosen[order].tolist()
    n = np.bincount(token, minlength=40)
    assert by_count[0][3:] == numbers(
        [
            chosen[order[0]] / (2 * n[order[0]]),
            chosen[order[0]] / (2 * n[order[0]]) / shares(expert)[3],
        ]
    )
    assert [one["title"] for one in card["tables"]][3:] == ["slices", "taken together with"]
    assert dict(card["facts"])["share of all choices"] == f"{100 * shares(expert)[3]:.2f} %"


def test_the_sample_has_every_choice(made):
    panel = data(made[2], "sample_text", layer="5", text=f"slice 0: {HOSTILE}")
    found = routed(made[1])
    first = panel["pieces"][1]
    identifier, experts = int(found.token[1]), found.expert[1, 2].tolist()
    assert first["text"] == f" piece{identifier}"
    assert first["group"] == experts[0]
    assert f"experts {experts[0]}, {experts[1]}" in first["note"]
    assert f"no slot under t5x: {experts[0]}, {experts[1]}" in first["note"]
    assert panel["groups"][2] == "expert 2"


# ---- checkpoints -------------------------------------------------------------------------------


def test_checkpoints(made):
    drawn = made[1]
    heat = data(made[2], "saturation", agreement="choices")
    assert heat["rows"] == ["step 10", "step 200", "swapped", "audited"]
    assert heat["values"][3] == [1.0, 1.0, 1.0]
    assert heat["centre"] == 1 / 4
    other = drawn_of.mixed(drawn, 0.2)[:, :, 2]
    shared = (drawn.expert[:, :, 2, :, None] == other[..., None, :]).sum(axis=(-1, -2)) / 2
    assert heat["values"][0][2] == number(shared[drawn.counted].mean())
    first = data(made[2], "saturation", agreement="first choice")
    assert first["values"][0][2] == number(
        (drawn.expert[:, :, 2, 0] == other[..., 0])[drawn.counted].mean()
    )
    rows = {(row[0], row[1]): row[2:4] for row in data(made[2], "relabelling")["rows"]}
    assert rows["swapped", "5"] == ["no", 2]
    assert rows["audited", "5"] == rows["step 200", "5"] == ["yes", 0]
    odd = next(one for one in made[2]["verdict"]["lines"] if one["id"] == "nothing_odd")
    assert (
        "experts of swapped match better under other numbers (layers 1, 3, 5)" in odd["statement"]
    )
    apart = data(made[2], "token_divergence")["values"]
    assert apart[3] == [0, 0, 0]
    assert apart[0][2] > apart[1][2] > 0
    early = data(made[2], "early_learning", layer="5")
    assert early["x"] == [10, 200, 1000]
    lines = {one["name"]: one["y"] for one in early["series"]}
    assert lines["shared choices"] == [heat["values"][0][2], heat["values"][1][2], 1.0]
    told, plain = lines["first choices told by the table of ids"], lines["told without ids"]
    assert told[2] > 0.75 > plain[2]
    drift = data(made[2], "drift", layer="5")["rows"]
    assert [row[0] for row in drift] == ["swapped"]
    assert drift[0][2] <= drift[0][1] <= drift[0][3]
    assert any(
        one["keys"] == {"layer": "5", "token": "1: \u2581piece1"}
        for one in figure(made[2], "token_over_checkpoints")["panels"]
    )


def test_the_best_numbers_are_found_for_any_number_of_experts():
    rng = np.random.default_rng(2)
    for size in range(1, 8):
        for most in (2, 1000):
            shared = rng.integers(most, size=(size, size))
            found = pairs.assigned(shared)
            assert sorted(found) == list(range(size))
            best = max(
                sum(shared[i, j] for i, j in enumerate(order))
                for order in itertools.permutations(range(size))
            )
            assert shared[np.arange(size), found].sum() == best
            if np.trace(shared) == best:
                assert found.tolist() == list(range(size))
    first = rng.integers(50, size=(30, 12))
    order = rng.permutation(12)
    second = first[:, order] + rng.integers(5, size=(30, 12))
    ours = pairs.assigned(audit_measures.overlap(first, second))
    assert ours.tolist() == audit_measures.relabelling(first, second).tolist()
    large = (
        rng.integers(1000, size=(64, 64)) + 10_000 * np.eye(64, dtype=np.int64)[rng.permutation(64)]
    )
    assert (large[np.arange(64), pairs.assigned(large)] >= 10_000).all()


# ---- the terminal ------------------------------------------------------------------------------


def test_the_summary_is_one_screen(made):
    console = Console(width=100, record=True, file=io.StringIO())
    summary.show(made[2], console)
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "driver of the routing: token id" in text
    assert "holds          The token id decides the expert" in text
    assert "gain 0.7" in text
