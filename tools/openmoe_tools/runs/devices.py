"""Which devices a command runs on: those of this process, or of several that find each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from openmoe_conformance.outcome import UsageError


@dataclass(frozen=True)
class Devices:
    """What was asked for.

    cpu          devices that JAX makes of the processor, to try out a mesh; None: as they are
    distributed  processes find each other by what their cluster tells them
    coordinator  address of the first process, with `processes` and `process`, where none tells
    """

    cpu: int | None = None
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def begin(asked: Devices) -> None:
    """Start JAX's own runtime as asked, before anything else uses it. Errors: UsageError."""
    import jax  # noqa: PLC0415 - an optional extra

    explicit = (asked.coordinator, asked.processes, asked.process)
    if any(one is not None for one in explicit):
        if any(one is None for one in explicit):
            raise UsageError("--coordinator, --processes and --process: give all three, or none")
        assert asked.processes is not None
        assert asked.process is not None
        if asked.process >= asked.processes:
            raise UsageError(f"--process {asked.process}: must be below --processes")
    if asked.cpu is not None:
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
        jax.config.update("jax_num_cpu_devices", asked.cpu)  # type: ignore[no-untyped-call]
    if not asked.distributed and asked.coordinator is None:
        return
    try:
        jax.distributed.initialize(asked.coordinator, asked.processes, asked.process)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"the processes did not find each other ({reason}); outside a cluster that JAX knows, "
            "give --coordinator HOST:PORT, --processes and --process"
        ) from error


def sizes(mesh: str) -> tuple[int, int, int]:
    """Return data, expert and model of a text such as 2x2x1. Errors: UsageError."""
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})", mesh)
    if found is None:
        raise UsageError(f"--mesh {mesh}: must be sizes of data x expert x model, as 2x2x1")
    data, expert, model = map(int, found.groups())
    return data, expert, model


def is_first() -> bool:
    """Return whether this is the process that prints and writes."""
    import jax  # noqa: PLC0415

    return jax.process_index() == 0
