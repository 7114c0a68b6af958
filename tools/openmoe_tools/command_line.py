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

BAD_USAGE = 3

IMPLEMENTATION = typer.Option(
    "--implementation",
    "-i",
    metavar="MODULE:ADAPTER",
    help="What to test: `production` (default), `reference`, or package.module:Adapter.",
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
    raise typer.Exit(conforming.mutants(request) if mutants else conforming.conform(request))


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
def bench(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds of each timing.")] = 16,
    tokens: Annotated[int, typer.Option(min=16, help="Tokens of the one group.")] = 4096,
    output: Annotated[
        Path | None, typer.Option(help="Write the report as a Markdown page.")
    ] = None,
) -> None:
    """Time the production layer against the bound of its matrix products."""
    from openmoe_tools import conforming  # noqa: PLC0415

    conforming.require_jax("openmoe bench")
    from openmoe_production import bench as benchmark  # noqa: PLC0415

    page = ("--no-write",) if output is None else ("--output", str(output))
    benchmark.main(("--rounds", str(rounds), "--tokens", str(tokens), *page))


@app.command()
def version() -> None:
    """Print the versions of the distribution and of the specification."""
    typer.echo(f"openmoe-spec {__version__}, specification {SPEC_VERSION}")


def main() -> None:
    """Run the command line; turn a user's mistake into one line and exit code 3."""
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        _complain(str(error))
    except TyperException as error:
        message = error.format_message().rstrip(".")
        _complain(f"{message}; `openmoe --help` shows what there is")
    except (typer.Abort, KeyboardInterrupt):
        _complain("interrupted: nothing was decided")
    except OSError as error:
        _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> None:
    typer.echo(f"openmoe: {' '.join(message.split())}", err=True)
    sys.exit(BAD_USAGE)
