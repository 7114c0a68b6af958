"""SPEC.md, clauses.json and COVERAGE.md agree, and each way of disagreeing is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmoe_spec import clauses
from openmoe_tools import coverage, generate, prose

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SPEC.md").read_text(encoding="utf-8")
KNOWN = {clause.id for clause in clauses.parse(TEXT)}


def test_generated_files_are_up_to_date_and_nothing_is_uncovered(capsys):
    assert generate.main(["--check"]) == 0
    assert "all covered" in capsys.readouterr().out


def test_other_arguments_are_bad_usage():
    assert generate.main(["--chek"]) == 3


def test_the_prose_is_right():
    assert prose.complaints(TEXT, KNOWN) == []


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("(= 320)", "(= 321)", "is 320, not 321"),
        ("`capacity(36, 8, 1.0)`", "`capacity(36, 8)`", "cannot be computed"),
        ("(ROUTE-22)", "(ROUTE-88)", "cites ROUTE-88"),
        ("| mlp_dim | 2048 |", "| mlp_dim | 3072 |", "base.mlp_dim is 2048, not 3072"),
        ("| jitter_noise | 0.0 | 0.0 | 0.0 |\n", "", "has 23 fields"),
        ("| `softmax` | In which dtype", "| `softmax` | Where", "the row of point softmax"),
    ],
)
def test_a_wrong_number_or_citation_is_noticed(right, wrong, complaint):
    assert right in TEXT
    found = prose.complaints(TEXT.replace(right, wrong, 1), KNOWN)
    assert any(complaint in line for line in found), found


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "open('x')", "'a'", "x", "round.__class__", "[1][0]"]
)
def test_only_arithmetic_is_evaluated(expression):
    with pytest.raises((ValueError, SyntaxError)):
        prose.evaluate(expression)


def test_ranges_of_clauses_are_written_out():
    assert coverage.expand("ROUTE-04..ROUTE-06, MOE-01.") == [
        *("ROUTE-04", "ROUTE-05", "ROUTE-06", "MOE-01")
    ]


def test_a_clause_that_nothing_covers_is_noticed():
    ghost = clauses.Clause("ROUTE-77", "E", "Routing", "It MUST be.", "nowhere")
    _, complaints = coverage.collect(ROOT, [*clauses.parse(TEXT), ghost])
    assert complaints == [f"ROUTE-77 has no {kind}" for kind in coverage.KINDS]


def test_a_citation_of_an_unknown_clause_is_noticed():
    parsed = [clause for clause in clauses.parse(TEXT) if clause.id != "ROUTE-07"]
    _, complaints = coverage.collect(ROOT, parsed)
    kinds = {line.split()[0] for line in complaints if "cites ROUTE-07" in line}
    assert kinds == {"reference", "production", "check", "mutant", "vector"}
