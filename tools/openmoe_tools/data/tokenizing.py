"""`openmoe tokenizer`: train a SentencePiece model, and say what one is and whether it can be umT5's.

The report's schema is `tokenizer.schema.json`, beside this file.
Spec: VOCAB-01..VOCAB-06, OBJ-01.
"""

from __future__ import annotations

import hashlib
import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.data import END, OBJECTIVES, PAD
from openmoe_tools import files
from openmoe_tools.data import opening
from openmoe_tools.terminal import console, say

if TYPE_CHECKING:  # an optional extra may be missing
    from openmoe_production.vocabulary import Vocabulary

SCHEMA = "openmoe-tokenizer/1"


@dataclass(frozen=True)
class Request:
    """The options of `openmoe tokenizer train`."""

    paths: tuple[Path, ...]
    output: Path
    pieces: int
    field: str
    megabytes: float
    standard_library: bool
    json: Path | None


def train(request: Request) -> int:
    """Train a model, write it, and print what it is; return 0. Errors: UsageError."""
    files.writable(request.output, request.json, read=request.paths)
    opening.require("openmoe tokenizer", "sentencepiece", extra="text")
    given = opening.documents(
        request.paths,
        field=request.field,
        standard_library=request.standard_library,
    )
    to = console()
    with to.status("training"):  # shown on a terminal alone
        model = opening.trained(
            given, pieces=request.pieces, max_bytes=round(1e6 * request.megabytes)
        )
    files.write(request.output, lambda: model)
    say(to, f"{request.output}: written\n")
    return _tell(request.output, model, (), request.json)


def inspect(path: Path, texts: tuple[str, ...], json: Path | None) -> int:
    """Print what a model file is; return 0. Errors: UsageError."""
    files.writable(json, read=[path])
    opening.require("openmoe tokenizer", "sentencepiece", extra="text")
    return _tell(path, path.read_bytes(), texts, json)


def _tell(path: Path, model: bytes, texts: tuple[str, ...], json: Path | None) -> int:
    vocabulary = opening.vocabulary(path)
    made = report(path, model, vocabulary, texts)
    render(made, console())
    files.write(json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    return 0


def report(
    path: Path, model: bytes, vocabulary: Vocabulary, texts: tuple[str, ...]
) -> dict[str, Any]:
    """Return what a model is, as data."""
    return {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "file": str(path),
        "bytes": len(model),
        "sha256": hashlib.sha256(model).hexdigest(),
        "pieces": vocabulary.num_pieces,
        "sentinels": vocabulary.num_sentinels,
        "vocabulary_size": vocabulary.size,
        "num_embeddings": vocabulary.num_embeddings,
        "first_sentinel": vocabulary.sentinel(0),
        "last_sentinel": vocabulary.sentinel(vocabulary.num_sentinels - 1),
        "pad": PAD,
        "end": END,
        "start": vocabulary.start,
        "unknown": vocabulary.unknown,
        "byte_fallback": vocabulary.byte_fallback,
        "modes": {one.mode: vocabulary.encode(one.mode).tolist() for one in OBJECTIVES},
        "umt5": [
            {"what": name, "found": found, "umt5": wanted}
            for name, (found, wanted) in vocabulary.differences_from_umt5().items()
        ],
        "texts": [
            {"text": text, "ids": ids.tolist(), "pieces": vocabulary.pieces(ids)}
            for text in texts
            for ids in [vocabulary.encode(text)]
        ],
    }


def render(made: dict[str, Any], to: Console) -> None:
    """Print the whole report."""
    say(to, f"openmoe tokenizer: {made['file']}", "bold")
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    rows = {
        "sha256": made["sha256"],
        "file": f"{made['bytes']:,} bytes",
        "pieces": f"{made['pieces']:,}",
        "ids with sentinels": f"{made['vocabulary_size']:,}",
        "rows of the embedding": f"{made['num_embeddings']:,}",
        "<extra_id_0>": str(made["first_sentinel"]),
        f"<extra_id_{made['sentinels'] - 1}>": str(made["last_sentinel"]),
        "padding, end": f"{made['pad']}, {made['end']}",
        "start, unknown": f"{made['start']}, {made['unknown']}",
        "byte fallback": "yes" if made["byte_fallback"] else "no",
    }
    rows |= {mode: " ".join(map(str, ids)) for mode, ids in made["modes"].items()}
    for name, value in rows.items():
        shown.add_row(name, value)
    to.print(shown)
    if made["umt5"]:
        differ = "; ".join(
            f"{one['what']} {one['found']}, umT5 has {one['umt5']}" for one in made["umt5"]
        )
        say(to, f"\nThis is not umT5's model: {differ}.")
    else:
        say(
            to,
            "\nThis is umT5's model as far as can be told: number of pieces, special ids, byte "
            "fallback and the\npublished ids of a few texts fit.",
        )
    for one in made["texts"]:
        say(to, f"\n{one['text']}", "bold")
        say(
            to, " ".join(f"{piece}={i}" for piece, i in zip(one["pieces"], one["ids"], strict=True))
        )
