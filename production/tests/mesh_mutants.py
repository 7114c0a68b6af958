"""Planted bugs of the port on a mesh: one function is exchanged while programs are traced.

Each is of the right type to `jax.shard_map`, so nothing but its numbers, or its program, tells it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from jax import lax

from openmoe_conformance.mutants import mutant
from openmoe_production import (
    calling,
    collectives,
    grouping,
    layers,
    losses,
    mesh_layer,
    moe,
    routing,
    total_loss,
    training,
)
from openmoe_production.adapter import Adapter
from openmoe_production.collectives import ALONE, Shard
from openmoe_spec.records import Decision

MESH = (2, 2, 2)
FUNCTIONS = (
    *("moe", "moe_layer", "moe_gradients", "operations"),
    *("forward", "loss", "model_gradients", "accumulated_gradients", "train_step", "decode"),
)


class OnOneMesh(Adapter):
    """Production on one mesh with `wrong` for a function: `class Bug(OnOneMesh, at=..., wrong=...)`."""

    def __init_subclass__(cls, *, at: tuple[Any, str], wrong: Any) -> None:
        super().__init_subclass__()
        jitted = cache(partial(_jitted, cls.__name__))
        for name in FUNCTIONS:
            setattr(cls, name, _exchanged(getattr(Adapter, name), at, wrong, jitted))

    def meshes(self) -> tuple[tuple[int, int, int], ...]:
        return (MESH,)


_compiled = calling._jitted.__wrapped__


def _jitted(_: str, function: Any, static: tuple[str, ...], plain: bool) -> Any:
    """Return `calling._jitted` of a function that nobody has traced before."""

    def anew(**given: Any) -> Any:
        return function(**given)

    return _compiled(anew, static, plain)


def _exchanged(right: Any, at: tuple[Any, str], wrong: Any, jitted: Any) -> Callable[..., Any]:
    def run(adapter: Any, *arguments: Any, mesh: Any = None, **options: Any) -> Any:
        if mesh is None:
            return right(adapter, *arguments, **options)
        with ExitStack() as stack:
            stack.enter_context(patch.object(*at, wrong))
            stack.enter_context(patch.object(calling, "_jitted", jitted))
            return right(adapter, *arguments, mesh=mesh, **options)

    return run


# ---- groups and drops ----------------------------------------------------------------------

_share_of_groups, _decide, _moe = grouping.share_of_groups, routing.decide, moe.moe


def _of_devices(*batch: int, shares: int, num_expert_replicas: int, **sizes: int) -> Any:
    replicas = num_expert_replicas * shares
    return _share_of_groups(*batch, shares=shares, num_expert_replicas=replicas, **sizes)


@mutant("MESH-01")
class GroupsFollowTheDevices(OnOneMesh, at=(grouping, "share_of_groups"), wrong=_of_devices):
    """The devices that hold rows count as expert replicas."""


def _of_own_rows(*batch: int, shares: int, **sizes: int) -> Any:
    del shares
    return _share_of_groups(*batch, **sizes)


@mutant("MESH-01")
class EachShareMakesItsGroups(OnOneMesh, at=(grouping, "share_of_groups"), wrong=_of_own_rows):
    """A device derives groups from the rows that it has."""


def _in_part(*arguments: Any, capacity: int, shard: Shard = ALONE, **options: Any) -> Any:
    part = max(1, capacity // shard.size("batch"))
    return _moe(*arguments, capacity=part, shard=shard, **options)


@mutant("MESH-01")
class CapacityIsDividedAmongDevices(OnOneMesh, at=(moe, "moe"), wrong=_in_part):
    """A device grants its part of an expert's slots."""


def _in_pieces(probabilities: Any, *, capacity: int, **options: Any) -> Decision:
    groups, tokens, experts = probabilities.shape
    options["padding_mask"] = None
    halves = probabilities.reshape(groups * 2, tokens // 2, experts)
    found = _decide(halves, capacity=max(1, capacity // 2), **options)
    second = (jnp.arange(groups * 2) % 2)[:, None, None] * max(1, capacity // 2)
    fields = (found.expert_index, found.gate, found.position + second, found.kept)
    return Decision(*(field.reshape(groups, tokens, -1) for field in fields), capacity)


@mutant("MESH-01")
class DropsArePerDevice(OnOneMesh, at=(routing, "decide"), wrong=_in_pieces):
    """The tokens of a group lie on two devices, each of which counts its own queue."""


# ---- the layer -----------------------------------------------------------------------------

_metrics, _layer = losses.metrics, mesh_layer.layer


def _mean_of_quotients(*arguments: Any, shard: Shard = ALONE, **options: Any) -> Any:
    own = _metrics(*arguments, **options)
    return {n: shard.mean("batch", shard.varying("batch", value)) for n, value in own.items()}


@mutant("MESH-02")
class ConfidenceIsAMeanOfQuotients(OnOneMesh, at=(losses, "metrics"), wrong=_mean_of_quotients):
    """Every device divides its own counts, and the quotients are averaged."""


def _joined_halves(
    inputs: Any, parameters: Any, noise: Any = None, *, layout: Any = None, **options: Any
) -> Any:
    if layout is None:
        return _layer(inputs, parameters, noise, **options)
    wi_0, parts = parameters["wi_0"], layout.size("expert_mlp")
    pieces = wi_0.reshape(*wi_0.shape[:2], parts, 2, -1).swapaxes(2, 3).reshape(wi_0.shape)
    return _layer(inputs, {**parameters, "wi_0": pieces}, noise, layout=layout, **options)


@mutant("MESH-02")
class TheGateIsCutAtTheJoinedWidth(OnOneMesh, at=(mesh_layer, "layer"), wrong=_joined_halves):
    """Devices have columns of wi_0 as they stand, those of the halves mixed."""


def _own_part(shard: Shard, logical: str, value: Any) -> Any:
    if not shard.axes(logical):
        return value
    width = value.shape[-1] // shard.size(logical)
    return lax.dynamic_slice_in_dim(value, shard.index(logical) * width, width, axis=-1)


@mutant("MESH-02")
class HiddenWidthsAreNotAdded(OnOneMesh, at=(Shard, "sum_in_parts"), wrong=_own_part):
    """A device takes what its part of F gives for the whole."""


_exchange = Shard.exchange


def _backwards(shard: Shard, logical: str, value: Any, *, split: int, concat: int) -> Any:
    found = _exchange(shard, logical, value, split=split, concat=concat)
    if split or shard.size(logical) == 1:
        return found
    return jnp.concatenate(jnp.split(found, shard.size(logical), axis=concat)[::-1], axis=concat)


@mutant("MESH-02")
class OutputsComeBackInTheWrongOrder(OnOneMesh, at=(Shard, "exchange"), wrong=_backwards):
    """Outputs are joined in the reverse order of the experts' devices."""


# ---- gradients -----------------------------------------------------------------------------

_varying = Shard.varying


def _with_gradient(backward: Callable[[Any, tuple[str, ...]], Any]) -> Any:
    """Return `Shard.varying` whose gradient is `backward` of that of each device."""

    def varying(shard: Shard, logical: str, tree: Any) -> Any:
        if logical != "batch":
            return _varying(shard, logical, tree)

        def one(leaf: Any) -> Any:
            axes = collectives._missing(leaf, shard.axes(logical))

            @jax.custom_vjp
            def own(leaf: Any) -> Any:
                return _varying(shard, logical, leaf)

            own.defvjp(lambda leaf: (own(leaf), None), lambda _, d: (backward(d, axes),))
            return own(leaf) if axes else leaf

        return jax.tree.map(one, tree)

    return varying


def _of_the_first(d: Any, axes: tuple[str, ...]) -> Any:
    return collectives._whole(d[None], axes, 0)[0]


def _of_all_twice(d: Any, axes: tuple[str, ...]) -> Any:
    return 2 * lax.psum(d, axes)


_unsummed = _with_gradient(_of_the_first)


@mutant("MESH-03")
class WeightsAreNotSummed(OnOneMesh, at=(Shard, "varying"), wrong=_unsummed):
    """What every device holds gets the gradient of the first one's rows."""


@mutant("MESH-03")
class WeightsAreSummedTwice(OnOneMesh, at=(Shard, "varying"), wrong=_with_gradient(_of_all_twice)):
    """Gradients of what every device holds are added up by two hands."""


@mutant("MESH-05")
class TensorsAreNotSummed(OnOneMesh, at=(Shard, "varying"), wrong=_unsummed):
    """Norms, routers and all that a device has whole get the gradient of the first one's rows."""


# ---- the model -----------------------------------------------------------------------------

_sum, _text_loss, _accumulated = Shard.sum, total_loss.text_loss, training.accumulated


def _mean_of_heads(shard: Shard, logical: str, value: Any) -> Any:
    found = _sum(shard, logical, value)
    return found / shard.size(logical) if logical == "joined_kv" else found


@mutant("MESH-04")
class HeadsAreAveraged(OnOneMesh, at=(Shard, "sum"), wrong=_mean_of_heads):
    """Outputs of the devices' heads are averaged."""


def _mean_of_losses(*arguments: Any, shard: Shard = ALONE, **options: Any) -> Any:
    alone = Shard({name: how for name, how in shard.splits.items() if name != "batch"})
    own = _text_loss(*arguments, shard=alone, **options)
    return {n: shard.mean("batch", shard.varying("batch", value)) for n, value in own.items()}


@mutant("MESH-05")
class LossesAreAveragedOverDevices(OnOneMesh, at=(total_loss, "text_loss"), wrong=_mean_of_losses):
    """Every device divides by the weights of its rows, and the losses are averaged."""


def _averaged_like(shard: Shard, logical: str, value: Any, like: Any) -> Any:
    summed = _sum_like(shard, logical, value, like)
    return jax.tree.map(lambda leaf: leaf / shard.size(logical), summed)


_sum_like = Shard.sum_like


@mutant("MESH-05")
class AccumulatedGradientsAreAveraged(OnOneMesh, at=(Shard, "sum_like"), wrong=_averaged_like):
    """What the devices' slices give is divided by their number."""


def _dealt(parameters: Any, batch: Any, *rest: Any, layout: Any, **options: Any) -> Any:
    count, shares = options["num_microbatches"], layout.size("batch")
    dealt = {
        name: value.reshape(shares, count, -1, value.shape[1]).swapaxes(0, 1).reshape(value.shape)
        for name, value in batch.items()
    }
    return _accumulated(parameters, dealt, *rest, layout=layout, **options)


@mutant("MESH-07")
class MicrobatchesAreCutOnEachDevice(OnOneMesh, at=(training, "accumulated"), wrong=_dealt):
    """A microbatch holds a slice of every device's rows."""


# ---- what must be refused ------------------------------------------------------------------


@mutant("MESH-06")
class PiecesOfGroupsAreAccepted(OnOneMesh, at=(grouping, "share_of_groups"), wrong=_of_own_rows):
    """Rows that make no whole groups for each device are grouped where they lie."""

    def meshes(self) -> tuple[tuple[int, int, int], ...]:
        return Adapter.meshes(self)


# ---- programs ------------------------------------------------------------------------------


def _by_gathered_weights(slots: Any, parameters: Any, dtype: Any, _: Any, shard: Shard) -> Any:
    groups, _, width = slots.shape
    experts = parameters["router"].shape[1]
    whole = {n: shard.gathered("expert", parameters[n], axis=0) for n in ("wi_0", "wi_1", "wo")}
    here = slots.astype(dtype).reshape(groups, experts, -1, width)
    here = shard.gathered("expert_mlp", here, axis=3).swapaxes(0, 1)
    outputs = layers.gated_mlp(here.reshape(experts, -1, here.shape[3]), **whole)
    outputs = shard.sum_in_parts("expert_mlp", outputs)
    return outputs.reshape(*here.shape[:3], -1).swapaxes(0, 1).reshape(slots.shape)


@mutant("MESH-08")
class ExpertsTravelToTheSlots(OnOneMesh, at=(moe, "_experts"), wrong=_by_gathered_weights):
    """Every device gathers all experts' weights for its own groups."""


def _twice(inputs: Any, *weights: Any, **_: Any) -> Any:
    both = layers.gated_mlp(jnp.concatenate([inputs, inputs], axis=1), *weights)
    return both[:, : inputs.shape[1]]


@mutant("MESH-08")
class EverySlotIsComputedTwice(OnOneMesh, at=(moe, "gated_mlp"), wrong=_twice):
    """Two devices' worth of slots goes through the experts of each."""


def _in_whole_width(slots: Any, parameters: Any, dtype: Any, _: Any, shard: Shard) -> Any:
    """Return the same numbers, slots brought to their whole width before they are sent."""
    parts = shard.size("expert_mlp")
    groups, _, width = slots.shape
    experts = parameters["router"].shape[1]
    whole = shard.gathered("expert_mlp", slots, axis=2)
    here = whole.astype(dtype).reshape(groups, experts, -1, width * parts)
    brought = shard.exchange("expert", here, split=1, concat=0)
    by_expert = brought.swapaxes(0, 1)
    weights = (parameters[n] for n in ("wi_0", "wi_1", "wo"))
    outputs = layers.gated_mlp(by_expert.reshape(len(by_expert), -1, width * parts), *weights)
    by_group = outputs.reshape(by_expert.shape).swapaxes(0, 1)
    returned = shard.exchange("expert", by_group, split=0, concat=1)
    return shard.sum_in_parts("expert_mlp", returned).reshape(slots.shape)


@mutant("MESH-08")
class SlotsTravelInTheirWholeWidth(OnOneMesh, at=(moe, "_experts"), wrong=_in_whole_width):
    """Every device of a width sends the whole slot."""
