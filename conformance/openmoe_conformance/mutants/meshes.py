"""Mutants of SPEC.md "Meshes": shares of a layer that do not make the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.protocol import Mesh
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import grouping, meshes, routing
from openmoe_reference.meshes import Collectives, Routed
from openmoe_spec.records import Decision

Exchanged = Callable[[Mesh], Callable[..., Any]]
"""From a mesh to the function that stands for one of its collectives."""


class Together(ReferenceAdapter):
    """The reference with other collectives: `class Wrong(Together, add=...)`."""

    _exchanged: Mapping[str, Exchanged] = MappingProxyType({})

    def __init_subclass__(cls, **exchanged: Exchanged) -> None:
        super().__init_subclass__()
        cls._exchanged = exchanged

    def collectives(self, mesh: Mesh) -> Collectives:
        wrong = {name: made(mesh) for name, made in self._exchanged.items()}
        return replace(super().collectives(mesh), **wrong)


# ---- groups and drops ----------------------------------------------------------------------


def _of_devices(mesh: Mesh) -> Callable[..., Any]:
    def groups(*batch: int, num_expert_replicas: int, **sizes: int) -> Any:
        replicas = num_expert_replicas * mesh[0] * mesh[1]
        return grouping.groups_by_experts(*batch, num_expert_replicas=replicas, **sizes)

    return groups


@mutant("MESH-01")
class GroupsFollowTheDevices(Together, groups=_of_devices):
    """The devices that hold rows count as expert replicas, as where the models were trained."""


def _of_shares(mesh: Mesh) -> Callable[..., Any]:
    def groups(batch: int, length: int, **sizes: int) -> Any:
        shares = mesh[0] * mesh[1]
        (rows, columns), count = grouping.groups_by_experts(batch // shares, length, **sizes)
        return (rows * shares, columns), count * shares

    return groups


@mutant("MESH-01")
class EachShareMakesItsGroups(Together, groups=_of_shares):
    """A share derives groups from its own rows."""


def _of_part(mesh: Mesh) -> Callable[..., Any]:
    def decide(probabilities: ndarray, *, capacity: int, **options: Any) -> Decision:
        part = max(1, capacity // (mesh[0] * mesh[1]))
        return replace(routing.decide(probabilities, capacity=part, **options), capacity=capacity)

    return decide


@mutant("MESH-01")
class CapacityIsDividedAmongShares(Together, decide=_of_part):
    """Every share of the rows grants its part of an expert's slots."""


def _of_halves(mesh: Mesh) -> Callable[..., Any]:
    def decide(probabilities: ndarray, *, capacity: int, **options: Any) -> Decision:
        shares = mesh[0] * mesh[1]
        groups, tokens, experts = probabilities.shape
        pieces = probabilities.reshape(groups * shares, tokens // shares, experts)
        options["padding_mask"] = None
        found = routing.decide(pieces, capacity=max(1, capacity // shares), **options)
        shape = (groups, tokens, -1)
        fields = {name: getattr(found, name).reshape(shape) for name in ("expert_index", "gate")}
        # Slots of a piece stand behind those of the pieces before it.
        first = np.arange(groups * shares)[:, None, None] % shares * found.capacity
        position, kept = (found.position + first).reshape(shape), found.kept.reshape(shape)
        return Decision(**fields, position=position, kept=kept, capacity=capacity)

    return decide


@mutant("MESH-01")
class DropsArePerShare(Together, decide=_of_halves):
    """The tokens of a group lie on several shares, each of which counts its own queue."""


def _later_experts(mesh: Mesh) -> Callable[..., Any]:
    def decide(probabilities: ndarray, **options: Any) -> Decision:
        if np.prod(mesh) == 1:
            return routing.decide(probabilities, **options)
        turned = routing.decide(np.ascontiguousarray(probabilities[..., ::-1]), **options)
        last = probabilities.shape[-1] - 1
        return replace(turned, expert_index=last - turned.expert_index)

    return decide


@mutant("MESH-01")
class TiesGoToTheLastOnMeshes(Together, decide=_later_experts):
    """Equal probabilities are ordered by higher index where there is more than one device."""


# ---- the layer -----------------------------------------------------------------------------


def _mean_of_shares(_: Mesh) -> Callable[..., Any]:
    def metrics(shares: Sequence[Routed]) -> dict[str, Any]:
        each = [meshes.metrics([share]) for share in shares]
        return {name: np.mean([one[name] for one in each]) for name in each[0]}

    return metrics


@mutant("MESH-02")
class ConfidenceIsAMeanOfQuotients(Together, metrics=_mean_of_shares):
    """Every share divides its own counts, and the quotients are averaged."""


def _of_the_first(_: Mesh) -> Callable[..., Any]:
    return lambda shares: meshes.metrics(shares[:1])


@mutant("MESH-02")
class MetricsAreThoseOfTheFirstShare(Together, metrics=_of_the_first):
    """The metrics of the first share of the groups are shown."""


def _joined_width(_: Mesh) -> Callable[..., Any]:
    def part(kernels: Mapping[str, ndarray], number: int, parts: int) -> dict[str, ndarray]:
        own = meshes.part_of_hidden(kernels, number, parts)
        return own | {"wi_0": np.split(kernels["wi_0"], parts, axis=-1)[number]}

    return part


@mutant("MESH-02")
class TheGateIsCutAtTheJoinedWidth(Together, part_of_hidden=_joined_width):
    """wi_0 is cut at its 2F columns, so that a share has columns of one half alone."""


def first_part(_: Mesh) -> Callable[..., Any]:
    """Return a sum that is its first part."""
    return lambda parts: parts[0]


@mutant("MESH-02")
class PartsOfWidthsAreNotAdded(Together, add=first_part):
    """Each share takes its own part of the sum over hidden widths for the whole."""


def _backwards(_: Mesh) -> Callable[..., Any]:
    def exchange(pieces: Sequence[ndarray], *, split: int, concat: int) -> list[ndarray]:
        return meshes.exchange(pieces, split=split, concat=concat)[:: -1 if split else 1]

    return exchange


@mutant("MESH-02")
class SlotsGoToTheWrongExperts(Together, exchange=_backwards):
    """Slots are sent to the shares of experts in reverse order."""


def _not_sent_back(_: Mesh) -> Callable[..., Any]:
    def exchange(pieces: Sequence[ndarray], *, split: int, concat: int) -> list[ndarray]:
        turned = pieces if split else pieces[::-1]
        return meshes.exchange(turned, split=split, concat=concat)

    return exchange


@mutant("MESH-02")
class OutputsComeBackInTheWrongOrder(Together, exchange=_not_sent_back):
    """Outputs are joined in the reverse order of the experts' shares."""


# ---- gradients -----------------------------------------------------------------------------

_REPLICATED = ("router", "scale")


def _replicated(name: str) -> bool:
    return any(part in name for part in _REPLICATED)


def unsummed(_: Mesh) -> Callable[..., Any]:
    """Return a sum of gradients that leaves those of whole tensors to the first share."""

    def add(parts: Sequence[Mapping[str, ndarray]]) -> dict[str, ndarray]:
        summed = meshes.add(parts)
        return {name: parts[0][name] if _replicated(name) else summed[name] for name in summed}

    return add


@mutant("MESH-03")
class TheRoutersGradientIsNotSummed(Together, add_gradients=unsummed):
    """What every share has whole gets the gradient of the first share's rows."""


def summed_twice(mesh: Mesh) -> Callable[..., Any]:
    """Return a sum of gradients that adds those of whole tensors up once more."""

    def add(parts: Sequence[Mapping[str, ndarray]]) -> dict[str, ndarray]:
        summed = meshes.add(parts)
        return {n: v * mesh[2] if _replicated(n) else v for n, v in summed.items()}

    return add


@mutant("MESH-03")
class TheRoutersGradientIsSummedTwice(Together, add_gradients=summed_twice):
    """The shares of a width, which have one gradient alike, add it up once more."""


def _averaged(_: Mesh) -> Callable[..., Any]:
    def add(parts: Sequence[Mapping[str, ndarray]]) -> dict[str, ndarray]:
        return {name: value / len(parts) for name, value in meshes.add(parts).items()}

    return add


@mutant("MESH-03")
class GradientsAreAveragedOverShares(Together, add_gradients=_averaged):
    """The sum over shares is divided by their number."""
