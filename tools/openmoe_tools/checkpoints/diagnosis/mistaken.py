"""Tensors under others' names: which kinds are mistaken for which, and layers moved as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from openmoe_tools.checkpoints.diagnosis.causes import Cause
from openmoe_tools.checkpoints.verification.findings import ranges
from openmoe_tools.checkpoints.verification.structure import EMBEDDING, HEAD

LAYER = re.compile(r"decoder/layers_(\d+)/(.+)")
QKV = ("self_attention/query/kernel", "self_attention/key/kernel", "self_attention/value/kernel")


def kind_in_layer(name: str) -> str:
    """Return what a tensor is, without its layer."""
    match = LAYER.fullmatch(name)
    return match[2] if match else name


def near(kind: str) -> set[str]:
    """Return the kinds that may be taken for one another."""
    parent, _, leaf = kind.rpartition("/")
    if leaf == "kernel" and "self_attention" in parent:
        return {*QKV, "self_attention/out/kernel"}
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


def distance(name: str, other: str) -> tuple[int, int]:
    """Return how far apart two tensors are: the same kind is near, then the same layer."""
    mine, theirs = LAYER.fullmatch(name), LAYER.fullmatch(other)
    if mine is None or theirs is None:
        return (2, 0)
    return (int(mine[2] != theirs[2]), abs(int(mine[1]) - int(theirs[1])))


def other_layer(name: str, other: str | None) -> int | None:
    """Return the layer whose tensor of the same kind is meant; None: there is none."""
    mine, theirs = LAYER.fullmatch(name), LAYER.fullmatch(other or "")
    if mine is None or theirs is None or mine[2] != theirs[2]:
        return None
    return int(theirs[1])


def movements(sources: Mapping[int, int]) -> Iterator[tuple[list[int], str, str, str]]:
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


def cause_of(name: str, other: str) -> str:
    """Return what it is called when a tensor holds another's values."""
    mine, theirs = kind_in_layer(name), kind_in_layer(other)
    if mine == theirs:
        return "wrong layer"
    both = {mine, theirs}
    leaves = frozenset(kind.split("/")[-2] for kind in both)
    known = {
        "embedding and head swapped": both == {EMBEDDING, HEAD},
        "query, key and value swapped": both <= {*QKV, "self_attention/out/kernel"},
        "norms swapped": all(kind.endswith("norm/scale") for kind in both),
        "gate and up swapped": leaves == {"wi_0", "wi_1"},
        "up and down swapped": leaves in ({"wi_0", "wo"}, {"wi_1", "wo"}),
    }
    return next((cause for cause, is_it in known.items() if is_it), "holds another tensor")


def held(name: str, other: str) -> Cause:
    """Return the cause of a matrix that stands under another's name."""
    fix = "write each under its own name"
    return Cause(cause_of(name, other), f"holds the source's {other}", fix)
