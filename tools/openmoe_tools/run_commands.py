"""`openmoe train`: the command and its options."""
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
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")]


def train(
    config: Annotated[
        Path,
        typer.Argument(help="A TOML file; SPEC.md chapter 20 and production/README.md."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run (default: the TOML file's)."),
    ] = None,
    cpu_devices: CpuDevices = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    json: JsonFile = None,
) -> None:
    """Train a model, or go on with a run where it was left.

    Checkpoints and metrics lie in the run's folder. SIGTERM and Ctrl-C save and end the run.
    Exit codes: 0 ended, or stopped by SIGTERM and saved, 1 a loss or gradient was not finite, 3 bad
    usage, unreadable input or an interrupt. Needs the extras `production` and `data`.
    """
    from openmoe_tools.runs import devices, training  # noqa: PLC0415

    asked = devices.Devices(cpu_devices, distributed, coordinator, processes, process)
    raise typer.Exit(training.train(training.Request(config, output, asked, json)))
