"""The options of `openmoe convert` and `openmoe verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")]
Memory = Annotated[str, typer.Option(help="What the program may hold at once, as 2GB.")]
Jobs = Annotated[int, typer.Option(min=0, help="Tensors worked on at once; 0: one a core.")]
Step = Annotated[
    int | None, typer.Option(min=0, help="A step of the source's folder (default: the newest).")
]
Config = Annotated[
    str | None,
    typer.Option(
        help="Its configuration, where none lies with it: base, 8b, 34b, a file, a folder."
    ),
]


def convert(
    source: Annotated[
        str, typer.Argument(help="A checkpoint: T5X, Orbax, safetensors, PyTorch, a run's folder.")
    ],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[str, typer.Option(help="t5x, orbax or hf.")],
    cast: Annotated[
        str | None,
        typer.Option(help="Round all tensors to this dtype: bfloat16, float32, float16 (--force)."),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(help="Of a Hugging Face folder: port, or per_expert as openmoe-pt has it."),
    ] = "port",
    config: Config = None,
    step: Step = None,
    shard_size: Annotated[str, typer.Option(help="The largest file of safetensors.")] = "5GB",
    memory: Memory = "2GB",
    jobs: Jobs = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Leave out tensors that have no place; allow float16.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan and write nothing; of base, 8b or 34b too."),
    ] = False,
    json: JsonFile = None,
) -> None:
    """Write a checkpoint in another container, read it again, and only then give it its name."""
    from openmoe_tools.checkpoints.conversion import convert_command  # noqa: PLC0415

    request = convert_command.Request(
        source=source,
        target=target,
        to=to,
        step=step,
        cast=cast,
        layout=layout,
        config=config,
        shard_size=shard_size,
        memory=memory,
        jobs=jobs,
        force=force,
        dry_run=dry_run,
        json=json,
    )
    raise typer.Exit(convert_command.convert(request))


def verify(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE TARGET",
            help="Two checkpoints; with --certificate the target alone will do.",
        ),
    ],
    cast: Annotated[
        str | None, typer.Option(help="The dtype that the target was rounded to on purpose.")
    ] = None,
    ulps: Annotated[
        int,
        typer.Option(min=0, help="What the numeric tier lets pass, in units of the last place."),
    ] = 0,
    functional: Annotated[
        bool | None,
        typer.Option(help="Run both models on probes (default: where they are small enough)."),
    ] = None,
    dialect: Annotated[
        str, typer.Option(help="What the source speaks: t5x, torch_port, paper.")
    ] = "t5x",
    target_dialect: Annotated[
        str | None, typer.Option(help="What the target speaks (default: as the source).")
    ] = None,
    outputs: Annotated[
        Path | None,
        typer.Option(help="What the target's own program printed: an npz of input_ids and logits."),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(help="Write ids for the target's own program, an npz of input_ids, and stop."),
    ] = None,
    implementation: Annotated[
        str,
        typer.Option("--implementation", "-i", help="Runs the models: reference or production."),
    ] = "reference",
    config: Config = None,
    step: Step = None,
    memory: Memory = "2GB",
    jobs: Jobs = 0,
    certify: Annotated[
        Path | None, typer.Option(help="Write a certificate that others can check again.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Check the files against this certificate, offline.")
    ] = None,
    json: JsonFile = None,
    junit: Annotated[Path | None, typer.Option(help="Write the report as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
) -> None:
    """Say whether two checkpoints are one model: structure, bits, numbers, function; and what is wrong."""
    from openmoe_conformance.outcome import UsageError  # noqa: PLC0415
    from openmoe_tools.checkpoints.verification import verifying  # noqa: PLC0415

    if len(checkpoints) > 2:
        raise UsageError(f"verify: takes two checkpoints, got {len(checkpoints)}")
    request = verifying.Request(
        source=checkpoints[0] if len(checkpoints) > 1 else None,
        target=checkpoints[-1],
        step=step,
        cast=cast,
        ulps=ulps,
        config=config,
        functional=functional,
        dialect=dialect,
        target_dialect=target_dialect,
        outputs=outputs,
        probes=probes,
        implementation=implementation,
        memory=memory,
        jobs=jobs,
        certify=certify,
        certificate=certificate,
        json=json,
        junit=junit,
        html=html,
    )
    raise typer.Exit(verifying.verify(request))
