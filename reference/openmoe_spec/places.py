"""Where each part of each tensor lies: from the rules of `layouts`, in both directions.

A part is a whole tensor, or one expert's matrix where those are apart. A region is a range on each
axis. Numbers and names alone; nothing is read here. Spec: CKPT-04.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from openmoe_spec.layouts import INVERSES, JOIN, LAYOUTS, SPLIT, TRANSPOSE, Layout, Rule, fields_of

Shape = tuple[int, ...]
Region = tuple[tuple[int, int], ...]
"""A range, from and behind the last, on each axis."""

_ROUTER = "mlp/router/router_weights/w/kernel"
_LAYER = "decoder/layers_{i}/"


@dataclass(frozen=True)
class Part:
    """One part of a tensor of ours and where it lies.

    matrix      which one along the leading axis of ours; None: all of it
    theirs      the stored tensor's name
    at          axis and index of the stored tensor, where that holds those of several layers
    operations  what is done to the part of ours to have theirs (`layouts.INVERSES`)
    """

    matrix: int | None
    theirs: str
    at: tuple[int, int] | None
    operations: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """A tensor of ours: its shape, and its parts."""

    shape: Shape
    parts: tuple[Part, ...]


@dataclass
class Found:
    """What a layout makes of stored tensors.

    tensors   ours by name
    unknown   stored tensors that no rule names, or whose shape its rule cannot have
    problems  what is inconsistent, a line each
    """

    layout: Layout
    tensors: dict[str, Placed] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# ---- operations --------------------------------------------------------------------------------


def _swapped(shape: Sequence[tuple[int, int]] | Shape) -> tuple:  # type: ignore[type-arg]
    return (*shape[:-2], shape[-1], shape[-2])


_SHAPES: Mapping[str, tuple[int, Callable[[Shape], Shape]]] = {
    TRANSPOSE: (2, _swapped),
    SPLIT: (1, lambda shape: (*shape[:-1], 2, shape[-1] // 2)),
    JOIN: (2, lambda shape: (*shape[:-2], shape[-2] * shape[-1])),
}
"""The least rank that an operation needs, and what it makes of a shape."""


def shape_after(operations: Sequence[str], shape: Shape) -> Shape | None:
    """Return a shape after operations; None: one of them cannot be done to it."""
    for name in operations:
        rank, change = _SHAPES[name]
        if len(shape) < rank or (name == SPLIT and shape[-1] % 2):
            return None
        if name == JOIN and shape[-2] != 2:
            return None
        shape = change(shape)
    return shape


def undone(operations: Sequence[str]) -> tuple[str, ...]:
    """Return what undoes operations."""
    return tuple(INVERSES[name] for name in reversed(operations))


def region_after(operations: Sequence[str], region: Region) -> Region:
    """Return where a region lies after operations.

    Halves are split and joined only whole: the last axis of a region must have all of it.
    """
    for name in operations:
        if name == TRANSPOSE:
            region = _swapped(region)
        elif name == SPLIT:
            region = (*region[:-1], (0, 2), (0, (region[-1][1] - region[-1][0]) // 2))
        else:
            region = (*region[:-2], (0, 2 * (region[-1][1] - region[-1][0])))
    return region


def whole(shape: Shape) -> Region:
    """Return the region that is all of a shape."""
    return tuple((0, size) for size in shape)


def stored_region(part: Part, region: Region) -> Region:
    """Return where a region of a part lies in the stored tensor."""
    after = list(region_after(part.operations, region))
    if part.at is not None:
        axis, index = part.at
        after.insert(axis, (index, index + 1))
    return tuple(after)


# ---- from stored tensors to ours ---------------------------------------------------------------


def find(layout: Layout, stored: Mapping[str, Shape]) -> Found:
    """Return what a layout makes of stored tensors, given their names and shapes."""
    found = Found(layout)
    matched: dict[str, tuple[Rule, dict[str, int]]] = {}
    for name in stored:
        for rule in layout.rules:
            fields = fields_of(rule.theirs, name)
            if fields is not None:
                matched[name] = (rule, fields)
                break
        else:
            found.unknown.append(name)
    layers = _Layers(matched, stored)
    parts: dict[str, dict[int | None, tuple[Shape, Part]]] = defaultdict(dict)
    for name, (rule, fields) in matched.items():
        shape, places = stored[name], layers.of(rule, fields, stored[name])
        if rule.stacked is not None and places is not None:
            shape = (*shape[: rule.stacked], *shape[rule.stacked + 1 :])
        ours = shape_after(undone(rule.operations), shape)
        if places is None or ours is None or _rank(rule) not in {None, len(ours)}:
            found.unknown.append(name)
            continue
        for i, at in places:
            key = rule.ours.format(i=i)
            part = Part(fields.get("e"), name, at, rule.operations)
            if part.matrix in parts[key]:
                other = parts[key][part.matrix][1].theirs
                found.problems.append(f"{name} and {other} are the same tensor, {key}")
            parts[key][part.matrix] = (ours, part)
    for key, ones in parts.items():
        _join(found, key, ones)
    return found


_RANKS = {"scale": 1, "embedding": 2, "kernel": 2}


def _rank(rule: Rule) -> int | None:
    """Return the rank of the part of ours that a stored tensor is."""
    rank = _RANKS[rule.ours.rpartition("/")[2]]
    return rank + 1 if "/expert/" in rule.ours and "{e}" not in rule.theirs else rank


def _join(found: Found, name: str, parts: Mapping[int | None, tuple[Shape, Part]]) -> None:
    """Make one tensor of its parts: all of it, or one matrix an expert."""
    if None in parts:
        shape, part = parts[None]
        found.tensors[name] = Placed(shape, (part,))
        return
    shapes = {shape for shape, _ in parts.values()}
    experts = [one for one in parts if one is not None]
    lacking = [] if len(experts) > max(experts) else [_gap(experts)]
    if len(shapes) > 1:
        found.problems.append(f"{name}: experts of different shapes, {sorted(shapes)}")
    elif lacking:
        found.problems.append(f"{name}: lacks expert {lacking[0]}, and has {max(experts)}")
    shape = parts[experts[0]][0]
    ordered = tuple(parts[e][1] for e in sorted(experts))
    found.tensors[name] = Placed((max(experts) + 1, *shape), ordered)


def _gap(numbers: Sequence[int]) -> int:
    """Return the first number from 0 on that is not there."""
    held = set(numbers)
    return next(i for i in range(len(held) + 1) if i not in held)


class _Layers:
    """Which layers a stacked tensor holds, by what is stored beside it."""

    def __init__(
        self,
        matched: Mapping[str, tuple[Rule, dict[str, int]]],
        stored: Mapping[str, Shape],
    ) -> None:
        places = [fields["p"] for _, fields in matched.values() if "p" in fields]
        self.interval = max(places, default=0) + 1
        counts: dict[str, int] = {}
        for name, (rule, fields) in matched.items():
            if rule.stacked is not None and "p" not in fields and len(stored[name]) > rule.stacked:
                counts[rule.ours] = stored[name][rule.stacked]
        self.number = max(counts.values(), default=0)
        sparse = counts.get(_LAYER + _ROUTER, 0)
        self.sparse = self.number // sparse if sparse else 0

    def of(
        self, rule: Rule, fields: Mapping[str, int], shape: Shape
    ) -> list[tuple[int, tuple[int, int] | None]] | None:
        """Return the layers that a stored tensor holds and where in it; None: it cannot be."""
        if rule.stacked is None:
            return [(fields.get("i", -1), None)]
        if len(shape) <= rule.stacked:
            return None
        number = shape[rule.stacked]
        if "p" in fields:
            layers = [(block + 1) * self.interval + fields["p"] for block in range(number)]
        else:
            held = [i for i in range(self.number) if self._has(rule.ours, i, number)]
            if len(held) != number:
                return None
            layers = held
        return [(layer, (rule.stacked, index)) for index, layer in enumerate(layers)]

    def _has(self, name: str, layer: int, number: int) -> bool:
        """Return whether a layer has a tensor, of which so many layers do."""
        if number == self.number:
            return True
        is_sparse = bool(self.sparse) and layer % self.sparse == self.sparse - 1
        of_sparse = any(word in name for word in ("extra_mlp", "expert", "router"))
        return is_sparse if of_sparse else not is_sparse


def recognise(stored: Mapping[str, Shape]) -> Found:
    """Return what the layout that explains most of the stored tensors makes of them."""
    tried = [find(layout, stored) for layout in LAYOUTS]
    return min(tried, key=lambda one: (len(one.unknown), len(one.problems)))


# ---- from ours to stored tensors ---------------------------------------------------------------


def place(layout: Layout, ours: Mapping[str, Shape]) -> dict[str, Placed]:
    """Return where a layout puts each tensor. KeyError: it has no place for one.

    Layouts that stack layers are read and not written.
    """
    return {name: Placed(shape, _parts(layout, name, shape)) for name, shape in ours.items()}


def _parts(layout: Layout, name: str, shape: Shape) -> tuple[Part, ...]:
    for rule in layout.rules:
        fields = fields_of(rule.ours, name)
        if fields is None or rule.stacked is not None:
            continue
        if "{e}" not in rule.theirs:
            return (Part(None, rule.theirs.format(**fields), None, rule.operations),)
        return tuple(
            Part(e, rule.theirs.format(**fields, e=e), None, rule.operations)
            for e in range(shape[0])
        )
    raise KeyError(name)


def stored_shapes(placed: Mapping[str, Placed]) -> dict[str, Shape]:
    """Return the shapes of the stored tensors of a layout that stacks no layers."""
    shapes = {}
    for one in placed.values():
        for part in one.parts:
            own = one.shape if part.matrix is None else one.shape[1:]
            shape = shape_after(part.operations, own)
            assert shape is not None, f"{part.theirs}: {part.operations} of {own}"
            shapes[part.theirs] = shape
    return shapes
