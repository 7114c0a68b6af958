"""`openmoe tokenizer` and `openmoe data`: the commands and their options."""
# ruff: noqa: PLR0917, FBT002 - the command line library reads signatures

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openmoe_conformance.outcome import UsageError

tokenizer_app = typer.Typer(help="SentencePiece models: train one, say what one is.")
data_app = typer.Typer(help="Training data: examples as text, the pipeline over real text.")

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        help="JSON lines (.jsonl, .ndjson), Parquet (.parquet), text files (any other name), and "
        "folders, of which every file is read."
    ),
]
Field = Annotated[str, typer.Option(help="Field or column of the text.")]
StandardLibrary = Annotated[
    bool,
    typer.Option("--standard-library", help="Take functions of Python's own library, not FILES."),
]
LONGEST = 2**20
InputsLength = Annotated[
    int, typer.Option(min=3, max=LONGEST, help="Length of inputs, 3 to 1,048,576.")
]
TargetsLength = Annotated[
    int,
    typer.Option(min=2, max=LONGEST, help="Length of targets, 2 to 1,048,576; training had 1024."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")]


@tokenizer_app.command("train")
def tokenizer_train(
    files: Files = None,
    output: Annotated[Path, typer.Option(help="The model file to write.")] = Path("own.model"),
    pieces: Annotated[int, typer.Option(min=1, help="Pieces, special ones included.")] = 8000,
    field: Field = "text",
    megabytes: Annotated[
        float,
        typer.Option(
            min=0.001, max=1e6, help="Text to train on: documents that a fixed seed, 0, draws."
        ),
    ] = 10.0,
    standard_library: StandardLibrary = False,
    json: JsonFile = None,
) -> None:
    """Train a unigram model with byte fallback and the special ids of umT5's.

    Exit codes: 0 written, 3 bad usage or unreadable input. Needs the extra `text`; Parquet needs `data`.
    """
    from openmoe_tools.data import tokenizing  # noqa: PLC0415

    request = tokenizing.Request(
        paths=tuple(files or ()),
        output=output,
        pieces=pieces,
        field=field,
        megabytes=megabytes,
        standard_library=standard_library,
        json=json,
    )
    raise typer.Exit(tokenizing.train(request))


@tokenizer_app.command("inspect")
def tokenizer_inspect(
    model: Annotated[Path, typer.Argument(help="A SentencePiece model file.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Show the pieces of a text (may be repeated).")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Print a model's pieces, ids, sentinels and embedding rows, and whether it can be umT5's.

    Exit codes: 0 shown, 3 no such model. Needs the extra `text`.
    """
    from openmoe_tools.data import tokenizing  # noqa: PLC0415

    raise typer.Exit(tokenizing.inspect(model, tuple(text or ()), json))


@data_app.command("preview")
def data_preview(
    files: Files = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A SentencePiece model (default: a small one trained on the files)."),
    ] = None,
    objective: Annotated[
        int | None, typer.Option(min=0, max=5, help="Show one objective (default: all six).")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Examples of each objective.")] = 1,
    inputs_length: InputsLength = 64,
    targets_length: TargetsLength = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    field: Field = "text",
    standard_library: StandardLibrary = False,
    json: JsonFile = None,
) -> None:
    """Show what each objective makes of a text, and a packed row with its weights.

    Exit codes: 0 shown, 3 bad usage or unreadable input. Needs the extra `data`.
    """
    from openmoe_tools.data import previewing  # noqa: PLC0415

    request = previewing.Request(
        paths=tuple(files or ()),
        field=field,
        standard_library=standard_library,
        tokenizer=tokenizer,
        objective=objective,
        examples=examples,
        inputs_length=inputs_length,
        targets_length=targets_length,
        seed=seed,
        json=json,
    )
    raise typer.Exit(previewing.preview(request))


@data_app.command("feed")
def data_feed(
    files: Files = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A SentencePiece model; --standard-library trains one without it."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Feed until so many positions hold a token.")
    ] = (1_000_000),
    mode: Annotated[str, typer.Option(help="ul2, or full_lm: the causal stream.")] = "ul2",
    inputs_length: Annotated[
        int | None,
        typer.Option(
            min=3,
            max=LONGEST,
            help="Length of inputs, 3 to 1,048,576, of ul2 alone (default: 1024).",
        ),
    ] = None,
    targets_length: TargetsLength = 1024,
    batch: Annotated[
        int, typer.Option(min=1, max=65_536, help="Rows of a batch, 65,536 at most.")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn.")] = 0,
    shuffle: Annotated[
        bool,
        typer.Option(help="Take documents in an order of each pass (--no-shuffle: in theirs)."),
    ] = True,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Share of the examples of each of FILES, in their order; above 0."),
    ] = None,
    process: Annotated[int, typer.Option(min=0, help="Which process this is, from 0.")] = 0,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the documents, every n-th one each.")
    ] = 1,
    workers: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Threads that read and tokenise ahead in each stream, 64 at most."
        ),
    ] = 0,
    ahead: Annotated[
        int,
        typer.Option(
            min=0,
            max=1024,
            help="Batches made ahead in a process of its own, 1024 at most; 0: in this one.",
        ),
    ] = 0,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Go on from this file, where there is one; written every second and at the end."
        ),
    ] = None,
    field: Field = "text",
    standard_library: StandardLibrary = False,
    json: JsonFile = None,
) -> None:
    """Run the pipeline over real text and compare what it feeds with what is predicted.

    Exit codes: 0 as predicted, 1 not, 2 an objective has no document, 3 bad usage or interrupted.
    Needs the extra `data`.
    """
    from openmoe_tools.data import feeding  # noqa: PLC0415

    if mode == "full_lm" and inputs_length is not None:
        raise UsageError("--inputs-length: is of ul2 alone; --mode full_lm has targets only")
    request = feeding.Request(
        paths=tuple(files or ()),
        weights=tuple(weight or ()),
        field=field,
        standard_library=standard_library,
        tokenizer=tokenizer,
        mode=mode,
        tokens=tokens,
        inputs_length=inputs_length or 1024,
        targets_length=targets_length,
        batch=batch,
        seed=seed,
        shuffle=shuffle,
        process=process,
        processes=processes,
        workers=workers,
        ahead=ahead,
        state=state,
        json=json,
    )
    raise typer.Exit(feeding.feed(request))


@data_app.command("corpus")
def data_corpus(
    folder: Annotated[Path, typer.Argument(help="Folder of the corpus; made where there is none.")],
    recipe: Annotated[
        str,
        typer.Option(help="machine: what is installed; packages: downloaded from registries."),
    ] = "machine",
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="Only this slice (may be repeated; default: all)."),
    ] = None,
    megabytes: Annotated[
        float | None,
        typer.Option(min=0.001, help="Of a slice at most (default: 0.5; of packages 2)."),
    ] = None,
    downloads: Annotated[
        Path | None, typer.Option(help="Of packages: where they are kept, and used again.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of documents.")] = 0,
    json: JsonFile = None,
) -> None:
    """Make text of several slices for `openmoe audit run --corpus`: code, languages, prose, reference.

    Exit codes: 0 made, 2 a slice is missing, 3 bad usage or unreadable input.
    """
    from openmoe_tools.data.slices import building  # noqa: PLC0415

    request = building.Request(
        folder=folder,
        recipe=recipe,
        slices=tuple(slices or ()),
        megabytes=megabytes,
        downloads=downloads,
        seed=seed,
        json=json,
    )
    raise typer.Exit(building.build(request))
