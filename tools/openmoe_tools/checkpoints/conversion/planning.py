"""What a conversion will write: every tensor's place, shape and dtype, before anything is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from openmoe_conformance.outcome import UsageError
from openmoe_spec.layouts import layout
from openmoe_spec.places import Placed, place, stored_shapes
from openmoe_tools.checkpoints import digests, settings
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.safetensors_writer import SafetensorsWriter
from openmoe_tools.checkpoints.containers.stored import Unreadable
from openmoe_tools.checkpoints.containers.writers import OrbaxWriter, Out, T5XWriter, Writer
from openmoe_tools.checkpoints.verification import structure

CONTAINERS = ("t5x", "orbax", "hf")
LAYOUTS = ("port", "per_expert")


@dataclass(frozen=True)
class Plan:
    """What a conversion will write.

    places    where each tensor of ours goes
    tensors   what is written, by its name there
    files     what goes along, by name
    left_out  what of the source goes nowhere: the optimizer's, and tensors without a place
    """

    source: Checkpoint
    to: str
    cast: str | None
    places: Mapping[str, Placed]
    tensors: Mapping[str, Out]
    files: Mapping[str, bytes]
    left_out: tuple[str, ...]
    writer: Writer

    @property
    def size(self) -> int:
        """Return the bytes of what is written, before it is compressed."""
        return sum(one.size for one in self.tensors.values())

    def dtype(self, name: str) -> str:
        """Return the dtype that a tensor of ours is written in."""
        return self.tensors[self.places[name].parts[0].theirs].dtype

    def identity(self) -> str:
        """Return a digest of all that decides what is written, and of the source as it is now."""
        told = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        outs = [(name, out.shape, out.dtype) for name, out in self.tensors.items()]
        places = getattr(self.writer, "place", None)  # of shards: their size is part of it
        said = (_stamps(self.source.reader.path), outs, places, self.to, told)
        return hashlib.sha256(repr(said).encode()).hexdigest()


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Return size and time of change of each file of a source."""
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    stats = [(one, one.stat()) for one in found]
    return [(os.fspath(one), stat.st_size, stat.st_mtime_ns) for one, stat in stats]


def plan(
    source: Checkpoint,
    to: str,
    *,
    config: str | None = None,
    cast: str | None = None,
    names: str = "port",
    shard_size: int = 5 * 10**9,
    force: bool = False,
) -> Plan:
    """Return what a conversion will write; nothing is. Errors: UsageError.

    cast   the dtype of the copy; float16 only with `force`, since it loses range as well as digits
    names  the layout of a Hugging Face folder
    """
    if cast is not None:
        digests.require_weights(cast, f"--cast {cast}")
    if cast == "float16" and not force:
        raise UsageError(
            "--cast float16: loses all beyond 65504 and small values too; take bfloat16, or add --force"
        )
    problems = source.found.problems
    if problems:
        raise Unreadable(f"{source.path}: {problems[0]}")
    if source.found.unknown and not force:
        first, number = source.found.unknown[0], len(source.found.unknown)
        raise Unreadable(
            f"{source.path}: {number} tensors have no place in an OpenMoE model and would be lost, "
            f"{first} the first; --force leaves them out"
        )
    if structure.HEAD not in source.tensors and not force:
        raise Unreadable(
            f"{source.path}: lacks the output projection, {structure.HEAD}; --force goes on without"
        )
    empty = [name for name, placed in source.tensors.items() if 0 in placed.shape]
    if empty:
        raise Unreadable(f"{source.path}: {empty[0]} is empty, which no tensor of a model is")
    chosen = layout(names if to == "hf" else "t5x")
    shapes = {name: placed.shape for name, placed in source.tensors.items()}
    places = place(chosen, shapes)
    dtypes = {
        part.theirs: cast or source.dtype(name)
        for name, placed in places.items()
        for part in placed.parts
    }
    tensors = {name: Out(shape, dtypes[name]) for name, shape in stored_shapes(places).items()}
    model = settings.configuration(source, config)
    wrong = settings.mismatch(source, model)
    if wrong is not None and not force:
        raise Unreadable(
            f"{source.path}: {wrong}; name its own with --config, or go on with --force"
        )
    kinds = set(dtypes.values())
    dtype = kinds.pop() if len(kinds) == 1 else "float32"
    form = names if names == "per_expert" and to == "hf" else to
    files = settings.files(source, model, form, dtype, given=config is not None)
    writer: Writer
    if to == "hf":
        writer = SafetensorsWriter(tensors, names, shard_size)
    elif to == "t5x":
        writer = T5XWriter(tensors, source.step or 0)
    else:
        writer = OrbaxWriter(tensors)
    left_out = (*source.state, *source.found.unknown)
    return Plan(source, to, cast, places, tensors, files, left_out, writer)
