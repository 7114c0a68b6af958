"""The renderings of a report: nothing is lost, nothing is unescaped, nothing reads greener."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from openmoe_conformance import real_input, report, report_html, report_junit
from openmoe_conformance.outcome import LARGEST_ERROR, Outcome, Result, Source
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.protocol import FUNCTIONS
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject
from openmoe_spec import clauses

SCHEMA = json.loads(
    Path(report.__file__).with_name("report.schema.json").read_text(encoding="utf-8")
)
HOSTILE = (
    "<script>alert(1)</script> & \"double\" 'single' \x00\x1b[31m \ud800 \ufffe </failure> ]]>"
)
SHOWN = (
    r"""<script>alert(1)</script> & "double" 'single' \x00\x1b[31m \ud800 \ufffe </failure> ]]>"""
)
QUIET = ("pass", "skipped")
LADDER = {"exact tie": 0.999, "2^-4": 1.0, "2^-20": 0.001, "2^-22": 0.5}


class Hostile(ReferenceAdapter):
    """An adapter whose words are as bad as its numbers are good."""

    name = f"hostile {HOSTILE}"
    version = "<i>1</i>"
    url = "javascript:alert('url')"
    moe_gradients = None


RESULTS = [
    Result("check:a.pass", "ROUTE-06", Outcome.PASS, Source.CHECK, examples=25, seconds=0.25),
    Result(
        "check:a.ladder",
        "ROUTE-18",
        Outcome.FAIL,
        Source.CHECK,
        message="some rungs are wrong",
        details={"ladder": LADDER, "resolution": "2^-4 in logits, 0.1% of exact ties wrong"},
    ),
    Result(
        "check:a.fail",
        "MOE-07",
        Outcome.FAIL,
        Source.CHECK,
        error=LARGEST_ERROR,
        seconds=1.5,
        message=HOSTILE,
        replay="failures/a <b> file.npz",
    ),
    Result(f"vector:{HOSTILE}/error", "MOE-08", Outcome.ERROR, Source.VECTOR, message=HOSTILE),
    Result("vector:kit", "", Outcome.ERROR, Source.VECTOR, message="hash differs", fault="kit"),
    Result(
        "real input:eval/choices",
        "ROUTE-19",
        Outcome.INCONCLUSIVE,
        Source.REAL_INPUT,
        tokens=100,
        undecided=7,
        message="7.00% of 100 tokens undecided, budget 1 %",
    ),
    Result(
        "check:a.xfail",
        "LOSS-07",
        Outcome.XFAIL,
        Source.CHECK,
        error=3.25,
        message="got 1, expected 2",
        url='https://tracker.example/12?a="b"&c',
    ),
    Result(
        "check:a.xpass",
        "LOSS-08",
        Outcome.XPASS,
        Source.CHECK,
        message=f"passed {HOSTILE}",
        url="javascript:alert('issue')",
    ),
    Result("check:a.skip", "LOSS-12", Outcome.SKIPPED, Source.CHECK, message=f"lacks {HOSTILE}"),
    Result("check:b.skip", "LOSS-12", Outcome.SKIPPED, Source.CHECK, message=f"lacks {HOSTILE}"),
]


def build(results=RESULTS, planned=None, adapter=Hostile, **options):
    """Return a report of hand-made results."""
    planned = len(results) if planned is None else planned
    options = {
        "implementation": "port:Adapter",
        "profile": "quick",
        "seed": 1,
        "seconds": 2.5,
        **options,
    }
    return report.build(Subject(adapter()), results, planned, **options)


def figures():
    """Return what `openmoe conform` reports of real text, one pass judged and one not."""
    judged = real_input._Pass("eval, factor 2.0", 2.0, 512)
    kept = np.ones((real_input.GROUP_SIZE, 2), bool)
    kept[:410] = False  # the first of ten parts of 4096
    kept[-409:, 1] = False
    judged.kept, judged.undecided_tokens = [kept], list(range(100, 1300))
    unjudged = real_input._Pass("train <1.25>", 1.25, 320)
    return {
        "tokens": 4096,
        "documents": 3,
        "vocabulary_size": 8000,
        "text_sha256": "ab" * 32,
        "model_sha256": "cd" * 32,
        "passes": [real_input._figures(state, 1) for state in (judged, unjudged)],
    }


# ---- JUnit -------------------------------------------------------------------------------------


def junit(made):
    """Return the parsed rendering."""
    return ET.fromstring(report_junit.render(made))  # noqa: S314 - our own text


def test_junit_counts_equal_the_ledger():
    made = build()
    root, ledger = junit(made), made["ledger"]
    wanted = {
        "tests": ledger["planned"],
        "failures": ledger["fail"] + ledger["unexpected pass"],
        "errors": ledger["error"] + ledger["inconclusive"],
        "skipped": ledger["skipped"] + ledger["expected failure"],
    }
    assert {name: int(root.get(name)) for name in wanted} == wanted
    assert float(root.get("time")) == 1.75
    for name, count in wanted.items():
        assert sum(int(suite.get(name)) for suite in root) == count


def test_junit_has_a_suite_for_each_chapter_and_its_attributes_count_its_cases():
    made = build()
    chapters = {row["id"]: row["chapter"] for row in made["clauses"]}
    wanted = Counter(chapters.get(result.clause) for result in RESULTS)
    suites = {suite.get("name"): suite for suite in junit(made)}
    assert len(suites) == len(wanted)
    for chapter, count in wanted.items():
        suite = suites[chapter or "No clause of this version"]
        cases = suite.findall("testcase")
        assert len(cases) == int(suite.get("tests")) == count
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped",) * 2):
            assert int(suite.get(attribute)) == len(suite.findall(f"testcase/{tag}"))
        seconds = sum(float(case.get("time")) for case in cases)
        assert float(suite.get("time")) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("item", "tag", "said"),
    [
        ("check:a.pass", None, ""),
        ("check:a.fail", "failure", SHOWN),
        (f"vector:{SHOWN}/error", "error", SHOWN),
        ("vector:kit", "error", "fault of the kit"),
        ("real input:eval/choices", "error", "inconclusive, which is not a pass: 7.00%"),
        ("check:a.xfail", "skipped", 'https://tracker.example/12?a="b"&c'),
        ("check:a.xpass", "failure", "unexpected pass"),
        ("check:a.skip", "skipped", f"lacks {SHOWN}"),
    ],
    ids=("pass", "fail", "error", "kit", "inconclusive", "xfail", "xpass", "skipped"),
)
def test_junit_says_what_became_of_an_item(item, tag, said):
    (case,) = [case for case in junit(build()).iter("testcase") if case.get("name") == item]
    (result,) = [r for r in RESULTS if report_junit.printable(r.item) == item]
    assert case.get("classname") == result.clause
    assert [child.tag for child in case] == ([] if tag is None else [tag])
    for child in case:
        assert said in child.get("message")
        if result.replay:
            assert child.text.endswith(
                "\nopenmoe replay 'failures/a <b> file.npz' --implementation port:Adapter"
            )


@pytest.mark.parametrize(
    ("results", "planned"),
    [(RESULTS[:1], 2), ([], 0), (RESULTS[-2:], 2)],
    ids=("a result is missing", "nothing planned", "all skipped"),
)
def test_junit_of_an_incomplete_run_is_not_green(results, planned):
    made = build(results, planned)
    assert made["verdict"]["exit_code"] == 2
    root = junit(made)
    (error,) = root.iter("error")
    assert error.get("message") == report_junit.printable(made["verdict"]["line"])
    assert int(root.get("errors")) == 1
    assert int(root.get("tests")) == len(results) + 1


def test_junit_of_a_run_that_holds_is_green():
    root = junit(build(RESULTS[:1]))
    assert [root.get(n) for n in ("tests", "failures", "errors", "skipped")] == ["1", "0", "0", "0"]


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF, 0x10FFFF])
def test_junit_takes_every_character(code):
    bad = Result("check:a", "ROUTE-06", Outcome.FAIL, Source.CHECK, message=f"<{chr(code)}>")
    text = report_junit.render(build([bad]))
    parsed = ET.fromstring(text.encode("utf-8"))  # noqa: S314 - our own text
    (failure,) = parsed.iter("failure")
    message = failure.get("message")
    assert message == f"<{chr(code)}>" or re.fullmatch(r"<\\[xu][0-9a-f]+>", message)


# ---- HTML --------------------------------------------------------------------------------------

VOID = {"meta", "link", "br", "hr", "img", "input", "base", "source", "col"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; it complains of tags that do not balance."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], Counter(), [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def values(self, name):
        """Return the values of an attribute."""
        return [value for _, found, value in self.attributes if found == name]


def page(made):
    """Return the parsed rendering."""
    return Page(report_html.render(made))


MADE = build(real_input=figures())


def test_html_holds_every_item_that_is_not_a_pass_and_every_message():
    text = page(MADE).text
    for result in RESULTS[1:]:
        assert report_junit.printable(result.item) in text
        assert report_junit.printable(result.message) in text
        assert report_junit.printable(result.url) in text
    assert "openmoe replay 'failures/a <b> file.npz'" in text
    assert "fault of the kit" in text
    assert "7 of 100 tokens undecided" in text
    assert "2 \N{MULTIPLICATION SIGN} lacks" in text
    assert "worst error ∞ \N{MULTIPLICATION SIGN} the limit" in text
    assert "worst error 3.2 \N{MULTIPLICATION SIGN} the limit" in text


def test_html_escapes_what_strangers_wrote_and_links_no_script():
    raw = report_html.render(MADE)
    found = page(MADE)
    raw.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\ufffe\ud800-\udfff]", raw)
    assert "script" not in found.tags
    assert "<i>1" not in raw
    links = found.values("href")
    assert 'https://tracker.example/12?a="b"&c' in links
    assert all(link.startswith(("#", "https://tracker.example/")) for link in links)
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]


def test_html_loads_nothing():
    found = page(MADE)
    assert not set(found.tags) & {"link", "script", "img", "iframe", "object", "base", "form"}
    assert not set(found.values("src") + found.values("srcset"))
    assert not re.search(r"@import|url\(|src\s*=", report_html.render(MADE))


def test_html_anchors_are_unique_and_every_inner_link_leads_somewhere():
    found = page(MADE)
    anchors = found.values("id")
    assert len(set(anchors)) == len(anchors)
    assert set(clauses.load()) <= set(anchors)
    inner = {link[1:] for link in found.values("href") if link.startswith("#")}
    assert inner <= set(anchors)
    assert {"findings-MOE-07", "MOE-07", "Clauses", "Findings", "Skipped", "Real-input"} <= inner


def test_html_words_the_outcome_of_every_clause():
    raw = report_html.render(MADE)
    for row in MADE["clauses"]:
        (cells,) = re.findall(rf'<tr id="{row["id"]}">.*?</tr>', raw, re.DOTALL)
        pill = r'class="pill [a-z]+"(?: href="[^"]+")?>([^<]+)<'
        assert re.findall(pill, cells) == [row["outcome"]]
        assert f'title="{clauses.CLASSES[row["class"]]}"' in cells


@pytest.mark.parametrize(
    ("results", "planned", "colour", "state"),
    [
        (RESULTS[:1], 1, "good", "Balanced: "),
        (RESULTS, 10, "bad", "Balanced: "),
        (RESULTS[:1], 2, "unsure", "Not balanced: 1 results where 2 are owed"),
    ],
    ids=("holds", "does not hold", "incomplete"),
)
def test_html_shows_verdict_and_ledger(results, planned, colour, state):
    made = build(results, planned)
    found = page(made)
    assert f"verdict {colour}" in found.values("class")
    word, _, rest = made["verdict"]["line"].partition(": ")
    assert report_junit.printable(f"{word} {rest}") in found.text
    assert state in found.text
    for name, count in made["ledger"].items():
        if name != "balanced":
            assert f"<dt>{name}</dt><dd>{count}</dd>" in report_html.render(made)


def test_html_draws_the_rungs_and_the_drops():
    raw = report_html.render(MADE)
    bars = re.findall(r'track (\w+)"><i style="height:([\d.]+)%">', raw)
    rungs = [("bad", "99.9"), ("good", "100.0"), ("bad", "0.1"), ("quiet", "50.0")]
    first = [("unsure", "100.0")] + [("unsure", "0.0")] * 9
    second = [*first[:9], ("unsure", "100.0")]
    assert bars == rungs + first + second
    text = page(MADE).text
    assert "first choices 90.0%, second 80.0%; nothing of 10.0% of the tokens" in text
    assert f"1200 of 4096 tokens: numbers {', '.join(map(str, range(100, 110)))}, …" in text
    assert "no group's queues could be judged" in text


def test_html_never_rounds_a_share_to_all_or_nothing():
    shares = (0.0, 0.001, 0.004999, 0.25, 0.995, 0.9999, 1.0)
    wanted = ["0%", "&lt;1%", "&lt;1%", "25%", "&gt;99%", "&gt;99%", "100%"]
    assert [report_html._share(share) for share in shares] == wanted


def test_html_lists_functions_offered_and_lacking():
    text = page(MADE).text
    offered, lacking = text.partition("Offers")[2].partition("Lacks")[::2]
    lacking = lacking.partition("Ledger")[0]
    for name in FUNCTIONS:
        words = re.findall(
            r"\w+", offered if name in MADE["implementation"]["functions"] else lacking
        )
        assert name in words
    assert "moe_gradients" in lacking


def test_html_omits_sections_that_have_nothing_to_say():
    found = page(build(RESULTS[:1]))
    assert {"Implementation", "Ledger", "Clauses"} <= set(found.values("id"))
    assert not {"Findings", "Skipped", "Real-input", "Routing-resolution"} & set(found.values("id"))


@pytest.mark.parametrize("render", [report_html.render, report_junit.render])
def test_a_saved_report_renders_alike(render):
    saved = json.loads(json.dumps(MADE, allow_nan=False))
    assert render(saved) == render(MADE)


# ---- schema ------------------------------------------------------------------------------------

TYPES = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
NOTES = {"$schema", "$defs", "title", "description"}


def valid(value, schema):
    """Whether a JSON value obeys a schema; every keyword the schema uses is known here."""
    return all(KEYWORDS[key](value, schema) for key in schema if key not in NOTES)


def _type(value, schema):
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(TYPES[name](value) for name in names)


def _additional(value, schema):
    extra = [value[key] for key in value if key not in schema.get("properties", {})]
    allowed = schema["additionalProperties"]
    return not extra if allowed is False else all(valid(item, allowed) for item in extra)


KEYWORDS = {
    "$ref": lambda v, s: valid(v, SCHEMA["$defs"][s["$ref"].removeprefix("#/$defs/")]),
    "anyOf": lambda v, s: any(valid(v, option) for option in s["anyOf"]),
    "enum": lambda v, s: any(v == item and type(v) is type(item) for item in s["enum"]),
    "type": _type,
    "required": lambda v, s: isinstance(v, dict) and set(s["required"]) <= set(v),
    "properties": lambda v, s: (
        isinstance(v, dict)
        and all(valid(v[key], inner) for key, inner in s["properties"].items() if key in v)
    ),
    "additionalProperties": lambda v, s: isinstance(v, dict) and _additional(v, s),
    "items": lambda v, s: isinstance(v, list) and all(valid(item, s["items"]) for item in v),
}


def saved(made):
    """Return the report as its reader gets it."""
    return json.loads(json.dumps(made, allow_nan=False))


@pytest.mark.parametrize(
    "made", [MADE, build(), build([], 3), build(RESULTS[:1], profile="replay")], ids=range(4)
)
def test_the_schema_accepts_reports(made):
    assert valid(saved(made), SCHEMA)


MUTATIONS = [
    (("schema",), "openmoe-conformance-report/2"),
    (("profile",), "thorough"),
    (("seed",), "1"),
    (("seed",), True),
    (("extra",), 1),
    (("implementation", "arithmetic", "operands"), "float32"),
    (("implementation", "functions", 0), None),
    (("verdict", "exit_code"), 3),
    (("verdict", "exit_code"), False),
    (("ledger", "balanced"), 1),
    (("ledger", "expected_failure"), 0),
    (("clauses", 0, "class"), "X"),
    (("clauses", 0, "outcome"), "unknown"),
    (("clauses", 0, "error"), "0"),
    (("clauses", 0, "extra"), 1),
    (("results", 0, "outcome"), "not run"),
    (("results", 0, "outcome"), "PASS"),
    (("results", 0, "source"), "real_input"),
    (("results", 0, "fault"), "nobody"),
    (("results", 0, "extra"), 1),
    (("results", 1, "details", "ladder", "2^-4"), "all"),
    (("resolution", "rungs", "2^-4"), None),
    (("real_input", "passes", 0, "drop_share_first", 0), None),
    (("real_input", "passes", 0, "extra"), 1),
]


@pytest.mark.parametrize(("path", "value"), MUTATIONS, ids=str)
def test_the_schema_rejects_a_mutated_report(path, value):
    mutated = copy.deepcopy(saved(MADE))
    holder = mutated
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    assert not valid(mutated, SCHEMA)


def paths(value, path=()):
    """Yield where each required key stands, one row of a list standing for all."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, child in inner:
        if isinstance(value, dict):
            yield (*path, key)
        if isinstance(child, (dict, list)):
            yield from paths(child, (*path, key))


def test_the_schema_misses_every_key_that_is_taken_away():
    whole = saved(build(real_input=figures() | {"passes": figures()["passes"][1:]}))
    taken = 0
    for path in paths(whole):
        if "rungs" in path[:-1] or "details" in path[:-1]:
            continue  # their keys are free
        mutated = copy.deepcopy(whole)
        holder = mutated
        for step in path[:-1]:
            holder = holder[step]
        del holder[path[-1]]
        assert not valid(mutated, SCHEMA), path
        taken += 1
    assert taken > 60


def test_the_schema_names_exactly_what_the_code_has():
    definitions = SCHEMA["$defs"]
    outcomes = [outcome.value for outcome in Outcome]
    rows = definitions["result"]["properties"], definitions["clause"]["properties"]
    assert definitions["outcome"]["enum"] == outcomes
    assert set(definitions["ledger"]["properties"]) == {"planned", "balanced", *outcomes}
    assert rows[0]["source"]["enum"] == [source.value for source in Source]
    assert rows[1]["class"]["enum"] == list(clauses.CLASSES)
    assert SCHEMA["properties"]["profile"]["enum"] == [*PROFILES, "replay"]
    assert SCHEMA["properties"]["schema"]["enum"] == [report.SCHEMA]


def test_the_schema_is_closed_and_described():
    def walk(schema):
        yield schema
        for inner in (*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()):
            yield from walk(inner)

    for schema in walk(SCHEMA):
        assert "\n" not in schema.get("description", "")
        assert "$ref" in schema or schema["description"]
        if "required" in schema:
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"]) or "kept_first" in str(schema)
