"""The first tier: names, shapes and dtypes of two checkpoints. Nothing is read but their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from openmoe_spec.config import Configuration
from openmoe_tools.checkpoints import settings
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.verification.findings import STRUCTURE, Finding, folded, ranges

HEAD, EMBEDDING = "decoder/logits_dense/kernel", "token_embedder/embedding"
PADDED, USED = 256384, 256300
"""Rows of the released models' vocabulary, and those that a tokeniser reaches."""


def compare(
    a: Checkpoint,
    b: Checkpoint,
    cast: str | None,
    models: tuple[Configuration | None, Configuration | None] = (None, None),
) -> list[Finding]:
    """Return what differs in names, shapes and dtypes; none: the structure holds.

    cast    the dtype that the tensors of b may have instead of a's, as declared
    models  the configuration of each side, where it is known
    """
    found = [*_own(a, "the source"), *_own(b, "the target"), *_sides(a, b), *_tensors(a, b, cast)]
    for one, model, side in zip((a, b), models, ("the source", "the target"), strict=True):
        wrong = settings.mismatch(one, model)
        if wrong is not None:
            text = f"{side} is no model of its configuration: {wrong}"
            fix = "name its own with --config; a wrong moe_layer_interval looks like this"
            found.append(Finding(STRUCTURE, "configuration", (), side, text, fix))
    return found


def broken(one: Checkpoint) -> dict[str, Finding]:
    """Return the tensors of a side that cannot be put together, with what is wrong: the experts of
    openmoe-pt's layout are tensors of their own, and may be missing, misshaped or of several dtypes.
    """
    found = {}
    for name, placed in one.tensors.items():
        if placed.parts[0].matrix is None:
            continue
        number, there = placed.shape[0], {part.matrix: part.theirs for part in placed.parts}
        stored = one.reader.tensors
        lacking = sorted(set(range(number)) - {e for e in there if e is not None})
        shapes = Counter(stored[theirs].shape for theirs in there.values())
        dtypes = Counter(stored[theirs].dtype for theirs in there.values())
        usual = shapes.most_common(1)[0][0], dtypes.most_common(1)[0][0]
        odd = [e for e, theirs in there.items() if stored[theirs].shape != usual[0]]
        if lacking:
            where = f"experts {ranges(lacking)}"
            text = f"{where} are not there, and expert {number - 1} is"
            found[name] = _broken("expert dropped", name, where, text, "write all experts")
        elif odd:
            where = f"experts {ranges(e for e in odd if e is not None)}"
            shape = stored[there[odd[0]]].shape
            cause = "transposed" if shape == usual[0][::-1] else "shape"
            text = f"{where} have shape {list(shape)}, the others {list(usual[0])}"
            found[name] = _broken(cause, name, where, text, "transpose each expert once")
        elif len(dtypes) > 1:
            odd = [e for e, theirs in there.items() if stored[theirs].dtype != usual[1]]
            where = f"experts {ranges(e for e in odd if e is not None)}"
            text = f"{where} have another dtype than the others, {usual[1]}"
            found[name] = _broken("dtype", name, where, text, "write all experts with one dtype")
    return found


def _broken(cause: str, name: str, where: str, text: str, fix: str) -> Finding:
    return Finding(STRUCTURE, cause, (name,), where, text, fix)


def _own(one: Checkpoint, side: str) -> Iterator[Finding]:
    """Yield what is wrong with a side by itself."""
    is_source = side == "the source"
    unknown = one.found.unknown
    if unknown:
        cause = "unused source" if is_source else "unexpected"
        told = (
            "is converted to nothing: weights that the source's program uses would be lost"
            if is_source
            else "is no tensor of an OpenMoE model"
        )
        for name in unknown:
            shape = list(one.reader.tensors[name].shape)
            yield Finding(
                STRUCTURE, cause, (name,), side, f"{name}, shape {shape}, of {side} {told}",
                "remove it, or say what it is: no rule of the mapping names it",
            )  # fmt: skip
    apart = broken(one)
    for found in apart.values():
        yield replace(found, text=f"{side}: {found.text}")
    for problem in one.found.problems:
        if problem.split(":")[0] not in apart:
            yield Finding(STRUCTURE, "inconsistent", (), side, f"{side}: {problem}")


def _sides(a: Checkpoint, b: Checkpoint) -> Iterator[Finding]:
    missing = [name for name in a.tensors if name not in b.tensors]
    unexpected = [name for name in b.tensors if name not in a.tensors]
    if HEAD in missing:
        missing.remove(HEAD)
        yield Finding(
            STRUCTURE, "tied head", (HEAD,), "the target",
            "the target has no output projection: the source's is a tensor of its own, not the "
            "embedding",
            "write it: an OpenMoE model's output projection is not tied to its embedding (PARAM-01)",
        )  # fmt: skip
    if HEAD in unexpected:
        unexpected.remove(HEAD)
        yield Finding(
            STRUCTURE, "tied head", (HEAD,), "the source",
            "the target has an output projection and the source has none",
            "take it from a source that has it: it cannot be made from the embedding (PARAM-01)",
        )  # fmt: skip
    if HEAD not in a.tensors and HEAD not in b.tensors:
        yield Finding(
            STRUCTURE, "no output head", (HEAD,), "both",
            "neither side has an output projection: an OpenMoE model has one of its own",
            "take it from the training code's checkpoint, decoder/logits_dense/kernel (PARAM-01)",
        )  # fmt: skip
    for cause, names, verb in (("missing", missing, "lacks"), ("unexpected", unexpected, "has")):
        what = "which the source has" if cause == "missing" else "which the source has not"
        for kind, of_kind in folded(names).items():
            text = f"the target {verb} {kind}, {what}"
            yield Finding(STRUCTURE, cause, tuple(of_kind), "the target", text)


def _tensors(a: Checkpoint, b: Checkpoint, cast: str | None) -> Iterator[Finding]:
    dtypes: dict[tuple[str, str], list[str]] = {}
    apart = {**broken(a), **broken(b)}
    for name in a.tensors:
        if name not in b.tensors or name in apart:
            continue
        ours, theirs = a.tensors[name].shape, b.tensors[name].shape
        if ours != theirs:
            yield _shape(name, ours, theirs)
        one, other = a.dtype(name), b.dtype(name)
        if other not in {one, cast}:
            dtypes.setdefault((one, other), []).append(name)
    for (one, other), names in dtypes.items():
        yield Finding(
            STRUCTURE, "dtype", tuple(names), "the target",
            f"{one} in the source, {other} in the target, and no cast is declared",
            f"declare it with --cast {other}, or convert again without",
        )  # fmt: skip


def _shape(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> Finding:
    text = f"{name}: shape {list(ours)} in the source, {list(theirs)} in the target"
    if theirs == (*ours[:-2], *ours[:-3:-1]) and len(ours) > 1:
        return Finding(
            STRUCTURE, "transposed", (name,), "", f"{text}: rows and columns are exchanged",
            "transpose it once, where the mapping says so",
        )  # fmt: skip
    if name in {EMBEDDING, HEAD} and len(ours) == len(theirs):
        axis = 0 if name == EMBEDDING else 1
        rest = ours[1 - axis] == theirs[1 - axis]
        if rest and ours[axis] != theirs[axis]:
            number = abs(ours[axis] - theirs[axis])
            text += f": {number} rows of the vocabulary {'less' if ours[axis] > theirs[axis] else 'more'}"
            if {ours[axis], theirs[axis]} == {PADDED, USED}:
                text += ", those that pad it"
            return Finding(
                STRUCTURE, "vocabulary", (name,), "", text,
                "keep all rows: the ids of a checkpoint are those of its own vocabulary",
            )  # fmt: skip
    return Finding(STRUCTURE, "shape", (name,), "", text)
