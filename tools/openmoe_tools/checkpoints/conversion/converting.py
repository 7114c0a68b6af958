"""A conversion carried out: a block at a time, to be gone on with after a kill.

What is written stands in `DST.partial` until every tensor has been read again and found to be what
the source has; then the folder gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.checkpoints import model_digest
from openmoe_spec.layouts import TRANSPOSE
from openmoe_spec.places import Part, Placed, Region, region_after, undone
from openmoe_tools.checkpoints import digests, working
from openmoe_tools.checkpoints.containers.opening import Checkpoint, open_checkpoint
from openmoe_tools.checkpoints.containers.regions import apply, blocks
from openmoe_tools.checkpoints.containers.stored import DTYPES, extent
from openmoe_tools.checkpoints.containers.writers import chunk_of, sync, write_file
from openmoe_tools.checkpoints.conversion import journal
from openmoe_tools.checkpoints.conversion.planning import Plan
from openmoe_tools.checkpoints.digests import Hasher, cast
from openmoe_tools.checkpoints.working import Budget

Report = Callable[[int], None]


@dataclass(frozen=True)
class Converted:
    """What became of a conversion: digests by tensor as written, and how many were done before."""

    digests: Mapping[str, str]
    model_digest: str
    resumed: int


def convert(
    plan_: Plan, target: Path, budget: Budget, *, written: Report, reread: Report
) -> Converted:
    """Carry a plan out, or go on with it; the folder gets its name when it is complete.

    Errors: UsageError. After any, and after a kill, the same call goes on where this one ended.
    """
    partial = target.with_name(target.name + journal.PARTIAL)
    require_new(target)
    source = plan_.source.reader.path.resolve()
    if source in target.resolve().parents:
        raise UsageError(f"{target}: lies in the source, which is not touched; name another folder")
    for name in plan_.places:  # refused before anything is written
        working.must_stream(plan_.source, name, budget)
    with journal.opened(target, plan_.identity()) as (done, note):
        _require_room(plan_, partial, set(done))
        partial.mkdir(exist_ok=True)
        plan_.writer.begin(partial)
        left = [name for name in plan_.places if name not in done]
        for name in done:
            written(plan_.source.size(name))

        def work(name: str) -> None:
            found = _tensor(plan_, name, budget)
            for theirs in {part.theirs for part in plan_.places[name].parts}:
                plan_.writer.finish(theirs)
            note(name, found)

        working.each(
            sorted(left, key=lambda name: -plan_.source.size(name)),
            work,
            budget=budget,
            need=lambda name: _need(plan_, name, budget),
            done=lambda name: written(plan_.source.size(name)),
        )
        for file, content in plan_.files.items():
            write_file(partial / file, content)
        plan_.writer.close()
        expected = note.digests
        _reread(partial, expected, budget, reread)
        partial.rename(target)
        sync(target.absolute().parent)
    target.with_name(target.name + journal.JOURNAL).unlink(missing_ok=True)
    return Converted(expected, model_digest(expected), len(done))


def require_new(target: Path) -> None:
    """Refuse a target that is there, or whose folder is not. Errors: UsageError."""
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target}: is there already; name a new folder")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: its folder does not exist")


def _need(plan_: Plan, name: str, budget: Budget) -> int:
    """Return the bytes that writing a tensor holds: a block there, one here, and its encoding."""
    block = max(_limit(plan_, part, budget) for part in plan_.places[name].parts)
    size = plan_.source.size(name)
    return working.need_of(plan_.source, name, budget) + 3 * min(block, size)


def _limit(plan_: Plan, part: Part, budget: Budget) -> int:
    """Return the bytes of the blocks in which a part is written."""
    out = plan_.tensors[part.theirs]
    chunk = 0
    if plan_.to != "hf":
        chunk = int(np.prod(chunk_of(out))) * DTYPES[out.dtype].itemsize
    turned = TRANSPOSE in part.operations
    return max(budget.large // 2 if turned else budget.block, chunk)


def _tensor(plan_: Plan, name: str, budget: Budget) -> str:
    """Write a tensor; return the digest of what was written, in the order of ours."""
    source, placed, dtype = plan_.source, plan_.places[name], plan_.dtype(name)
    hasher = Hasher(dtype, placed.shape)
    if working.must_stream(source, name, budget):
        for region, values in _rows(source, name, budget):
            piece = cast(values, dtype)
            hasher.add(piece)
            _put(plan_, placed, region, piece)
        return hasher.digest()
    in_order = True
    for part in placed.parts:
        out = plan_.tensors[part.theirs]
        limit = _limit(plan_, part, budget)
        regions = list(
            blocks(out.shape, DTYPES[dtype].itemsize, limit, plan_.writer.multiple(part.theirs))
        )
        in_order = in_order and (len(regions) == 1 or TRANSPOSE not in part.operations)
        for region in regions:
            own = region_after(undone(part.operations), region)
            if part.matrix is not None:
                own = ((part.matrix, part.matrix + 1), *own)
            piece = cast(source.read(name, own), dtype)
            if in_order:
                hasher.add(piece)
            if part.matrix is not None:
                piece = piece[0]
            plan_.writer.write(part.theirs, region, apply(part.operations, piece))
    if in_order:
        return hasher.digest()
    made = digests.digest(source, name, budget, casts=(dtype,))
    return made.cast.get(dtype, made.digest)


def _rows(source: Checkpoint, name: str, budget: Budget) -> Iterator[tuple[Region, ndarray]]:
    """Yield regions in C order of a tensor that comes as a stream."""
    shape, dtype = source.tensors[name].shape, DTYPES[source.dtype(name)]
    pieces, held = working.values(source, name, budget), np.empty(0, dtype)
    for region in blocks(shape, dtype.itemsize, budget.block):
        number = int(np.prod(extent(region)))
        gathered = [held]
        while sum(len(one) for one in gathered) < number:
            gathered.append(next(pieces))
        joined = np.concatenate(gathered)
        held = joined[number:]
        yield region, joined[:number].reshape(extent(region))
    for _ in pieces:  # to its end, where its length is judged
        pass


def _put(plan_: Plan, placed: Placed, region: Region, values: ndarray) -> None:
    """Write a region of ours to the parts that it belongs to."""
    for part in placed.parts:
        own, piece = region, values
        if part.matrix is not None:
            start, stop = region[0]
            if not start <= part.matrix < stop:
                continue
            own, piece = region[1:], values[part.matrix - start]
        there = region_after(part.operations, own)
        plan_.writer.write(part.theirs, there, apply(part.operations, piece))


def _reread(partial: Path, expected: Mapping[str, str], budget: Budget, report: Report) -> None:
    """Refuse a folder of which a tensor is not what the source has."""
    made = open_checkpoint(partial)
    if set(made.tensors) != set(expected):
        raise UsageError(
            f"{partial}: holds other tensors than were written; remove it and begin again"
        )
    found = digests.all_digests(made, budget, done=report)
    for name, one in found.items():
        if one.digest != expected[name]:
            raise UsageError(
                f"{partial}: {name} reads back as something else than was written; the disk or the "
                "memory is at fault: remove it and begin again"
            )


def _require_room(plan_: Plan, partial: Path, done: set[str]) -> None:
    """Refuse to begin where the disk has no room for what is left to write."""
    left = [
        plan_.tensors[part.theirs].size
        for name, placed in plan_.places.items()
        if name not in done
        for part in placed.parts
    ]
    if partial.exists() and plan_.to == "hf":
        return  # the files have their whole size already
    need, free = sum(left), shutil.disk_usage(partial.absolute().parent).free
    if need > free:
        raise UsageError(
            f"{partial}: needs {need / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left; nothing "
            "was written"
        )
