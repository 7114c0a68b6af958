"""The report of an audit as a page and as files: nothing is loaded, nothing breaks out, all is drawn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from importlib import resources

import pytest
from audit_reports import HOSTILE, LAYERS, SLICES, report

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.report import markup, page, printing
from openmoe_tools.data import opening

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browsing = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
NO_NETWORK = (
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=127.0.0.1:9",
    "--disable-background-networking",
)
DRAWN = {"heatmap", "lines", "points", "bars", "radar"}


class Elements(HTMLParser):
    """The elements of a page: names, attributes, and the texts directly in them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.found:
            self.found[-1][2].append(data)

    def named(self, tag):
        return [
            (attributes, "".join(inside)) for name, attributes, inside in self.found if name == tag
        ]


def hostile():
    """Return a report whose names are hostile; as JSON has it."""
    return json.loads(json.dumps(report(points=200, names=HOSTILE, pieces=HOSTILE)))


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Return the elements of a page after a browser has run it without a network."""

    def call(content, *flags, address=""):
        folder = tmp_path_factory.mktemp("page")
        file = folder / "report.html"
        file.write_bytes(content.encode())
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *NO_NETWORK, *flags]
        command += [
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            f"{file.as_uri()}{address}",
        ]
        ran = subprocess.run(command, capture_output=True, check=True, timeout=300)
        return Elements(ran.stdout.decode())

    return call


def driven(content, script):
    """Return a page with a script of the test behind its own; the policy would keep it from running."""
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', content)[0]
    wrapped = (
        f"<script>document.body.dataset.result = JSON.stringify((() => {{{script}}})())</script>"
    )
    return content.replace(policy, "").replace("</body>", f"{wrapped}</body>")


def on_a_phone(content):
    """Return a page that shows another in a frame of 360 pixels, as a window is 500 wide at least."""
    frame = f'<iframe style="width: 360px; height: 800px; border: 0" srcdoc="{escape(content)}"></iframe>'
    take = "document.body.dataset.result = frames[0].document.body.dataset.result"
    return f"<!DOCTYPE html><body onload='{take}'>{frame}</body>"


def unknown(value, *, inside=False):
    """Return a report in which no number of a figure is known, keys and labels left as they are."""
    if isinstance(value, dict):
        kept = ("keys", "group")
        return {
            name: one if name in kept else unknown(one, inside=inside or name == "data")
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [unknown(one, inside=inside) for one in value]
    return (
        None
        if inside and isinstance(value, (int, float)) and not isinstance(value, bool)
        else value
    )


def bare(value):
    """Return a report whose figures have panels without anything in their lists."""
    made = json.loads(json.dumps(value))
    for part in made["sections"]:
        for figure in part["figures"]:
            for panel in figure["panels"]:
                panel["data"] = {
                    name: [] if isinstance(one, list) else one
                    for name, one in panel["data"].items()
                }
    return made


def body(elements):
    return elements.named("body")[0][0]


# ---- what the file holds -----------------------------------------------------------------------


@pytest.mark.parametrize("made", [report, hostile], ids=["plain", "hostile"])
def test_the_page_loads_nothing(made):
    text = page.render(made())
    assert not re.search("https?:", text, re.IGNORECASE)
    elements = Elements(text)
    tags = {tag for tag, _, _ in elements.found}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"}
    for tag, attributes, _ in elements.found:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}, tag
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [one["content"] for one, _ in elements.named("meta") if "http-equiv" in one]
    assert policy.startswith(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' "
    )


def test_own_files_of_the_page_hold_no_address_and_no_import():
    folder = resources.files("openmoe_tools.audit.report")
    own = [one for one in folder.iterdir() if one.name.endswith((".js", ".css"))]
    assert {one.name for one in own} >= {"page.js", "page.css"}
    for one in own:
        found = re.search(
            r"https?:|//cdn|@import|url\(|fetch|XMLHttp|innerHTML = [^\"]", one.read_text("utf-8")
        )
        assert not found, (one.name, found)
    assert not re.search(r"//cdn|@import|url\(", page.render(report()))


def test_the_page_holds_the_whole_report_whatever_its_text():
    for made in (report(), hostile()):
        text = page.render(made)
        assert text.encode().decode() == text
        scripts = Elements(text).named("script")
        assert [one.get("type") for one, _ in scripts] == ["application/json", None]
        assert scripts[0][0]["id"] == "report"
        assert json.loads(scripts[0][1]) == made


def test_hostile_text_is_shown_as_text():
    text = page.render(hostile())
    shown = Elements(text)
    assert "</script><script>document.body.dataset.broken = 1</script>" in shown.named("h1")[0][1]
    inside = "".join("".join(inside) for _, _, inside in shown.found)
    for seen in ("\\x1b[31m\\x00", "\\u202eright to left\\u202c", "\\ud800 half", "المادة"):
        assert seen in inside
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )


def test_first_screen_tells_the_verdict_without_the_script():
    text = page.render(report())
    before = text[: text.index('<nav id="contents"')]
    for line in report()["verdict"]["lines"]:
        for told in (line["finding"], line["answer"], line["statement"]):
            assert told in before
    assert "gain <b>0.573</b> (0.525 to 0.621), by chance 0" in before
    assert "share <b>not known</b>" in before
    assert "1,080,000" in before
    assert "8 groups of 512 tokens, 128 slots an expert" in before
    assert report()["manifest"]["model"]["digest"] in before
    assert report()["verdict"]["certificate"] in before
    assert before.count('<svg viewBox="0 0 20 20"') == len(report()["verdict"]["lines"])
    assert "<noscript>" in before
    assert '<html lang="en">' in before


def test_an_import_that_tells_little_has_a_page():
    made = report()
    manifest = made["manifest"]
    manifest["model"] |= {"digest": None, "step": None, "certificate": None}
    manifest |= {"tokenizer": None, "recipe": {"rules": [{"name": "theirs"}]}}
    text = page.render(made)
    assert "not known" in text
    assert "<b>theirs</b>" in text


def test_a_realistic_page_is_below_three_megabytes():
    made = report()
    figures = {one["id"]: one for part in made["sections"] for one in part["figures"]}
    assert len(figures["slice_shares"]["panels"]) == len(LAYERS) == 4
    assert len(figures["slice_shares"]["panels"][0]["data"]["rows"]) == len(SLICES) == 12
    assert len(figures["token_spread"]["panels"][3]["data"]["x"]) == 3000
    assert len(figures["top_tokens"]["panels"][3]["data"]["cards"]) == 32
    assert len(page.render(made).encode()) < 3_000_000


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "not known"), (0.0, "0"), (0.57349, "0.573"), (301324, "301,324"), (1234.5, "1,234")],
)
def test_numbers_are_told_shortly(value, told):
    assert markup.number(value) == told


# ---- what a browser makes of it ----------------------------------------------------------------


@browsing
@pytest.mark.parametrize("made", [report, hostile], ids=["plain", "hostile"])
def test_every_figure_is_drawn_without_a_network(browse, made):
    content = made()
    elements = browse(page.render(content), address="#tables")
    state = body(elements)
    assert state["data-errors"] == ""
    assert "data-broken" not in state
    figures = [one for part in content["sections"] for one in part["figures"]]
    assert state["data-drawn"] == str(sum(bool(one["panels"]) for one in figures))
    sections = [one for one, _ in elements.named("section") if one["id"].startswith("section-")]
    assert len(sections) == len(content["sections"])
    places = [i for i, (tag, one, _) in enumerate(elements.found) if one.get("class") == "figure"]
    assert len(places) == len(figures)
    for figure, first, last in zip(figures, places, [*places[1:], None], strict=True):
        part = elements.found[first:last]
        tags = [tag for tag, _, _ in part]
        if not figure["panels"]:
            assert any("Nothing was recorded" in "".join(inside) for _, _, inside in part)
            continue
        if figure["kind"] in DRAWN:
            image = next(one for tag, one, _ in part if tag == "svg")
            assert image["role"] == "img"
            titles = ["".join(inside) for tag, _, inside in part if tag in {"title", "desc"}]
            assert titles[0].startswith(figure["title"])
            assert all(titles)
            # At least a mark for each place of a heatmap, and some for every other kind.
            marks = sum(tag in {"rect", "path", "circle"} for tag in tags)
            data = figure["panels"][0]["data"]
            assert marks >= (
                len(data["rows"]) * len(data["columns"]) if "value_title" in data else 3
            )
        assert tags.count("table") >= 1, figure["id"]
        assert tags.count("td") >= 3, figure["id"]
        if figure["kind"] == "text":
            pieces = [one for tag, one, _ in part if tag == "span" and one.get("class") == "piece"]
            assert len(pieces) >= 300
            assert "sup" in tags


@browsing
@pytest.mark.parametrize("change", [unknown, bare])
def test_a_report_that_knows_nothing_is_drawn_too(browse, change):
    made = change(report(points=50))
    elements = browse(page.render(made), address="#tables")
    assert body(elements)["data-errors"] == ""
    texts = [text for _, text in elements.named("text")]
    assert "Nothing is known here." in texts
    assert not {"NaN", "undefined", "null"} & {*texts, *(text for _, text in elements.named("td"))}
    drawn = [
        one for tag, one, _ in elements.found if tag in {"rect", "circle", "path", "line", "text"}
    ]
    assert not [
        one
        for one in drawn
        if re.search("NaN|undefined|Infinity", " ".join(map(str, one.values())))
    ]


@browsing
def test_the_policy_keeps_other_scripts_from_running(browse):
    text = page.render(report(points=50))
    planted = text.replace("</body>", "<script>document.body.dataset.broken = 3</script></body>")
    assert planted != text
    state = body(browse(planted))
    assert "data-broken" not in state
    assert "script-src" in state["data-errors"]


SCRIPT = """
const found = {};
const figure = (id) => document.getElementById(`figure-${id}`);
const part = (id, selector) => figure(id).querySelector(selector);
const all = (id, selector) => [...figure(id).querySelectorAll(selector)];
const layer = (id) => [...figure(id).querySelectorAll("select")].find((one) => one.options[0].text === "3");
const choose = (id, text) => {
  layer(id).selectedIndex = [...layer(id).options].findIndex((one) => one.text === text);
  layer(id).dispatchEvent(new Event("change"));
};
const type = (id, text) => {
  part(id, "input[type=search]").value = text;
  part(id, "input[type=search]").dispatchEvent(new Event("input"));
};
const press = (node, key) => node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const said = () => document.getElementById("said").textContent;

found.resources = performance.getEntriesByType("resource").length;
found.start = ["slice_shares", "slice_radar", "drop_by_position", "top_tokens"].map((id) => layer(id).value);
const kept = part("slice_distance", "input[type=checkbox]");
kept.checked = false;
kept.dispatchEvent(new Event("change"));
choose("slice_shares", "7");
found.linked = ["slice_radar", "drop_by_position", "top_tokens"].map((id) => layer(id).value);
found.unlinked = layer("slice_distance").value;
found.title = part("slice_radar", "svg title").textContent;

found.lines = [all("drop_by_position", "path.line").length];
part("drop_by_position", ".legend button").click();
found.lines.push(all("drop_by_position", ".plot path.line").length);
found.pressed = part("drop_by_position", ".legend button").getAttribute("aria-pressed");

found.twinBefore = all("token_spread", ".twin table").length;
type("token_spread", "import");
part("token_spread", ".twin").open = true;
type("token_spread", "import1");
found.told = part("token_spread", ".controls [role=status]").textContent;
found.highlighted = all("token_spread", "svg path.mark").length;
found.rows = part("token_spread", ".twin .soft").textContent;
type("token_spread", "");
found.limited = part("token_spread", ".twin .soft").textContent;

type("top_tokens", "expert 31");
found.cards = all("top_tokens", ".card h4").map((one) => one.textContent);

const cells = () => all("slice_table", "tbody tr").map((one) => one.children[3].textContent);
const heads = all("slice_table", "th button");
heads[3].click();
found.down = cells();
heads[3].click();
found.up = cells();
found.sorted = heads[3].closest("th").getAttribute("aria-sort");

press(part("slice_shares", ".plot"), "ArrowRight");
found.first = said();
press(part("slice_shares", ".plot"), "ArrowRight");
press(part("slice_shares", ".plot"), "ArrowDown");
found.moved = said();
press(part("sample_text", ".plot p"), "ArrowRight");
found.token = said();
found.gaps = all("slice_shares", "path.gap").length;
found.unknown = all("slice_distance", "text").filter((one) => one.textContent === "not known").length;
found.width = document.documentElement.clientWidth;
found.wide = document.documentElement.scrollWidth <= found.width;
found.errors = document.body.dataset.errors;
return found;
"""


@pytest.fixture(scope="module")
def used(browse):
    """What the page says after it was used, in a phone's width."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    elements = browse(on_a_phone(driven(page.render(report()), SCRIPT)))
    return json.loads(body(elements)["data-result"])


@browsing
def test_figures_start_at_the_layer_of_the_verdict_and_go_together(used):
    assert used["start"] == ["11"] * 4
    assert used["linked"] == ["7"] * 3
    assert used["unlinked"] == "11"
    assert used["title"] == "The same in the paper's style, layer 7"


@browsing
def test_series_can_be_hidden(used):
    assert used["lines"][1] < used["lines"][0]
    assert used["pressed"] == "false"


@browsing
def test_points_and_cards_can_be_searched(used):
    labels = report()["sections"][1]["figures"][0]["panels"][0]["data"]["labels"]
    expected = sum("import1" in one for one in labels)
    assert used["told"] == f"{expected} of 3,000 points"
    assert used["highlighted"] == expected
    shown = sum("import1" in one for one in labels[:2000])
    assert used["rows"] == f"{shown} of 2,000 rows."
    assert used["limited"] == ""
    assert used["twinBefore"] == 0
    assert used["cards"] == ["Expert 31"]


@browsing
def test_tables_sort_with_the_unknown_last(used):
    assert used["sorted"] == "ascending"
    numbers = [float(one) for one in used["down"][:-1]]
    assert numbers == sorted(numbers, reverse=True)
    assert used["down"][-1] == used["up"][-1] == "not known"
    assert used["up"][:-1] == used["down"][:-1][::-1]


@browsing
def test_values_are_read_by_arrow_keys(used):
    data = report()["sections"][0]["figures"][0]["panels"][1]["data"]
    assert used["first"].endswith("slice: arxiv, expert: 0, 90,000 tokens")
    assert used["moved"].endswith("slice: books, expert: 1, 83,000 tokens")
    told = re.match("share of choices: ([^,]+),", used["moved"])[1]
    assert float(told) == pytest.approx(data["values"][1][1], rel=1e-3)
    assert used["token"].startswith("expert ")


@browsing
def test_what_is_not_known_is_a_gap_and_the_page_does_not_scroll_sideways(used):
    assert used["gaps"] == 4
    assert used["unknown"] == 1
    assert 340 < used["width"] <= 360
    assert used["wide"] is True
    assert used["resources"] == 0
    assert used["errors"] == ""


@browsing
def test_a_figure_that_cannot_be_drawn_does_not_keep_others_from_it(browse):
    made = report(points=50)
    made["sections"][0]["figures"][0]["panels"][2]["data"]["values"] = None
    elements = browse(page.render(made))
    assert "slice_shares: " in body(elements)["data-errors"]
    assert body(elements)["data-drawn"] == "10"
    texts = "".join(text for _, text in elements.named("p"))
    assert "This figure could not be drawn" in texts
    assert len([one for one, _ in elements.named("svg") if one.get("role") == "img"]) == 6


# ---- files for papers --------------------------------------------------------------------------


def small():
    """Return a report of one panel a figure, with hostile names."""
    made = hostile()
    for part in made["sections"]:
        for figure in part["figures"]:
            del figure["panels"][1:]
    return made


def test_every_plot_becomes_the_same_files_again(tmp_path):
    pytest.importorskip("matplotlib")
    first = printing.export(small(), tmp_path / "first")
    second = printing.export(small(), tmp_path / "second", ("pdf", "png"))
    assert [one.name for one in first] == [one.name for one in second]
    stems = {"slice_shares", "slice_radar", "slice_distance", "token_spread", "load"}
    stems |= {"drop_by_position", "agreement"}
    assert {one.name.partition("-")[0] for one in first} == stems
    assert len(first) == 2 * len(stems)
    for one, again in zip(first, second, strict=True):
        content = one.read_bytes()
        assert content.startswith(b"%PDF-" if one.suffix == ".pdf" else b"\x89PNG")
        assert len(content) > 5000
        assert content == again.read_bytes()
        assert b"CreationDate" not in content


@pytest.mark.parametrize("change", [unknown, bare])
def test_plots_of_nothing_are_files_too(tmp_path, change):
    pytest.importorskip("matplotlib")
    assert len(printing.export(change(small()), tmp_path, ("png",))) == 7


def test_panels_with_names_alike_get_files_of_their_own(tmp_path):
    pytest.importorskip("matplotlib")
    made = small()
    figure = made["sections"][1]["figures"][1]
    data = figure["panels"][0]["data"]
    figure["panels"] = [{"keys": {"slice": name}, "data": data} for name in ("a/b", "a b", "A?B")]
    made["sections"] = [{"figures": [figure]}]
    written = printing.export(made, tmp_path, ("png",))
    assert [one.name for one in written] == [
        "load-slice-a_b.png",
        "load-slice-a_b-2.png",
        "load-slice-A_B-3.png",
    ]


def test_unknown_formats_and_a_missing_extra_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="gif is no format; there are pdf, png"):
        printing.export(small(), tmp_path, ("png", "gif"))
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UsageError, match=r"needs matplotlib: pip install 'openmoe-spec\[figures\]'"
    ):
        printing.export(small(), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
