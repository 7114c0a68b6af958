"""`openmoe audit`: the commands and their options."""
# ruff: noqa: PLR0917, FBT002 - the command line library reads signatures

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openmoe_tools.run_commands import CpuDevices, OnMesh

audit_app = typer.Typer(
    help="What a model's routers do with text: run, report, query, merge, import, export."
)

Folder = Annotated[Path, typer.Argument(help="Folder of an audit.")]
Out = Annotated[Path, typer.Option(help="Folder of the audit; made where there is none.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")]


@audit_app.command("run")
def audit_run(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint of any kind, or a run's folder: its newest step.")
    ],
    out: Out,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="SLICE=PATH", help="Text of a slice (may be repeated)."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="A folder of SLICE.jsonl, as `openmoe data corpus` makes.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A SentencePiece model (default: the run's own).")
    ] = None,
    field: Annotated[str, typer.Option(help="Field or column of the text.")] = "text",
    rows: Annotated[
        int, typer.Option(min=1, max=4096, help="Rows of a call, which share capacity groups.")
    ] = 8,
    length: Annotated[
        int | None, typer.Option(min=2, help="Ids of a row (default: the model's, 512 at most).")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens read of each slice, its last document whole (default: all)."
        ),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Write every token's routing as Parquet too.")
    ] = False,
    gates: Annotated[
        bool,
        typer.Option(
            "--gates", help="Of a trace: gates and second margins too, which take most of its room."
        ),
    ] = False,
    backend: Annotated[
        str, typer.Option(help="production, or reference, which needs no JAX.")
    ] = "production",
    mesh: OnMesh = None,
    cpu_devices: CpuDevices = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    capacity: Annotated[
        str, typer.Option(help="Whose capacity factor is in force: evaluation or training.")
    ] = "evaluation",
    series: Annotated[
        bool, typer.Option("--series", help="Compare the other steps of the run.")
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=CHECKPOINT", help="Compare another checkpoint (may be repeated)."
        ),
    ] = None,
    compared: Annotated[
        int, typer.Option(min=1, help="Tokens that checkpoints are compared on.")
    ] = 50_000,
    certificate: Annotated[
        Path | None,
        typer.Option(help="What `openmoe verify --certify` wrote of this checkpoint."),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only this part of the calls; `openmoe audit merge`."),
    ] = None,
) -> None:
    """Run a model over text and count what its routers choose and what capacity drops.

    The same command goes on with an audit that was interrupted.
    Exit codes: 0 written, 3 bad usage or unreadable input. Needs the extras `audit` and `checkpoints`,
    and `production` unless --backend reference.
    """
    from openmoe_tools.audit.passing import running  # noqa: PLC0415

    request = running.Request(
        checkpoint=checkpoint,
        out=out,
        text=tuple(text or ()),
        corpus=corpus,
        tokenizer=tokenizer,
        field=field,
        rows=rows,
        length=length,
        tokens=tokens,
        trace=trace,
        gates=gates,
        backend=backend,
        mesh=mesh,
        cpu_devices=cpu_devices,
        dtype=dtype,
        capacity=capacity,
        series=series,
        against=tuple(against or ()),
        compared=compared,
        certificate=certificate,
        share=share,
    )
    raise typer.Exit(running.run(request))


@audit_app.command("report")
def audit_report(
    audit: Folder,
    output: Annotated[
        Path | None, typer.Option(help="The page (default: report.html in the audit's folder).")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="A folder for figures as files. Needs the extra `figures`."),
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="pdf or png (may be repeated).")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Write the report: one page that needs no network.

    Exit codes: 0 written, 3 bad usage or unreadable input.
    """
    from openmoe_tools.audit import reporting  # noqa: PLC0415

    request = reporting.Request(audit, output, figures, tuple(formats or ("pdf",)), json)
    raise typer.Exit(reporting.report(request))


@audit_app.command("summary")
def audit_summary(audit: Folder) -> None:
    """Print on one screen which of the paper's findings hold, how strongly, and with what intervals.

    Exit codes: 0 printed, 3 bad usage or unreadable input.
    """
    from openmoe_tools.audit import reporting  # noqa: PLC0415

    raise typer.Exit(reporting.summarise(audit))


@audit_app.command("merge")
def audit_merge(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    audits: Annotated[list[Path], typer.Argument(help="Audits of shares of one text.")],
) -> None:
    """Add up audits that were made of shares of one text by one model.

    Exit codes: 0 written, 3 audits that do not belong together, or unreadable input.
    """
    from openmoe_tools.audit import merging  # noqa: PLC0415

    raise typer.Exit(merging.merge(out, tuple(audits)))


@audit_app.command("import")
def audit_import(
    files: Annotated[list[Path], typer.Argument(help="What was recorded.")],
    form: Annotated[
        str,
        typer.Option("--format", help="port, router_logits, routed_experts, npz or parquet."),
    ],
    out: Out,
    tokens: Annotated[
        Path | None, typer.Option(help="Ids of all tokens, in order: npy, npz or JSON.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="JSON: lengths of the documents in order, or more of each.")
    ] = None,
    choices: Annotated[
        int | None, typer.Option(min=1, help="Experts of a token, where a format does not tell.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Experts of a layer, where a format does not tell.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Sparse layers, to be checked.")] = None,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Ids there are (default: up to the largest).")
    ] = None,
    slice_name: Annotated[
        str, typer.Option("--slice", help="Name of the slice that the text is of.")
    ] = "imported",
    tokenizer: Annotated[
        Path | None, typer.Option(help="A SentencePiece model, to show pieces for ids.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Write a trace of it too.")] = False,
) -> None:
    """Make an audit of routing that was recorded elsewhere.

    port: the published port's dump, a file a layer. router_logits: arrays [N, E] by layer, or [L, N, E].
    routed_experts: [tokens, layers, choices], as serving engines return. npz, parquet: expert [N, L, K] and
    more, or a trace's own folder. What was not recorded is not in the report.
    Exit codes: 0 written, 3 bad usage or unreadable input.
    """
    from openmoe_tools.audit.importing import import_command  # noqa: PLC0415
    from openmoe_tools.audit.importing.recordings import Options  # noqa: PLC0415

    options = Options(choices, experts, layers, vocabulary, tokens, documents, slice_name)
    request = import_command.Request(form, tuple(files), out, options, tokenizer, trace)
    raise typer.Exit(import_command.import_routing(request))


@audit_app.command("query")
def audit_query(
    audit: Folder,
    sql: Annotated[
        str | None, typer.Argument(help="A SELECT (default: what there is to ask).")
    ] = None,
    figure: Annotated[
        str | None, typer.Option(help="The query that derives a figure of the report again.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="Of a figure: which sparse layer, from 0.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="Of a figure: which capacity rule.")] = None,
    expert: Annotated[int, typer.Option(min=0, help="Of a figure: which expert.")] = 0,
    token: Annotated[int | None, typer.Option(min=0, help="Of a figure: which id.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all rows as CSV.")] = None,
    json: JsonFile = None,
) -> None:
    """Ask an audit's trace in SQL.

    Exit codes: 0 answered, 3 bad usage, wrong SQL or unreadable input. Needs the extra `audit`.
    """
    from openmoe_tools.audit.trace import querying  # noqa: PLC0415

    request = querying.Request(audit, sql, figure, json, csv, layer, rule, expert, token)
    raise typer.Exit(querying.query(request))


@audit_app.command("export")
def audit_export(
    audit: Folder,
    output: Annotated[Path, typer.Argument(help="A file .npy, .csv or .json.")],
) -> None:
    """Write loads by layer and expert, in the form that programs which place experts read.

    Exit codes: 0 written, 3 bad usage or unreadable input.
    """
    from openmoe_tools.audit import exporting  # noqa: PLC0415

    raise typer.Exit(exporting.export(exporting.Request(audit, output)))


@audit_app.command("compare")
def audit_compare(
    one: Folder,
    other: Annotated[Path, typer.Argument(help="Another audit of the same text.")],
    json: JsonFile = None,
) -> None:
    """Compare two audits of one text, as of two implementations, token by token.

    Both need `openmoe audit run --trace --gates`. Where choices differ, near-ties are listed, and what they
    displace: drops in their groups, and choices of deeper layers.
    Exit codes: 0 near-ties explain every difference, 1 they do not, 3 bad usage or unreadable input.
    """
    from openmoe_tools.audit import comparing  # noqa: PLC0415

    raise typer.Exit(comparing.compare(comparing.Request(one, other, json)))
