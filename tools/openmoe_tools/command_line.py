"""`openmoe`: the commands, their options and exit codes.

0 holds, 1 does not hold, 2 incomplete or inconclusive, 3 bad usage, unreadable input or a missing
extra. A user's mistake is one line on standard error, never a traceback.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_tools import audit_commands, checkpoint_commands, data_commands, run_commands

app = typer.Typer(
    name="openmoe",
    help=(
        "The executable specification of the OpenMoE language models. Exit codes: 0 holds, "
        "1 does not hold, 2 incomplete or inconclusive, 3 bad usage or unreadable input."
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
vectors_app = typer.Typer(help="Stored vectors: list, import, export.")
app.add_typer(vectors_app, name="vectors")
app.add_typer(data_commands.tokenizer_app, name="tokenizer")
app.add_typer(data_commands.data_app, name="data")
app.add_typer(audit_commands.audit_app, name="audit")
app.command("convert")(checkpoint_commands.convert)
app.command("verify")(checkpoint_commands.verify)
app.command("prepare")(run_commands.prepare)
app.command("train")(run_commands.train)
app.command("eval")(run_commands.evaluate)

BAD_USAGE = 3

IMPLEMENTATION = typer.Option(
    "--implementation",
    "-i",
    metavar="MODULE:ADAPTER",
    help="What to test: `production` (default), `reference`, or package.module:Adapter; text behind an "
    "@ is handed to it: production@2x2x2 runs on that mesh.",
)
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")]


@app.command()
def conform(
    implementation: Annotated[str | None, IMPLEMENTATION] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="quick, standard (default; --mutants: quick) or exhaustive."),
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Run this folder of vectors, and nothing else.")
    ] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Plant every known bug and print what catches it.")
    ] = False,
    identify: Annotated[
        bool,
        typer.Option("--identify", help="Say which choices it makes and which dialect it speaks."),
    ] = False,
    clause: Annotated[
        list[str] | None, typer.Option(help="Run only this clause (may be repeated).")
    ] = None,
    real_input: Annotated[
        bool, typer.Option(help="Include the pass over real text (--no-real-input to leave out).")
    ] = True,
    expected_failures: Annotated[
        Path | None, typer.Option(help="Known defects: a clause and an issue address a line.")
    ] = None,
    failures: Annotated[
        Path, typer.Option(help="Folder where failing inputs are saved for `openmoe replay`.")
    ] = Path("failures"),
    json: JsonFile = None,
    junit: Annotated[Path | None, typer.Option(help="Write the report as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of drawn examples.")] = 20240202,
    jobs: Annotated[
        int, typer.Option(min=0, help="Processes that run checks; 0: one a core, 4 at most.")
    ] = 0,
) -> None:
    """Check an implementation against every clause, all vectors and real text."""
    from openmoe_tools import conforming  # noqa: PLC0415 - each command imports what it needs

    if mutants and (implementation or vectors or clause or expected_failures or junit or html):
        raise UsageError(
            "--mutants runs the kit's own planted bugs: of the other options only --profile, "
            "--json, --seed and --jobs go with it"
        )
    if identify and (mutants or vectors or clause or expected_failures or junit or html):
        raise UsageError(
            "--identify asks its own questions: of the other options only --implementation and "
            "--json go with it"
        )
    if implementation == "":
        raise UsageError("--implementation: is empty; write it as package.module:Adapter")
    request = conforming.Request(
        implementation=implementation or "production",
        profile=profile or ("quick" if mutants else "standard"),
        vectors=vectors,
        clauses=tuple(clause or ()),
        real_input=real_input,
        expected_failures=expected_failures,
        failures=failures,
        json=json,
        junit=junit,
        html=html,
        seed=seed,
        jobs=jobs,
    )
    run = conforming.mutants if mutants else conforming.identify if identify else conforming.conform
    raise typer.Exit(run(request))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A failing input that `openmoe conform` saved.")],
    implementation: Annotated[str, IMPLEMENTATION] = "production",
    json: JsonFile = None,
) -> None:
    """Run one saved failing input again."""
    from openmoe_tools import conforming  # noqa: PLC0415

    raise typer.Exit(conforming.replay(file, implementation, json))


@vectors_app.command("list")
def vectors_list(
    folder: Annotated[Path | None, typer.Argument(help="A folder of vectors.")] = None,
    json: JsonFile = None,
) -> None:
    """List the cases of a folder, or of the vectors that the kit ships."""
    from openmoe_tools import vector_commands  # noqa: PLC0415

    raise typer.Exit(vector_commands.list_cases(folder, json))


@vectors_app.command("import")
def vectors_import(
    source: Annotated[Path, typer.Argument(help="A folder in an upstream layout.")],
    target: Annotated[Path, typer.Argument(help="A new folder for the project's own layout.")],
) -> None:
    """Write a folder of upstream vectors in the project's own layout, with hashes and clauses."""
    from openmoe_tools import vector_commands  # noqa: PLC0415

    raise typer.Exit(vector_commands.import_folder(source, target))


@vectors_app.command("export")
def vectors_export(
    target: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Copy the vectors that the kit ships, for use in other languages."""
    from openmoe_tools import vector_commands  # noqa: PLC0415

    raise typer.Exit(vector_commands.export(target))


@app.command()
def inspect(
    config: Annotated[
        str,
        typer.Argument(
            help="A configuration: base, 8b, 34b, a JSON file, a folder that holds config.json; or a "
            "checkpoint: a file or folder that holds tensors."
        ),
    ],
    dialect: Annotated[str, typer.Option(help="t5x, torch_port or paper.")] = "t5x",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a pass (default: a training run's microbatch, else 1)."),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a row (default: the longest).")
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Expert replicas R, which groups depend on.")
    ] = 1,
    every_layer: Annotated[
        bool, typer.Option("--all", help="List every layer's tensors, not one line for equals.")
    ] = False,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics", help="Of a checkpoint: read all values, and say what is odd about them."
        ),
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=0, help="Threads that read for --statistics; 0: one a core.")
    ] = 0,
    json: JsonFile = None,
) -> None:
    """Print what a configuration amounts to, or what a checkpoint holds."""
    from openmoe_tools import inspecting  # noqa: PLC0415
    from openmoe_tools.checkpoints.contents import describing  # noqa: PLC0415

    if describing.is_checkpoint(config):
        if (dialect, batch, length, replicas) != ("t5x", None, None, 1):
            raise UsageError(
                f"{config}: is a checkpoint; --dialect, --batch, --length and --replicas go with a "
                "configuration"
            )
        asked = describing.Request(config, every_layer, statistics, jobs, json)
        raise typer.Exit(describing.inspect(asked))
    if statistics:
        raise UsageError(f"--statistics reads a checkpoint's values, and {config} is none")
    request = inspecting.Request(
        source=config,
        dialect=dialect,
        batch=batch,
        length=length,
        replicas=replicas,
        every_layer=every_layer,
        json=json,
    )
    raise typer.Exit(inspecting.inspect(request))


@app.command()
def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder with config.json and model.safetensors, a run's or one of its steps; with "
            "--random what `openmoe inspect` takes."
        ),
    ],
    tokens: Annotated[
        list[str] | None, typer.Option(help='A prompt of ids, as "14 77 49" (may be repeated).')
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A prompt of text (may be repeated).")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A SentencePiece model: reads --text, shows new text (default: the run's own)."
        ),
    ] = None,
    random: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="Draw fresh weights, to try it out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="New tokens of a prompt.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="0: the best token each time.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among the k best; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Draw among the fewest that hold this mass; 0: all.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the draws.")] = 0,
    implementation: Annotated[
        str | None, typer.Option(help="production (default), or reference, which needs no JAX.")
    ] = None,
    dialect: Annotated[
        str, typer.Option(help="t5x, or torch_port: the port's greedy loop, on the reference.")
    ] = "t5x",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    mesh: run_commands.OnMesh = None,
    cpu_devices: run_commands.CpuDevices = None,
    json: JsonFile = None,
) -> None:
    """Continue prompts with a model's own weights."""
    from openmoe_tools import continuing, generating  # noqa: PLC0415

    request = generating.Request(
        model=model,
        tokens=tuple(tokens or ()),
        text=tuple(text or ()),
        tokenizer=tokenizer,
        random=random,
        max_new_tokens=max_new_tokens,
        choice=continuing.Choice(temperature, top_k, top_p, seed),
        implementation=implementation,
        dialect=dialect,
        dtype=dtype,
        mesh=mesh,
        cpu_devices=cpu_devices,
        json=json,
    )
    raise typer.Exit(generating.generate(request))


@app.command()
def bench(
    rounds: Annotated[
        int, typer.Option(min=1, help="Interleaved rounds of the layer's timing.")
    ] = 16,
    tokens: Annotated[int, typer.Option(min=16, help="Tokens of the layer's one group.")] = 4096,
    output: Annotated[
        Path | None, typer.Option(help="Write the report as a Markdown page.")
    ] = None,
) -> None:
    """Time the production layer and model against the bounds of their matrix products."""
    from openmoe_tools import benchmarking, conforming  # noqa: PLC0415

    conforming.require_jax("openmoe bench")
    benchmarking.bench(rounds, tokens, output)


@app.command()
def version() -> None:
    """Print the versions of the distribution and of the specification."""
    typer.echo(f"openmoe-spec {__version__}, specification {SPEC_VERSION}")


def main() -> None:
    """Run the command line; turn a user's mistake into one line and exit code 3."""
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        _complain(str(error), error.exit_code)
    except TyperException as error:
        message = error.format_message().rstrip(".")
        _complain(f"{message}; `openmoe --help` shows what there is")
    except (typer.Abort, KeyboardInterrupt):
        _complain("interrupted: nothing was decided")
    except OSError as error:
        _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int = BAD_USAGE) -> None:
    typer.echo(f"openmoe: {' '.join(message.split())}", err=True)
    sys.exit(code)
