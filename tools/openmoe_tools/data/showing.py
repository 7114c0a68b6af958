"""Ids as text that shows what they are: in colour on a terminal, and by signs alone without.

A sentinel is <0>, a mode and an end stand as they are written, noise lies between brackets of the
kind ⟦ ⟧, a line's end is ↵, and padding is a word of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openmoe_spec.data import END, OBJECTIVES, PAD
from openmoe_tools.terminal import say

if TYPE_CHECKING:  # the extra `data` may be missing
    from openmoe_production.vocabulary import Vocabulary

NOISE, SENTINEL, MODE, ENDS, CUT = "yellow", "bold cyan", "magenta", "dim", "red"


def render(found: Mapping[str, Any], vocabulary: Vocabulary, to: Console) -> None:
    """Print the whole report of `openmoe data preview`."""
    lengths = found["lengths"]
    say(to, f"openmoe data preview: {lengths['inputs']} + {lengths['targets']} tokens", "bold")
    for line in (
        f"Documents joined: {found['documents']:,}; pieces: {found['pieces']:,}; seed {found['seed']}.",
        "Training had 1024 + 1024: --inputs-length and --targets-length set that.",
        "<0> is sentinel <extra_id_0>, ⟦ ⟧ hold noise, ↵ ends a line, </s> is the end id.",
    ):
        say(to, line, "dim")
    for one in found["examples"]:
        _example(one, vocabulary, to)
    _row(found["row"], vocabulary, to)


def _example(one: Mapping[str, Any], vocabulary: Vocabulary, to: Console) -> None:
    made = OBJECTIVES[one["objective"]]
    what = (
        "PrefixLM, a prefix of any length"
        if made.mean_noise_span_length is None
        else f"spans of {made.mean_noise_span_length:g}, {made.noise_density:.0%} of the text"
    )
    say(to, f"\nObjective {one['objective']}: {what}; {made.rate:.0%} of the examples", "bold")
    mode = one["mode_length"]
    inputs = Text()
    inputs.append(made.mode.strip() if mode else "", MODE)
    inputs.append_text(_ids(one["inputs"][mode:], vocabulary))
    rows = {
        f"text\n{len(one['segment'])} tokens": _noise(one, vocabulary),
        f"inputs\n{len(one['inputs'])}, no loss": inputs,
        f"targets\n{len(one['targets'])}, loss": _ids(one["targets"], vocabulary),
    }
    for name, cut in one["cut_off"].items():
        if cut:
            rows[f"cut off\n{len(cut)}, {name}"] = _cut(cut, vocabulary)
    _print(rows, to)


def _cut(ids: Sequence[int], vocabulary: Vocabulary) -> Text:
    """Return what there was no room for; a sentinel of it is missing where it should stand."""
    shown = _ids(ids, vocabulary)
    numbers = [n for one in ids if (n := vocabulary.sentinel_number(one)) is not None]
    if numbers:
        missing = ", ".join(f"<{n}>" for n in numbers)
        shown.append(f"  (without {missing}, which the other side has)", CUT)
    return shown


def _noise(one: Mapping[str, Any], vocabulary: Vocabulary) -> Text:
    """Return a segment's text with its noise in brackets, or what is behind a prefix."""
    shown = Text()
    marked = zip(one["segment"], one["noise"], strict=True)
    for is_noise, run in groupby(marked, key=lambda pair: pair[1]):
        text = plain([token for token, _ in run], vocabulary)
        shown.append(f"⟦{text}⟧" if is_noise else text, NOISE if is_noise else "")
    return shown


def _row(row: Mapping[str, Sequence[int]], vocabulary: Vocabulary, to: Console) -> None:
    """Print a packed row as runs of one example and one weight."""
    tokens, segments, weights, positions = (
        np.array(row[f"decoder_{name}"])
        for name in ("target_tokens", "segment_ids", "loss_weights", "positions")
    )
    say(
        to,
        f"\nA packed row, of last segments: {len(tokens)} positions, {segments.max()} examples, "
        f"{np.count_nonzero(tokens)} tokens, {np.count_nonzero(weights)} with a loss",
        "bold",
    )
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("places", "segment", "positions", "loss"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("decoder_target_tokens", overflow="fold")
    changes = np.flatnonzero(np.diff(segments) | np.diff(weights)) + 1
    for places in np.split(np.arange(len(tokens)), changes):
        first, last = places[0], places[-1]
        padding = tokens[first] == PAD
        text = Text("padding", ENDS) if padding else _ids(tokens[places].tolist(), vocabulary)
        shown.add_row(
            f"{first}-{last}",
            str(segments[first]),
            "" if padding else f"{positions[first]}-{positions[last]}",
            str(weights[first]),
            text,
        )
    to.print(shown)


def _print(rows: Mapping[str, Text], to: Console) -> None:
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(no_wrap=True, style="dim", width=13)
    shown.add_column(overflow="fold")
    for name, text in rows.items():
        shown.add_row(name, text)
    to.print(shown)


def _ids(ids: Sequence[int], vocabulary: Vocabulary) -> Text:
    """Return ids as text in which sentinels and ends are seen."""
    shown = Text()
    for kind, run in groupby(ids, key=lambda one: _kind(one, vocabulary)):
        tokens = list(run)
        if kind == "sentinel":
            for one in tokens:
                shown.append(f"<{vocabulary.sentinel_number(one)}>", SENTINEL)
        elif kind == "end":
            shown.append("</s>" * len(tokens), ENDS)
        else:
            shown.append(plain(tokens, vocabulary))
    return shown


def _kind(token: int, vocabulary: Vocabulary) -> str:
    if token == END:
        return "end"
    return "text" if vocabulary.sentinel_number(token) is None else "sentinel"


def plain(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """Return pieces as they stand one after another, in one line; bytes are put together."""
    parts = []
    pieces = zip(ids, vocabulary.pieces(ids), strict=True)
    for is_byte, run in groupby(pieces, key=lambda one: vocabulary.processor.is_byte(int(one[0]))):
        found = [piece for _, piece in run]
        if is_byte:
            parts.append(bytes(int(one[3:5], 16) for one in found).decode(errors="replace"))
        else:
            parts += [one.replace("▁", " ") for one in found]
    return "".join(parts).replace("\n", "↵").replace("\t", "→").replace("\r", "␍")
