"""Reports of audits that there were not: every kind of figure, of the size of a real one, and hostile text."""

from __future__ import annotations

import numpy as np

HOSTILE = (
    "</script><script>document.body.dataset.broken = 1</script>",
    "<!-- <script>",
    "\"><img src=x onerror='document.body.dataset.broken = 2'>",
    "&lt;b&gt; &amp; $x^{2}$ \\frac",
    "line\nbreak\ttab\x1b[31m\x00",
    "\u202eright to left\u202c \u200f\u2067",
    "\ud800 half",
    "https://example.invalid/@import url(x)",
    "المادة",
    "日本語の断片",
    "\u2581the",
    "👩\u200d🚀",
)
"""Names that end elements, start comments, hide, turn round, or are not whole characters."""
LAYERS = ("3", "7", "11", "15")
EXPERTS = 32
SLICES = (
    *("arxiv", "books", "c4", "github", "stackexchange", "wikipedia"),
    *("german", "french", "russian", "chinese", "japanese", "arabic"),
)


def panels(made, **more):
    """Return a panel for each layer, and for each value of one more key."""
    if not more:
        return [{"keys": {"layer": one}, "data": made(i)} for i, one in enumerate(LAYERS)]
    ((name, values),) = more.items()
    return [
        {"keys": {name: value, "layer": one}, "data": made(i)}
        for value in values
        for i, one in enumerate(LAYERS)
    ]


def figure(identifier, kind, title, made, **more):
    return {
        "id": identifier,
        "title": title,
        "kind": kind,
        "caption": "A caption with `code` and 2^-7 in it.",
        "formula": "R(s, e) = sum over ranks of n(s, e, r) / (K n(s))",
        "clauses": ["AUDIT-03", "AUDIT-04"],
        "paper": None,
        "query": None,
        "panels": made,
    } | more


def plain(values):
    """Return numbers of six digits, null for what is not finite."""
    return [float(f"{one:.6g}") if np.isfinite(one) else None for one in np.ravel(values).tolist()]


def report(points=3000, names=SLICES, pieces=None):
    """Return a report; `names` are slices, `pieces` of which token labels are made."""
    draw = np.random.default_rng(5)
    some = tuple(pieces or ("\u2581the", "\u2581of", "ing", "\u2581)", ";", "\u2581import", "ция"))
    labels = [f"{some[i % len(some)]}{i // len(some) or ''}" for i in range(points)]
    return {
        "schema": "openmoe-audit-report/1",
        "title": f"Routing of {names[0]}, step 1200",
        "manifest": manifest(names),
        "verdict": verdict(),
        "sections": [
            section("slices", "Slices of the text", slices(draw, names)),
            section("tokens", "Token ids", tokens(draw, points, labels)),
            section("drops", "Dropped choices", drops(draw)),
            section("experts", "Experts", experts(draw, names, labels)),
            section("nothing", "Nothing here", []),
        ],
    }


def section(identifier, title, figures):
    text = (
        "What this section is about, with `code`, in a sentence or two that a reader reads first."
    )
    return {"id": identifier, "title": title, "text": text, "figures": figures}


def manifest(names):
    digest = "d54bb09f61536da12f665ae58de85874bb15755595d1de5d2c5ed93cfc4be284"
    rules = [
        {"name": "t5x", "groups": 8, "group_size": 512, "capacity": 128, "formula": "f T / E"},
        {"name": "torch_port", "groups": 1, "group_size": 4096, "capacity": 2048, "formula": "K"},
    ]
    return {
        "schema": "openmoe-audit/1",
        "spec_version": "0.6",
        "version": "0.6.0",
        "source": "run",
        "command": "openmoe audit run",
        "model": {
            "name": "small",
            "path": "small",
            "step": 1200,
            "digest": digest,
            "layers": [int(one) for one in LAYERS],
            "experts": EXPERTS,
            "choices": 2,
            "vocabulary_size": 8320,
            "certificate": {"status": "holds", "file": "verify.json"},
        },
        "tokenizer": {"digest": digest, "pieces": 8000},
        "corpus": {
            "digest": digest,
            "slices": [{"name": one, "documents": 10, "tokens": 90_000} for one in names],
        },
        "recipe": {"rows": 8, "length": 512, "rules": rules, "capacity_factor": 2.0},
        "checkpoints": [],
        "recorded": ["drops", "margins"],
        "totals": {"tokens": 1_080_000, "documents": 120, "calls": 300, "seconds": 60.0},
    }


def verdict():
    answers = {
        "Specialisation is context-independent": "holds",
        "The position decides the expert": "does not hold",
        "Routing is learned early": "not recorded",
        "Tokens are dropped towards the end of the text": "in part",
        "Slices are routed apart": "not decided",
    }
    numbers = {
        "gain": {"value": 0.573449, "low": 0.525404, "high": 0.621493, "chance": 0.0},
        "layers claimed": {"value": 4, "low": None, "high": None, "chance": None},
        "share": {"value": None, "low": None, "high": None, "chance": 0.03125},
    }
    lines = [
        {
            "id": f"line{i}",
            "finding": finding,
            "answer": answer,
            "statement": "In layer 11 it removes 57.3 % (52.5 % to 62.1 %) of the misses.",
            "numbers": numbers if i < 2 else {},
            "rule": "holds: lower end above 0.5; in part: above 0.",
            "clauses": ["AUDIT-23", "AUDIT-28"],
        }
        for i, (finding, answer) in enumerate(answers.items())
    ]
    return {
        "lines": lines,
        "driver": "token id",
        "certificate": "The weights are those of a conversion that was verified (verify.json).",
        "notes": ["The verdict is about layer 11.", "m = 13 claims: each end is at 1 - 0.01/13."],
    }


def slices(draw, names):
    shares = draw.dirichlet(np.full(EXPERTS, 1.5), (len(LAYERS), len(names)))
    shares[:, -1, 5:9] = np.nan

    def heatmap(layer):
        return {
            "rows": list(names),
            "columns": [str(one) for one in range(EXPERTS)],
            "values": [plain(row) for row in shares[layer]],
            "low": 0.0,
            "high": plain(np.nanmax(shares[layer]))[0],
            "centre": 1 / EXPERTS,
            "row_tokens": [90_000 - 7000 * i for i in range(len(names))],
            "row_title": "slice",
            "column_title": "expert",
            "value_title": "share of choices",
        }

    def radar(layer):
        series = [
            {"name": one, "values": plain(row)}
            for one, row in zip(names, shares[layer], strict=True)
        ]
        axes = [str(one) for one in range(EXPERTS)]
        return {"axes": axes, "series": series, "reference": 1 / EXPERTS}

    def bars(_):
        values = draw.uniform(0.02, 0.3, len(names))
        values[-2] = np.nan
        return {
            "labels": list(names),
            "values": plain(values),
            "low": plain(values - 0.02),
            "high": plain(values + 0.02),
            "reference": {"name": "by chance", "value": 0.1},
            "x_title": "slice",
            "y_title": "total variation",
        }

    def rows(_):
        return {
            "columns": ["slice", "documents", "tokens", "distance", "not explained"],
            "rows": [[one, 10, 90_000, *plain(draw.uniform(0, 1, 2))] for one in names]
            + [["none", 0, 0, None, None]],
        }

    return [
        figure(
            "slice_shares",
            "heatmap",
            "Share of choices by slice and expert",
            panels(heatmap),
            paper="Figures 5 to 8",
            query="SELECT slice, expert, count(*) AS chosen\nFROM choices WHERE layer < 3",
        ),
        figure("slice_radar", "radar", "The same in the paper's style", panels(radar)),
        figure("slice_distance", "bars", "Distance from the whole text", panels(bars)),
        figure("slice_table", "table", "Slices in numbers", panels(rows)),
    ]


def tokens(draw, points, labels):
    counts = np.sort((128 * draw.pareto(0.9, points) + 129).astype(int))[::-1]

    def spread(_):
        floor = np.sqrt(0.0605 / counts) / 2
        y = np.hypot(floor, draw.beta(2, 5, points) * 0.09)
        grid = np.geomspace(counts[-1], counts[0], 60)
        ends = [int(counts[-1]), int(counts[0])]
        rows = [
            [100 + i, labels[i], int(counts[i]), str(i % 32), *plain(draw.uniform(0, 1, 4))]
            for i in range(min(points, 2000))
        ]
        return {
            "x": [int(one) for one in counts],
            "y": plain(y),
            "labels": labels,
            "x_title": "tokens of the id",
            "y_title": "spread of shares",
            "log_x": True,
            "curves": [
                {
                    "name": "floor: chance alone",
                    "style": "floor",
                    "x": plain(grid),
                    "y": plain(np.sqrt(0.0605 / grid) / 2),
                },
                {"name": "largest possible", "style": "bound", "x": ends, "y": [0.121, 0.121]},
                {"name": "mean", "style": "mean", "x": ends, "y": [0.031, 0.031]},
            ],
            "columns": ["id", "piece", "tokens", "top", "share", "spread", "debiased", "lift"],
            "rows": rows,
        }

    def load(_):
        return {
            "labels": [str(one) for one in range(EXPERTS)],
            "values": plain(draw.dirichlet(np.full(EXPERTS, 20.0))),
            "low": None,
            "high": None,
            "reference": {"name": "even, 1/E", "value": 1 / EXPERTS},
            "x_title": "expert",
            "y_title": "share of choices",
        }

    return [
        figure(
            "token_spread",
            "points",
            "Spread of the experts' shares by token id",
            panels(spread),
            paper="Figure 14",
        ),
        figure("load", "bars", "Share of all choices by expert", panels(load)),
        figure("empty", "points", "What nobody recorded", []),
    ]


def drops(draw):
    x = np.arange(0, 512, 16)

    def by_position(_):
        first = 0.02 + 0.1 * (x / 512) ** 2 + draw.normal(0, 0.003, len(x))
        first[10] = np.nan
        second = 0.1 + 0.3 * (x / 512) ** 2 + draw.normal(0, 0.005, len(x))
        level = np.full(len(x), 0.2)

        def one(name, y, style="data", band=None):
            low = None if band is None else plain(y - band)
            high = None if band is None else plain(y + band)
            return {"name": name, "style": style, "y": plain(y), "low": low, "high": high}

        return {
            "x": x.tolist(),
            "x_title": "position",
            "y_title": "share of tokens",
            "log_x": False,
            "series": [
                one("first choice", first, band=0.01),
                one("second choice", second, band=0.02),
                one("any choice", second + 0.05),
                one("every choice", first * 0.5),
                one("floor: chance alone", level / 4, "floor"),
                one("mean", level, "mean"),
                one("largest possible", level + 0.4, "bound"),
            ],
            "tokens": (40_000 - 60 * x).tolist(),
        }

    def matrix(_):
        data = slices(draw, ["step 100", "step 1,000", "audited"])[0]["panels"][0]["data"]
        columns = [f"layer {one}" for one in LAYERS]
        values = [row[:4] for row in data["values"]]
        return data | {"columns": columns, "values": values, "centre": None, "row_tokens": None}

    rules = ("t5x", "torch_port")
    return [
        figure(
            "drop_by_position",
            "lines",
            "Dropped by position in the row",
            panels(by_position, rule=rules),
            paper="Figure 12",
            query="SELECT 1",
        ),
        figure(
            "agreement",
            "heatmap",
            "Agreement with the audited checkpoint",
            [{"keys": {"agreement": "choices"}, "data": matrix(0)}],
        ),
    ]


def experts(draw, names, labels):
    def ranked(number):
        return [
            [i, labels[i % len(labels)], int(draw.integers(9999)), *plain(draw.uniform(0, 9, 2))]
            for i in draw.integers(0, len(labels), number).tolist()
        ]

    def card(e):
        columns = ["id", "piece", "choices", "share", "lift"]
        tables = [
            {"title": f"by {by}", "columns": columns, "rows": ranked(10)}
            for by in ("count", "precision", "lift")
        ]
        rows = [[one, *plain(draw.uniform(0, 1))] for one in names[:5]]
        tables.append({"title": "slices", "columns": ["slice", "share"], "rows": rows})
        facts = [["share of all choices", "3.12 %"], ["load over the mean", "1.004"]]
        return {"title": f"Expert {e}", "facts": facts, "tables": tables}

    def sample(_):
        groups = draw.integers(0, EXPERTS, 300).tolist()
        texts = [f" {labels[i % len(labels)]}" + "\n" * (i % 97 == 96) for i in range(300)]
        pieces = [
            {"text": texts[i], "group": group, "note": f"id {i}; experts {group}, 3; gates 0.5"}
            for i, group in enumerate(groups)
        ]
        return {"pieces": pieces, "groups": [f"expert {one}" for one in range(EXPERTS)]}

    return [
        figure(
            "top_tokens",
            "cards",
            "Experts one by one",
            panels(lambda _: {"cards": [card(e) for e in range(EXPERTS)]}),
            paper="Tables 9 and 15",
        ),
        figure("sample_text", "text", "Text by first choice", panels(sample)),
    ]
