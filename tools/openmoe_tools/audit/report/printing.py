"""Figures of a report as files for papers: one file a panel, the same bytes for the same report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.audit.report.markup import identifier, spelt
from openmoe_tools.data.opening import require

COMMAND = "openmoe audit report --figures"
FORMATS = ("pdf", "png")
_LONGEST = 120
"""Characters of a file's name, which file systems bound."""
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#d5dbe1",
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # letters stay letters, which journals ask for
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "text.parse_math": False,  # a piece may have two dollar signs
}
_NO_DATES: Mapping[str, Mapping[str, None]] = {
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
    "png": {"Software": None},
}


def export(report: Mapping[str, Any], folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write every panel that is a plot; return the files.

    Tables, cards and coloured text are not plots: the page and the JSON have them. Characters that the
    font of the files lacks are boxes.
    Errors: UsageError.
    """
    unknown = [one for one in formats if one not in FORMATS]
    if unknown:
        raise UsageError(f"{COMMAND}: {unknown[0]} is no format; there are {', '.join(FORMATS)}")
    require(COMMAND, "matplotlib", extra="figures")
    files.folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror})") from error
    written = []
    for name, figure, panel in _panels(report):
        for kind, content in _drawn(figure, panel, formats):
            path = folder / f"{name}.{kind}"
            files.write(path, partial(bytes, content))
            written.append(path)
    return written


def _panels(
    report: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield panels that are plots, with names of files that differ, in upper and lower case too."""
    from openmoe_tools.audit.report.drawings import KINDS  # noqa: PLC0415 - imports matplotlib

    taken: set[str] = set()
    for section in report["sections"]:
        for figure in section["figures"]:
            if figure["kind"] not in KINDS:
                continue
            for panel in figure["panels"]:
                keys = (part for pair in panel["keys"].items() for part in pair)
                name = first = identifier(figure["id"], *keys)[:_LONGEST]
                number = 1
                while name.lower() in taken:
                    number += 1
                    name = f"{first}-{number}"
                taken.add(name.lower())
                yield name, figure, panel


def _drawn(
    figure: Mapping[str, Any], panel: Mapping[str, Any], formats: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield the panel in each format."""
    import warnings  # noqa: PLC0415

    import matplotlib as mpl  # noqa: PLC0415 - an optional extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    from openmoe_tools.audit.report.drawings import KINDS  # noqa: PLC0415

    keys = (f"{spelt(name)} {spelt(value)}" for name, value in panel["keys"].items())
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        drawn = Figure(figsize=(6.4, 3.2))
        KINDS[figure["kind"]](drawn, panel["data"])
        drawn.axes[0].set_title(", ".join([spelt(figure["title"]), *keys]), loc="left", pad=12)
        for kind in formats:
            to = BytesIO()
            drawn.savefig(to, format=kind, metadata=dict(_NO_DATES[kind]))
            yield kind, to.getvalue()
