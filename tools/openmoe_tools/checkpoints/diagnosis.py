"""From tensors that differ to causes with a name: what became of each, and what they have in common.

Only the tensors whose digests differ are read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from openmoe_tools.checkpoints import experts, explaining, fingerprints
from openmoe_tools.checkpoints.digests import Digest
from openmoe_tools.checkpoints.explaining import Cause
from openmoe_tools.checkpoints.findings import BITWISE, Finding, listed, merged, ranges
from openmoe_tools.checkpoints.fingerprints import Fingerprint, Matrix
from openmoe_tools.checkpoints.opening import Checkpoint
from openmoe_tools.checkpoints.structure import EMBEDDING, HEAD, PADDED, USED
from openmoe_tools.checkpoints.working import Budget

_LAYER = re.compile(r"decoder/layers_(\d+)/(.+)")
_QKV = ("self_attention/query/kernel", "self_attention/key/kernel", "self_attention/value/kernel")
_MOST = 0.8
"""The share of tensors with other values from which on the model is another."""

_LOOSE = ("other values", "stale", "left at initialisation", "dropped", "not finite")
"""Causes that say that a tensor's own values are not there, and not where they went."""


@dataclass
class Diagnosis:
    """Both sides, and what is known of them.

    digests  of both sides by tensor; `differing` the tensors of both whose digests differ
    heads    the number of attention heads, where a configuration says it
    """

    a: Checkpoint
    b: Checkpoint
    digests: tuple[Mapping[str, Digest], Mapping[str, Digest]]
    differing: list[str]
    budget: Budget
    heads: int | None = None
    _prints: dict[tuple[int, str], list[Fingerprint]] = field(default_factory=dict)

    def findings(self, done: Callable[[str], None] = lambda _: None) -> list[Finding]:
        """Return what is wrong, each tensor that differs in exactly one finding or more."""
        moved = {name: other for name in self.differing if (other := self._holds(name))}
        found: list[Finding] = list(self._layers(moved))
        for name, other in moved.items():
            found.append(self._moved(name, other))
            done(name)
        for name in self.differing:
            if name not in moved:
                found += self._of_tensor(name)
                done(name)
        return merged(self._shards(found))

    # ---- a tensor of the source under another name -----------------------------------------------

    def _in_target(self, name: str, dtype: str) -> str:
        """Return the digest of a source's tensor as the target would hold it."""
        one = self.digests[0][name]
        return one.digest if one.dtype == dtype else one.cast.get(dtype, "")

    def _holds(self, name: str) -> str | None:
        """Return the tensor of the source whose values a tensor of the target has."""
        held = self.digests[1][name]
        alike = [
            other
            for other in self.digests[0]
            if other != name and self._in_target(other, held.dtype) == held.digest
        ]
        return min(alike, key=lambda other: _distance(name, other), default=None)

    def _layers(self, moved: dict[str, str]) -> Iterator[Finding]:
        """Yield whole layers that hold another's tensors, and take their tensors out."""
        of_layer: dict[int, list[str]] = {}
        for name in self.differing:
            if match := _LAYER.fullmatch(name):
                of_layer.setdefault(int(match[1]), []).append(name)
        sources: dict[int, int] = {}
        for layer, names in of_layer.items():
            from_layers = {_other_layer(name, moved.get(name)) for name in names}
            if len(from_layers) == 1 and (source := from_layers.pop()) is not None:
                sources[layer] = source
        kinds = {layer: len(of_layer[layer]) for layer in sources}
        whole = {layer: source for layer, source in sources.items() if kinds[layer] > 1}
        for layers, cause, text, fix in _movements(whole):
            names = tuple(name for layer in layers for name in of_layer[layer])
            where = f"layers {ranges(layers)}"
            yield Finding(BITWISE, cause, names, where, text, fix, exact=True)
            for name in names:
                moved.pop(name, None)
                self.differing = [one for one in self.differing if one != name]

    def _moved(self, name: str, other: str) -> Finding:
        mine, theirs = _LAYER.fullmatch(name), _LAYER.fullmatch(other)
        cause = "holds another tensor"
        if mine and theirs and mine[1] == theirs[1]:
            kinds = {mine[2], theirs[2]}
            if kinds <= set(_QKV):
                cause = "query, key and value swapped"
            elif _ends(kinds, "wi_0/kernel", "wi_1/kernel"):
                cause = "gate and up swapped"
            elif _ends(kinds, "wi_1/kernel", "wo/kernel") or _ends(
                kinds, "wi_0/kernel", "wo/kernel"
            ):
                cause = "up and down swapped"
            elif all(kind.endswith("norm/scale") for kind in kinds):
                cause = "norms swapped"
        elif mine and theirs and mine[2] == theirs[2]:
            cause = "wrong layer"
        return Finding(
            BITWISE, cause, (name,), "", f"{name} holds the source's {other}",
            f"write {name} there, by the name's row of the mapping", exact=True,
        )  # fmt: skip

    # ---- a tensor by itself ----------------------------------------------------------------------

    def matrices(self, side: int, name: str) -> list[Matrix]:
        """Return the matrices of a side's tensor, with the target's dtype."""
        of = (self.a, self.b)[side]
        dtype = self.b.dtype(name) if name in self.b.tensors else of.dtype(name)
        return fingerprints.matrices(of, name, dtype, self.budget.block)

    def prints(self, side: int, name: str) -> list[Fingerprint]:
        """Return the fingerprints of a side's tensor, made once."""
        if (side, name) not in self._prints:
            made = [fingerprints.fingerprint(one) for one in self.matrices(side, name)]
            self._prints[side, name] = made
        return self._prints[side, name]

    def _of_tensor(self, name: str) -> list[Finding]:
        a, b = self.matrices(0, name), self.matrices(1, name)
        fa, fb = self.prints(0, name), self.prints(1, name)
        if len(a) != len(b) or len(a) > 1:
            found = experts.explained(self, name, a, b, fa, fb)
        else:
            found = {(): self.explain(name, a[0], b[0], fa[0], fb[0])}
        return [
            self._finding(name, numbers, cause)
            for numbers, cause in found.items()
            if cause is not None
        ]

    def explain(self, name: str, a: Matrix, b: Matrix, fa: Fingerprint, fb: Fingerprint) -> Cause:
        """Return what became of one matrix."""
        cause = (
            explaining.emptied(b)
            or explaining.rearranged(a, b, fa, fb, self.heads)
            or self._half(name, b, fb)
            or self._elsewhere(name, b, fb)
        )
        if cause is not None or a.shape != b.shape:
            return cause
        return explaining.altered(a, b) or explaining.replaced(a, b)

    def _half(self, name: str, b: Matrix, fb: Fingerprint) -> Cause | None:
        """Return that columns of gate and up took each other's places."""
        other = name.replace("wi_0", "wi_1") if "wi_0" in name else name.replace("wi_1", "wi_0")
        if other == name or other not in self.a.tensors or other not in self.b.tensors:
            return None
        fa = self.prints(0, other)[b.index or 0]
        size = min(len(fa.columns), len(fb.columns))
        for mine in range(0, len(fb.columns), size):
            for theirs in range(0, len(fa.columns), size):
                if (fb.columns[mine : mine + size] == fa.columns[theirs : theirs + size]).all():
                    half = ("first", "second")[max(mine, theirs) // size] + " half"
                    held = (
                        f"{'its ' + half if len(fb.columns) > size else 'it'} holds the source's "
                    )
                    held += other if len(fa.columns) == size else f"{half} of {other}"
                    return Cause(
                        "gate and up swapped", held, "gate is wi_0, two halves of F; up is wi_1"
                    )
        return None

    def _elsewhere(self, name: str, b: Matrix, fb: Fingerprint) -> Cause | None:
        """Return a matrix of the source, of another tensor, that this one holds, as it is or turned."""
        size = b.shape[0] * b.shape[1]
        for other, placed in self.a.tensors.items():
            shape = (1, 1, *placed.shape)[-2:]
            alike = shape[0] * shape[1] == size and len(placed.shape) == len(
                self.a.tensors[name].shape
            )
            if other == name or not alike or _kind(other) not in _near(_kind(name)):
                continue
            for one, print_ in zip(self.matrices(0, other), self.prints(0, other), strict=True):
                if print_.total != fb.total or (one.index is not None and one.index != b.index):
                    continue
                one = replace(one, dtype=b.dtype)  # noqa: PLW2901
                if explaining.equal(one, b):
                    return _swap(name, other, "holds")
                turned = explaining.rearranged(one, b, print_, fb, self.heads)
                if turned is not None:
                    found = _swap(name, other, "holds")
                    return replace(found, text=f"{found.text}, which {turned.text}")
        return None

    def _finding(self, name: str, numbers: tuple[int, ...], cause: Cause) -> Finding:
        where = [f"experts {ranges(numbers)}"] if numbers else []
        if cause.where:
            where.append(cause.where)
        title, text = cause.cause, cause.text
        if name in {EMBEDDING, HEAD} and cause.cause in {
            "sparse corruption",
            "stale shard",
            "flipped bits",
        }:
            place = self._padding(name)
            if place:
                title, text = (
                    "padding rows of the vocabulary",
                    f"{text}; all of them in the rows that pad it",
                )
        exact = cause.cause not in {*_LOOSE, "rearranged"}
        return Finding(BITWISE, title, (name,), ", ".join(where), text, cause.fix, exact)

    def _padding(self, name: str) -> bool:
        """Return whether a vocabulary's tensors differ in nothing but the rows that pad it."""
        shape = self.a.tensors[name].shape
        axis = 0 if name == EMBEDDING else 1
        if shape[axis] != PADDED or shape != self.b.tensors[name].shape:
            return False
        one, other = self.prints(0, name)[0], self.prints(1, name)[0]
        sums = (one.rows, other.rows) if axis == 0 else (one.columns, other.columns)
        return bool((sums[0][:USED] == sums[1][:USED]).all())

    # ---- what they have in common ----------------------------------------------------------------

    def _shards(self, found: list[Finding]) -> list[Finding]:
        """Return findings with those of a file, all of whose tensors hold other values, as one."""
        loose: dict[str, list[Finding]] = {}
        for one in found:
            places = {place for name in one.tensors for place in self.b.places(name)}
            if one.cause in _LOOSE and len(places) == 1 and not one.where:
                loose.setdefault(places.pop(), []).append(one)
        lost = {name for one in found if one.cause in _LOOSE for name in one.tensors}
        if len(lost) > 1 and len(lost) >= _MOST * len(self.b.tensors):
            return [
                *(one for one in found if one.cause not in _LOOSE),
                Finding(
                    BITWISE, "another model", tuple(sorted(lost)), "",
                    f"{len(lost)} of {len(self.b.tensors)} tensors hold values of which the source has "
                    "none: the two are different models, or far apart steps of one",
                    "name the checkpoint that was converted",
                ),
            ]  # fmt: skip
        all_places = {place for name in self.b.tensors for place in self.b.places(name)}
        for place, ones in loose.items():
            there = {name for name in self.b.tensors if place in self.b.places(name)}
            names = tuple(name for one in ones for name in one.tensors)
            if len(all_places) > 1 and len(there) > 1 and set(names) == there:
                found = [one for one in found if one not in ones]
                found.append(
                    Finding(
                        BITWISE,
                        "stale shard",
                        names,
                        place,
                        f"every tensor of {place} holds other values than the source's "
                        f"({listed(sorted({one.cause for one in ones}))}), and no other file does",
                        "take this file from the same conversion as the others",
                    )  # fmt: skip
                )
        return found


def _kind(name: str) -> str:
    """Return what a tensor is, without its layer."""
    match = _LAYER.fullmatch(name)
    return match[2] if match else name


def _near(kind: str) -> set[str]:
    """Return the kinds that may be taken for one another."""
    parent, _, leaf = kind.rpartition("/")
    if leaf == "kernel" and "self_attention" in parent:
        return {*_QKV, "self_attention/out/kernel"}
    if leaf == "kernel" and parent.rpartition("/")[2] in {"wi_0", "wi_1", "wo"}:
        root = parent.rpartition("/")[0]
        kinds = {f"{root}/{one}/kernel" for one in ("wi_0", "wi_1", "wo")}
        if root != "mlp/expert":
            kinds |= {
                f"{block}/{one}/kernel"
                for block in ("mlp", "extra_mlp")
                for one in ("wi_0", "wi_1", "wo")
            }
        return kinds
    return {EMBEDDING, HEAD} if kind in {EMBEDDING, HEAD} else {kind}


def _distance(name: str, other: str) -> tuple[int, int]:
    """Return how far apart two tensors are: the same kind is near, then the same layer."""
    mine, theirs = _LAYER.fullmatch(name), _LAYER.fullmatch(other)
    if mine is None or theirs is None:
        return (2, 0)
    return (int(mine[2] != theirs[2]), abs(int(mine[1]) - int(theirs[1])))


def _other_layer(name: str, other: str | None) -> int | None:
    """Return the layer whose tensor of the same kind is meant; None: there is none."""
    mine, theirs = _LAYER.fullmatch(name), _LAYER.fullmatch(other or "")
    if mine is None or theirs is None or mine[2] != theirs[2]:
        return None
    return int(theirs[1])


def _movements(sources: Mapping[int, int]) -> Iterator[tuple[list[int], str, str, str]]:
    """Yield layers, cause, text and fix for layers that hold others' tensors."""
    left = dict(sources)
    by_shift: dict[int, list[int]] = {}
    for layer, source in left.items():
        by_shift.setdefault(source - layer, []).append(layer)
    for layer, source in sorted(sources.items()):
        if layer in left and left.get(source) == layer and layer < source:
            yield (
                [layer, source], "layers swapped",
                f"layers {layer} and {source} hold each other's tensors", "exchange them again",
            )  # fmt: skip
            del left[layer], left[source]
    for shift, layers in sorted(by_shift.items()):
        shifted = [layer for layer in layers if layer in left]
        if len(shifted) > 1:
            yield (
                shifted, "layer offset",
                f"each of layers {ranges(shifted)} holds the tensors of the layer {shift:+d} from it",
                f"number the layers from 0, as the source does: shift them by {-shift:+d}",
            )  # fmt: skip
            for layer in shifted:
                del left[layer]
    for layer, source in sorted(left.items()):
        yield (
            [layer], "layer duplicated",
            f"layer {layer} holds all tensors of layer {source}, and its own are not there",
            f"write layer {layer} from the source's layer {layer}",
        )  # fmt: skip


def _ends(kinds: set[str], one: str, other: str) -> bool:
    return len(kinds) == 2 and {
        kind.rpartition("/")[0].rpartition("/")[2] + "/kernel" for kind in kinds
    } == {one, other}  # noqa: PLR2004, E501


def _swap(name: str, other: str, verb: str) -> Cause:
    """Return the cause of a matrix that stands under another's name."""
    mine, theirs = _kind(name), _kind(other)
    cause = "wrong layer" if mine == theirs else "holds another tensor"
    if {mine, theirs} <= {*_QKV, "self_attention/out/kernel"} and mine != theirs:
        cause = "query, key and value swapped"
    elif _ends({mine, theirs}, "wi_0/kernel", "wi_1/kernel"):
        cause = "gate and up swapped"
    elif mine != theirs and mine.endswith("/kernel") and "wi_" in mine + theirs:
        cause = "up and down swapped"
    elif {name, other} == {EMBEDDING, HEAD}:
        cause = "embedding and head swapped"
    return Cause(cause, f"{verb} the source's {other}", "write each under its own name")
