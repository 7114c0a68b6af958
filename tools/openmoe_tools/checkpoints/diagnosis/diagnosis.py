"""From tensors that differ to causes with a name: what became of each, and what they have in common.

The tensors whose digests differ are read again; those that they may have come from, where nothing else
explains one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.diagnosis import (
    alterations,
    experts,
    fingerprints,
    relocations,
    replacements,
)
from openmoe_tools.checkpoints.diagnosis.causes import Cause, equal
from openmoe_tools.checkpoints.diagnosis.fingerprints import Fingerprint, Matrix
from openmoe_tools.checkpoints.diagnosis.mistaken import (
    LAYER,
    cause_of,
    distance,
    held,
    kind_in_layer,
    movements,
    near,
    other_layer,
)
from openmoe_tools.checkpoints.digests import Digest
from openmoe_tools.checkpoints.verification.findings import BITWISE, Finding, listed, merged, ranges
from openmoe_tools.checkpoints.verification.structure import EMBEDDING, HEAD, PADDED, USED
from openmoe_tools.checkpoints.working import Budget

_MOST = 0.8
"""The share of tensors with other values from which on the model is another."""

_LOOSE = ("other values", "stale", "left at initialisation", "dropped", "not finite")
"""Causes that say that a tensor's own values are not there, and not where they went."""


@dataclass
class Diagnosis:
    """Both sides, and what is known of them.

    digests  of both sides by tensor; `differing` the tensors of both whose digests differ
    heads    attention heads of queries, and of keys and values, where a configuration says them
    """

    a: Checkpoint
    b: Checkpoint
    digests: tuple[Mapping[str, Digest], Mapping[str, Digest]]
    differing: list[str]
    budget: Budget
    heads: tuple[int, int] | None = None
    _prints: dict[tuple[int, str], list[Fingerprint]] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)

    def findings(self, done: Callable[[str], None] = lambda _: None) -> list[Finding]:
        """Return what is wrong, each tensor that differs in exactly one finding or more."""
        self._asked = set(self.differing)
        narrowed = [name for name in self.differing if self._is_narrowed(name)]
        self.differing = [name for name in self.differing if name not in narrowed]
        found = [_narrowed(name, self.digests[1][name].dtype) for name in narrowed]
        moved = {name: other for name in self.differing if (other := self._holds(name))}
        found += self._layers(moved)
        for name in self._asked - set(self.differing):
            done(name)
        for name, other in moved.items():
            found.append(self._moved(name, other))
            done(name)
        for name in self.differing:
            if name not in moved:
                found += self._safely(name)
                done(name)
        return merged(self._shards([self._untied(one) for one in found]))

    def _untied(self, one: Finding) -> Finding:
        """Return a head that is the embedding, which is still there, under its own name."""
        if one.cause != "embedding and head swapped" or EMBEDDING in self._asked:
            return one
        text = "is the embedding's: the two are not tied in an OpenMoE model (PARAM-01)"
        return replace(
            one, cause="tied head", text=text, fix="write the source's own output projection"
        )

    # ---- a tensor of the source under another name -----------------------------------------------

    def _in_target(self, name: str, dtype: str) -> str:
        """Return the digest of a source's tensor as the target would hold it."""
        one = self.digests[0][name]
        return one.digest if one.dtype == dtype else one.cast.get(dtype, "")

    def _is_narrowed(self, name: str) -> bool:
        held = self.digests[1][name]
        return self._in_target(name, held.dtype) == held.digest

    def _holds(self, name: str) -> str | None:
        """Return the tensor of the source whose values a tensor of the target has."""
        held = self.digests[1][name]
        alike = [
            other
            for other in self.digests[0]
            if other != name and self._in_target(other, held.dtype) == held.digest
        ]
        return min(alike, key=lambda other: distance(name, other), default=None)

    def _layers(self, moved: dict[str, str]) -> Iterator[Finding]:
        """Yield whole layers that hold another's tensors, and take their tensors out."""
        of_layer: dict[int, list[str]] = {}
        for name in self.differing:
            if match := LAYER.fullmatch(name):
                of_layer.setdefault(int(match[1]), []).append(name)
        sources: dict[int, int] = {}
        for layer, names in of_layer.items():
            from_layers = {other_layer(name, moved.get(name)) for name in names}
            if len(from_layers) == 1 and (source := from_layers.pop()) is not None:
                sources[layer] = source
        kinds = {layer: len(of_layer[layer]) for layer in sources}
        whole = {layer: source for layer, source in sources.items() if kinds[layer] > 1}
        for layers, cause, text, fix in movements(whole):
            theirs = tuple(name for layer in layers for name in of_layer[layer])
            where = f"layers {ranges(layers)}"
            yield Finding(BITWISE, cause, theirs, where, text, fix, exact=True)
            self.differing = [name for name in self.differing if name not in theirs]
            for name in theirs:
                moved.pop(name)

    def _moved(self, name: str, other: str) -> Finding:
        return Finding(
            BITWISE,
            cause_of(name, other),
            (name,),
            "",
            f"{name} holds the source's {other}",
            f"write {name} there, by the name's row of the mapping",
            exact=True,
        )

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

    def _heads(self, name: str) -> int | None:
        if self.heads is None:
            return None
        return self.heads[name.endswith(("key/kernel", "value/kernel"))]

    def _safely(self, name: str) -> list[Finding]:
        """Return what became of a tensor; that nothing can be said of it is a finding too."""
        try:
            return self._of_tensor(name)
        except (ValueError, IndexError, ArithmeticError) as error:
            text = f"differs, and how could not be found out ({type(error).__name__}: {error})"
            return [Finding(BITWISE, "other values", (name,), "", text, "compare it by hand")]

    def _of_tensor(self, name: str) -> list[Finding]:
        a, b = self.matrices(0, name), self.matrices(1, name)
        fa, fb = self.prints(0, name), self.prints(1, name)
        if len(a) != len(b) or len(a) > 1:
            found = experts.explained(self, name)
        else:
            found = [((), self.explain(name, a[0], b[0], fa[0], fb[0]))]
        return [
            self._finding(name, numbers, cause) for numbers, cause in found if cause is not None
        ]

    def explain(
        self, name: str, a: Matrix, b: Matrix, fa: Fingerprint, fb: Fingerprint
    ) -> Cause | None:
        """Return what became of one matrix; None: its shape is another, and says all there is."""
        cause = (
            replacements.emptied(a, b)
            or relocations.rearranged(a, b, fa, fb, self._heads(name))
            or self._half(name, b, fb)
            or self._elsewhere(name, b, fb)
        )
        if cause is not None or a.shape != b.shape:
            return cause
        return alterations.altered(a, b) or replacements.replaced(a, b)

    def _half(self, name: str, b: Matrix, fb: Fingerprint) -> Cause | None:
        """Return that columns of gate and up took each other's places."""
        other = name.replace("wi_0", "wi_1") if "wi_0" in name else name.replace("wi_1", "wi_0")
        if other == name or other not in self.a.tensors or other not in self.b.tensors:
            return None
        prints = self.prints(0, other)
        if (b.index or 0) >= len(prints):
            return None
        fa = prints[b.index or 0]
        size = min(len(fa.columns), len(fb.columns))
        if not size or len(fb.columns) % size or len(fa.columns) % size:
            return None
        for mine in range(0, len(fb.columns), size):
            for theirs in range(0, len(fa.columns), size):
                if (fb.columns[mine : mine + size] == fa.columns[theirs : theirs + size]).all():
                    half = ("first", "second")[max(mine, theirs) // size] + " half"
                    text = (
                        f"{'its ' + half if len(fb.columns) > size else 'it'} holds the source's "
                    )
                    text += other if len(fa.columns) == size else f"{half} of {other}"
                    fix = "gate is wi_0, two halves of F; up is wi_1"
                    return Cause("gate and up swapped", text, fix)
        return None

    def _elsewhere(self, name: str, b: Matrix, fb: Fingerprint) -> Cause | None:
        """Return a matrix of the source, of another tensor, that this one holds, as it is or turned."""
        size = b.shape[0] * b.shape[1]
        for other, placed in self.a.tensors.items():
            shape = (1, 1, *placed.shape)[-2:]
            alike = shape[0] * shape[1] == size and len(placed.shape) == len(
                self.a.tensors[name].shape
            )
            if other == name or not alike or kind_in_layer(other) not in near(kind_in_layer(name)):
                continue
            for one, print_ in zip(self.matrices(0, other), self.prints(0, other), strict=True):
                if print_.total != fb.total or (one.index is not None and one.index != b.index):
                    continue
                one = replace(one, dtype=b.dtype)  # noqa: PLW2901
                if equal(one, b):
                    return held(name, other)
                turned = relocations.rearranged(one, b, print_, fb, self._heads(name))
                if turned is not None:
                    found = held(name, other)
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
        exact = cause.exact and cause.cause not in {*_LOOSE, "rearranged"}
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
                causes = listed(sorted({one.cause for one in ones}))
                text = f"every tensor of {place} holds other values than the source's ({causes})"
                fix = "take this file from the same conversion as the others"
                found.append(Finding(BITWISE, "stale shard", names, place, text, fix))
        return found


def _narrowed(name: str, dtype: str) -> Finding:
    """Return that a tensor was rounded and nothing else, which was not declared."""
    text = f"is the source's rounded to {dtype}, to nearest, and nothing else"
    fix = f"declare --cast {dtype}"
    return Finding(BITWISE, f"rounded to {dtype}", (name,), "", text, fix, exact=True)
