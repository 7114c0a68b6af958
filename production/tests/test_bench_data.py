"""The benchmark of the data side runs and writes its section; no rate is judged here."""

from __future__ import annotations

import numpy as np
import pytest

import openmoe_reference.batching
import openmoe_reference.objectives
from openmoe_production import bench_data

WHAT = [f"examples of objective {i}" for i in range(6)]
WHAT += ["examples of the mixture", "examples of the mixture, draws too"]
WHAT += ["packed rows", "packed rows of a stream"]


@pytest.fixture
def calls(monkeypatch):
    """Record what the other implementation answers."""
    answers = {"ul2_example": [], "decoder_features": []}

    def recorded(module, name):
        function = getattr(module, name)

        def record(*arguments, **options):
            answers[name].append((arguments, options, function(*arguments, **options)))
            return answers[name][-1][-1]

        monkeypatch.setattr(module, name, record)

    recorded(openmoe_reference.objectives, "ul2_example")
    recorded(openmoe_reference.batching, "decoder_features")
    return answers


def test_the_section_compares_with_another_implementation(capsys, tables, calls):
    options = ["--against", "openmoe_reference", "--examples", "2", "--rounds", "1"]
    bench_data.main(options)
    (rows,) = tables(capsys.readouterr().out)
    assert [row["what"] for row in rows] == WHAT
    for row in rows:
        assert float(row["here"]) > 0
        assert bool(row["there"]) == bool(row["ratio"]) == ("draws" not in row["what"])
        assert bool(row["target"]) == (row["what"] == bench_data.MIXTURE)
    # A warm-up and a round: 2 examples of each objective, 20 of the mixture; both kinds of packing.
    assert len(calls["ul2_example"]) == 2 * (6 * 2 + 20)
    assert len(calls["decoder_features"]) == 2 * 2


def test_both_implementations_make_the_same_of_the_same(calls):
    for case in bench_data._cases("openmoe_reference", 2):
        if case.other is None:
            continue
        ours, theirs = case.program(), case.other()
        if isinstance(theirs, list):
            assert len(ours) == len(theirs) == case.number
        else:
            assert all(len(one) == case.number for one in theirs.values())
        if isinstance(ours, list) and not isinstance(theirs, list):
            ours = {name: np.concatenate([one[name] for one in ours]) for name in theirs}
        pairs = [(ours, theirs)] if isinstance(theirs, dict) else zip(ours, theirs, strict=True)
        for one, other in pairs:
            assert all(np.array_equal(one[name], other[name]) for name in other)
    # Whole segments, in the shares of the mixture.
    made = [options for _, options, _ in calls["ul2_example"]][-20:]
    assert sum("split" in one for one in made) == 10


def test_alone_it_counts_without_comparing(tables):
    rows = bench_data.report(examples=1, rounds=1)
    assert [row.what for row in rows] == WHAT
    assert all(row.rate > 0 and row.other is None for row in rows)
    assert not any(row["ratio"] + row["target"] for row in tables(bench_data.page(rows))[0])


def test_a_target_is_met_or_missed(tables):
    for other, verdict in ((10.0, "met"), (10.1, "missed")):
        ((row,),) = tables(bench_data.page([bench_data.Row(bench_data.MIXTURE, 30.0, other)]))
        assert row["target"] == f">= 3.00: {verdict}"


@pytest.mark.parametrize("wrong", [["--examples", "0"], ["--rounds", "-1"]])
def test_wrong_numbers_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        bench_data.main(wrong)
    assert wrong[0] in capsys.readouterr().err
