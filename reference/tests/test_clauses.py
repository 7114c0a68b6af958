"""The parser of SPEC.md refuses every text out of form, and the committed clauses are the text's."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from openmoe_spec.clauses import CLASSES, Clause, SpecTextError, dump, load, parse

SPEC = Path(__file__).parents[2] / "SPEC.md"

GOOD = """# A specification

Words that are no clause, with a mention of AA-01 and of [AA-02].

## 1 First chapter

**[AA-01] (E)** Numbers MUST be
equal. — `module.py::function` · other.py@1234

**[AA-02] (I)** Words — with a dash. Reason: vocabulary.

| a | table |
|---|---|

## 2 Second chapter

### A section

**[BB-01] (T)** It MUST hold — within 1e-5 — always.
— `module.py::other`
"""


def test_a_good_text_gives_its_clauses_in_order():
    assert parse(GOOD) == [
        Clause(
            "AA-01",
            "E",
            "First chapter",
            "Numbers MUST be equal.",
            "`module.py::function` · other.py@1234",
        ),
        Clause("AA-02", "I", "First chapter", "Words — with a dash.", "vocabulary."),
        Clause(
            "BB-01",
            "T",
            "Second chapter",
            "It MUST hold — within 1e-5 — always.",
            "`module.py::other`",
        ),
    ]


def test_only_informative_clauses_are_not_normative():
    assert [clause.normative for clause in parse(GOOD)] == [True, False, True]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_of_conf_03_is_known(kind):
    end = "Reason: r" if kind == "I" else "— s"
    clauses = parse(f"**[AA-01] ({kind})** It MUST hold. {end}")
    assert [(clause.id, clause.kind) for clause in clauses] == [("AA-01", kind)]


def test_a_text_without_clauses_has_none():
    assert parse("# Title\n\nWords.\n") == []


LONG = "Words before the clause that make the paragraph longer than any excerpt of it would be. "

BAD = {
    "an id that stands twice": "**[AA-01] (E)** It MUST. — s\n\n**[AA-01] (E)** It MUST. — t",
    "an id that stands twice in two classes": (
        "**[AA-01] (E)** It MUST. — s\n\n**[AA-01] (I)** Is. Reason: r"
    ),
    "an unknown class": "**[AA-01] (X)** It MUST hold. — s",
    "a class in lower case": "**[AA-01] (e)** It MUST hold. — s",
    "no class": "**[AA-01]** It MUST hold. — s",
    "two letters for a class": "**[AA-01] (ET)** It MUST hold. — s",
    "a normative clause without MUST": "**[AA-01] (E)** It must hold. — s",
    "a MUST only in the source": "**[AA-01] (E)** It holds. — what it MUST",
    "a normative clause without a source": "**[AA-01] (E)** It MUST hold.",
    "an empty source": "**[AA-01] (E)** It MUST hold. —",
    "a reason in place of a source": "**[AA-01] (E)** It MUST hold. Reason: r",
    "an informative clause without a reason": "**[AA-01] (I)** It is so.",
    "an empty reason": "**[AA-01] (I)** It is so. Reason:",
    "a source in place of a reason": "**[AA-01] (I)** It is so. — s",
    "no text but a reason": "**[AA-01] (I)** Reason: r",
    "a clause after other words": "Words. **[AA-01] (E)** It MUST hold. — s",
    "a clause after many other words": f"{LONG}**[AA-01] (E)** It MUST hold. — s",
    "a clause on the second line of a paragraph": "Words.\n**[AA-01] (E)** It MUST hold. — s",
    "a clause in a list": "- **[AA-01] (E)** It MUST hold. — s",
    "a clause right under its heading": "## 1 One\n**[AA-01] (E)** It MUST hold. — s",
    "a clause right after another": (
        "**[BB-01] (E)** It MUST. — s\n**[AA-01] (E)** It MUST hold. — t"
    ),
    "an informative clause right after another": (
        "**[BB-01] (I)** Is. Reason: r\n**[AA-01] (I)** Is too. Reason: s"
    ),
    "no space after the head": "**[AA-01] (E)**It MUST hold. — s",
    "no space before the class": "**[AA-01](E)** It MUST hold. — s",
    "an id of one digit": "**[AA-1] (E)** It MUST hold. — s",
    "an id of three digits": "**[AA-001] (E)** It MUST hold. — s",
    "an id without a number": "**[AA] (E)** It MUST hold. — s",
}


@pytest.mark.parametrize("fault", BAD)
def test_a_text_out_of_form_is_refused_by_the_name_of_the_clause(fault):
    text = f"# Title\n\n## 1 Chapter\n\n{BAD[fault]}\n"
    wanted = re.search(r"\[(AA[-\d]*)\]", BAD[fault]).group(1)
    with pytest.raises(SpecTextError) as caught:
        parse(text)
    assert wanted in str(caught.value)


def test_a_spec_text_error_is_a_value_error():
    assert issubclass(SpecTextError, ValueError)


def test_the_committed_clauses_are_those_of_the_text():
    committed = resources.files("openmoe_spec").joinpath("clauses.json").read_text(encoding="utf-8")
    assert dump(parse(SPEC.read_text(encoding="utf-8"))) == committed


def test_loading_gives_the_clauses_of_the_text_by_id_and_in_order():
    clauses = parse(SPEC.read_text(encoding="utf-8"))
    assert list(load().items()) == [(clause.id, clause) for clause in clauses]


def test_every_bold_id_of_the_text_is_a_clause():
    text = SPEC.read_text(encoding="utf-8")
    assert re.findall(r"\*\*\[([^\]]+)\]", text) == list(load())
    assert len(load()) > 80


def test_the_dump_is_json_that_holds_every_field():
    clauses = parse(GOOD)
    text = dump(clauses)
    assert text.endswith("\n")
    assert "·" in text
    assert [Clause(**row) for row in json.loads(text)] == clauses
