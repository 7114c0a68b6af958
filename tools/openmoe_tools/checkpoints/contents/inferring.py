"""What tensors' names and shapes say of their model. Spec: PARAM-01, PARAM-02, PARAM-03."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.parameters import parameters

MOST_LAYERS = 10_000
"""The bound of `openmoe inspect` for configurations too."""

_TEMPLATE = Configuration(
    name="template",
    num_layers=2,
    num_moe_layers=1,
    embed_dim=1013,
    num_heads=3,
    num_kv_heads=1,
    head_dim=338,
    mlp_dim=1019,
    expert_mlp_dim=1021,
    num_experts=1031,
    vocabulary_size=1009,
)
"""A dense and a sparse layer whose sizes tell their axes apart."""

_AXES: Mapping[int, str] = {
    1009: "vocabulary_size",
    1013: "embed_dim",
    3 * 338: "query_width",
    338: "key_value_width",
    1019: "mlp_dim",
    2 * 1019: "gate_width",
    1031: "num_experts",
    1021: "expert_mlp_dim",
    2 * 1021: "expert_gate_width",
}
_KINDS = {one.name: tuple(_AXES[n] for n in one.shape) for one in parameters(_TEMPLATE)}
_DENSE = {name.partition("layers_0/")[2]: axes for name, axes in _KINDS.items() if "s_0/" in name}
_SPARSE = {name.partition("layers_1/")[2]: axes for name, axes in _KINDS.items() if "s_1/" in name}
_OUTSIDE = {name: axes for name, axes in _KINDS.items() if "layers_" not in name}
_LAYER = re.compile(r"decoder/layers_(\d+)/(.+)")


@dataclass(frozen=True)
class Model:
    """What tensors' shapes say of their model: the sizes of axes, None where no tensor has one.

    shapes    every tensor of such a model, in the order of the forward pass
    problems  tensors whose shapes go with no such model
    """

    sizes: Mapping[str, int | None]
    num_layers: int
    sparse_layers: tuple[int, ...]
    shapes: Mapping[str, tuple[int | None, ...]]
    problems: tuple[str, ...]

    @property
    def published(self) -> str | None:
        """Return the name of the published configuration that has these tensors."""
        for name, one in PUBLISHED.items():
            if self.shapes == {tensor.name: tensor.shape for tensor in parameters(one)}:
                return name
        return None


def infer(tensors: Mapping[str, tuple[int, ...]]) -> Model:
    """Return the model that tensors are of, by the names of PARAM-01 and their shapes."""
    votes: dict[str, Counter[int]] = {axis: Counter() for axis in _AXES.values()}
    kinds: dict[int, set[str]] = {}
    for name, shape in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is not None:
            kinds.setdefault(int(match[1]), set()).add(match[2])
        axes = _axes(name)
        if axes is not None and len(axes) == len(shape):
            for axis, size in zip(axes, shape, strict=True):
                votes[axis][size] += 1
    sizes = {axis: one.most_common(1)[0][0] if one else None for axis, one in votes.items()}
    number = max(kinds, default=-1) + 1
    if number > MOST_LAYERS:
        told = f"a tensor is of layer {number - 1:,}, and models have at most {MOST_LAYERS:,}"
        return Model(sizes, number, (), {}, (told,))
    sparse = tuple(_sparse(kinds, number))
    shapes = {name: tuple(sizes[axis] for axis in axes) for name, axes in _expected(number, sparse)}
    problems = []
    for name, shape in tensors.items():
        wanted = shapes.get(name)
        if wanted is None:
            problems.append(f"{name}: no such tensor in a layer of its kind")
        elif wanted != shape:
            problems.append(f"{name}: shape {list(shape)}, by the other tensors {list(wanted)}")
    return Model(sizes, number, sparse, shapes, tuple(problems))


def _axes(name: str) -> tuple[str, ...] | None:
    match = _LAYER.fullmatch(name)
    if match is None:
        return _OUTSIDE.get(name)
    return _DENSE.get(match[2]) or _SPARSE.get(match[2])


def _sparse(kinds: Mapping[int, set[str]], number: int) -> Iterator[int]:
    """Yield the sparse layers: by their tensors, and where none tells by the layers before."""
    of_sparse, of_dense = _SPARSE.keys() - _DENSE.keys(), _DENSE.keys() - _SPARSE.keys()
    known = [i for i in range(number) if kinds.get(i, set()) & of_sparse]
    interval = known[0] + 1 if known else 0
    for i in range(number):
        found = kinds.get(i, set())
        told = bool(found & of_sparse), bool(found & of_dense)
        if told[0] or (not told[1] and interval and i % interval == interval - 1):
            yield i


def _expected(number: int, sparse: Sequence[int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    embedding, *behind = _OUTSIDE.items()
    yield embedding
    for i in range(number):
        for name, axes in (_SPARSE if i in sparse else _DENSE).items():
            yield f"decoder/layers_{i}/{name}", axes
    yield from behind
