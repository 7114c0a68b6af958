"""`openmoe prepare`, `openmoe train`, `openmoe eval`: the commands and their options."""
# ruff: noqa: PLR0917, FBT002 - the command line library reads signatures

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CpuDevices = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Devices to make of the processor, to try out a mesh."),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed", help="Several processes, which find each other by their cluster."
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="The first process's address, where no cluster tells."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="How many processes there are.")]
Process = Annotated[int | None, typer.Option(min=0, help="Which of them this is, from 0.")]
OnMesh = Annotated[
    str | None,
    typer.Option(
        "--mesh", metavar="DxExM", help="Devices in a mesh of data x expert x model, as 2x2x1."
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")]


Config = Annotated[
    Path,
    typer.Argument(
        help="A TOML file, or a folder with run.toml; production/README.md has its form."
    ),
]
Output = Annotated[Path | None, typer.Option(help="Folder of the run (default: the TOML file's).")]


def prepare(
    preset: Annotated[
        str, typer.Argument(help="small: trained from the start; questions: fine-tuned.")
    ],
    folder: Annotated[Path, typer.Argument(help="Folder of the run; made where there is none.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text of your own (may be repeated; default: what is on the machine)."),
    ] = None,
    megabytes: Annotated[float | None, typer.Option(help="Of text at most (default: 16).")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Of questions: folder of the run to begin with.")
    ] = None,
) -> None:
    """Put text, a tokeniser of its own and settings into a folder, ready for `openmoe train`.

    Exit codes: 0 prepared, 3 bad usage or unreadable input. Needs the extra `data`, and
    questions `production` too.
    """
    from openmoe_tools.runs import preparing  # noqa: PLC0415

    request = preparing.Request(preset, folder, tuple(text or ()), megabytes, start)
    raise typer.Exit(preparing.prepare(request))


def train(
    config: Config,
    output: Output = None,
    cpu_devices: CpuDevices = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    json: JsonFile = None,
) -> None:
    """Train a model, or go on with a run where it was left.

    Checkpoints and metrics lie in the run's folder. SIGTERM saves and ends the run; in a single
    process Ctrl-C does too.
    Exit codes: 0 ended, or stopped by SIGTERM and saved, 1 a loss or gradient was not finite, 3 bad
    usage, unreadable input or an interrupt. Needs the extras `production` and `data`.
    """
    from openmoe_tools.runs import devices, training  # noqa: PLC0415

    asked = devices.Devices(cpu_devices, distributed, coordinator, processes, process)
    raise typer.Exit(training.train(training.Request(config, output, asked, json)))


def evaluate(
    config: Config,
    output: Output = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Text to evaluate on (default: the file's [evaluation])."
        ),
    ] = None,
    field: Annotated[
        str, typer.Option(help="Where the text stands in JSON lines and Parquet of --data.")
    ] = "text",
    step: Annotated[
        int | None, typer.Option(min=1, help="A step that is saved (default: the newest).")
    ] = None,
    every_step: Annotated[
        bool, typer.Option("--every-step", help="Every step that is saved.")
    ] = False,
    mode: Annotated[
        str | None, typer.Option(help="Feed as this stage does (default: as each of them).")
    ] = None,
    batches: Annotated[
        int | None, typer.Option(min=1, help="Batches of each row of the table (default: all).")
    ] = None,
    mesh: OnMesh = None,
    cpu_devices: CpuDevices = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    json: JsonFile = None,
) -> None:
    """Show loss and accuracy of a run's checkpoints by data set, and by what is asked of the text.

    The quantities of the paper's first two figures: token accuracy by data set, and by objective.
    Exit codes: 0 evaluated, 3 bad usage or unreadable input. Needs `production` and `data`.
    """
    from openmoe_tools.runs import devices, evaluating  # noqa: PLC0415

    asked = devices.Devices(cpu_devices, distributed, coordinator, processes, process)
    request = evaluating.Request(
        config=config,
        output=output,
        data=tuple(data or ()),
        field=field,
        step=step,
        every_step=every_step,
        mode=mode,
        batches=batches,
        mesh=mesh,
        devices=asked,
        json=json,
    )
    raise typer.Exit(evaluating.evaluate(request))
