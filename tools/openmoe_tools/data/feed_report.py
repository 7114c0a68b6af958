"""What `openmoe data feed` tells: what was fed, beside what is predicted.

The report's schema is `feed.schema.json`, beside this file. Spec: BATCH-11, BATCH-12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.data import GROUP_OF_DOCUMENTS, OBJECTIVES
from openmoe_tools.data import predicting
from openmoe_tools.terminal import say

if TYPE_CHECKING:  # the extra `data` may be missing
    from openmoe_production.data import Pipeline
    from openmoe_production.sources import Task
    from openmoe_production.vocabulary import Vocabulary
    from openmoe_tools.data.feeding import Request

SCHEMA = "openmoe-feed/1"


def report(
    request: Request,
    tasks: Sequence[Task],
    vocabulary: Vocabulary,
    pipeline: Pipeline,
    seconds: float,
    *,
    resumed: bool,
) -> dict[str, Any]:
    """Return what was fed, and what was predicted of it, as data."""
    statistics, streams = pipeline.statistics, pipeline.streams
    form = predicting.Form(
        request.inputs_length, request.targets_length, [len(one) for one in vocabulary.modes]
    )
    objectives = [one.objective if request.mode == "ul2" else None for one in streams]
    rates = sum(one.rate for one in streams)
    shares = [one.rate / rates for one in streams]
    names = [
        _name(one.task.name, objective) for one, objective in zip(streams, objectives, strict=True)
    ]
    whole = predicting.Whole(statistics.positions, statistics.tokens, statistics.loss_positions)
    found = predicting.of_rows(whole, statistics.streams, shares, objectives, form)
    for name, counts, share, objective in zip(
        names, statistics.streams, shares, objectives, strict=True
    ):
        found += predicting.of_stream(
            name,
            counts,
            share=share,
            examples=statistics.examples,
            form=form,
            objective=objective,
        )
    return {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "mode": request.mode,
        "seed": request.seed,
        "lengths": pipeline.lengths,
        "process": [request.process, request.processes],
        "resumed": resumed,
        "documents": sum(int((one.documents.sizes > 0).sum()) for one in tasks),
        "pieces": vocabulary.num_pieces,
        "fed": {
            "rows": statistics.rows,
            "positions": statistics.positions,
            "tokens": statistics.tokens,
            "loss_positions": statistics.loss_positions,
            "examples": statistics.examples,
        },
        "streams": [
            {"name": name, "share": share, **counts._asdict()}
            for name, share, counts in zip(names, shares, statistics.streams, strict=True)
        ],
        "seconds": {"wall": seconds, **statistics.seconds},
        "predictions": [{**asdict(one), "holds": one.holds} for one in found],
        "holds": all(one.holds for one in found),
        "missing_objectives": _missing(request, tasks, pipeline),
    }


def _missing(request: Request, tasks: Sequence[Task], pipeline: Pipeline) -> list[dict[str, Any]]:
    """Return what has no group, since there are too few documents for so many. Spec: DATA-04."""
    there = {(one.place, one.objective) for one in pipeline.streams}
    ul2 = request.mode == "ul2"
    found = []
    for place, task in enumerate(tasks):
        own = np.count_nonzero(task.documents.sizes[request.process :: request.processes])
        found += [
            {
                "name": _name(task.name, objective if ul2 else None),
                "documents": int(own),
                "needed": GROUP_OF_DOCUMENTS * objective + 1,
            }
            for objective in range(len(OBJECTIVES) if ul2 else 1)
            if (place, objective) not in there
        ]
    return found


def _name(task: str, objective: int | None) -> str:
    kind = "causal stream" if objective is None else objective_name(objective)
    return f"{task}, {kind}" if task else kind


def objective_name(objective: int) -> str:
    """Return an objective as it is shown: its number, and what it does."""
    made = OBJECTIVES[objective]
    if made.mean_noise_span_length is None:
        return f"{objective} PrefixLM"
    return f"{objective} spans {made.mean_noise_span_length:g}, {made.noise_density:g}"


# ---- printing ----------------------------------------------------------------------------------


def render(report: Mapping[str, Any], to: Console) -> None:
    """Print the whole report."""
    fed, seconds = report["fed"], report["seconds"]
    lengths = " + ".join(map(str, report["lengths"].values()))
    say(to, f"openmoe data feed: {report['mode']}, {lengths}, seed {report['seed']}", "bold")
    process, processes = report["process"]
    say(
        to,
        f"{_documents(report['documents'])}, {report['pieces']:,} pieces, process {process} of "
        f"{processes}{', resumed' if report['resumed'] else ''}: {fed['examples']:,} examples in "
        f"{fed['rows']:,} rows, {fed['tokens']:,} tokens of {fed['positions']:,} positions\n",
    )
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "measured", "expected", "least", "most", ""):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    for one in report["predictions"]:
        places = 4 if one["expected"] <= 1 else 2
        numbers = (f"{one[n]:,.{places}f}" for n in ("measured", "expected", "least", "most"))
        verdict = "" if one["holds"] else "OUTSIDE"
        shown.add_row(one["name"], *numbers, verdict, style=None if one["holds"] else "red")
    to.print(shown)
    say(
        to,
        "\nA right pipeline leaves an interval once in 10,000 times. Tokens and loss of an example are\n"
        "those of whole segments; the last of a group may be shorter, and positions have room for it.",
        "dim",
    )
    rate = fed["tokens"] / seconds["wall"]
    say(to, f"{rate:,.0f} tokens/s in {seconds['wall']:.1f} s; time by stage: {_stages(seconds)}")
    for one in report["missing_objectives"]:
        say(
            to,
            f"MISSING {one['name']}: a process needs {_documents(one['needed'])} that are not empty, "
            f"this one has {one['documents']:,}",
            "bold",
        )
    end = ", as far as it goes: INCOMPLETE" if report["missing_objectives"] else ""
    say(to, f"as predicted{end}" if report["holds"] else "NOT as predicted", "bold")


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"


def _stages(seconds: Mapping[str, float]) -> str:
    """Return shares of processor time; groups tell theirs when they end, so at first there are none."""
    if "reading" not in seconds:
        return "too short a run to tell"
    stages = {name: taken for name, taken in seconds.items() if name != "wall"}
    total = sum(stages.values()) or 1.0
    return ", ".join(f"{name} {100 * taken / total:.0f} %" for name, taken in stages.items())
