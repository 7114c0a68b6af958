"""SPEC.md "Meshes": the mixture-of-experts layer on the mesh of `meshes.py`, share by share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from openmoe_reference import feed_forward as whole
from openmoe_reference import gradients, grouping, routing
from openmoe_reference import moe as layer
from openmoe_reference.arguments import (
    check_array,
    check_finite,
    check_integer,
    check_names,
    check_record,
)
from openmoe_reference.meshes import (
    COLLECTIVES,
    Collectives,
    Mesh,
    Routed,
    Tensors,
    check_parts,
    joined,
    parts_of,
)
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import PARAMETERS, Decision, LayerResult


def moe(
    inputs: Float[ndarray, "G T D"],
    parameters: Tensors,
    mesh: Mesh,
    *,
    k: int,
    capacity: int,
    ignore_padding: bool = False,
    batch_prioritized: bool = False,
    expert_dtype: str = "float32",
    decision: Decision | None = None,
    collectives: Collectives = COLLECTIVES,
) -> LayerResult:
    """Apply the layer of the masked router to whole groups, each share to its own.

    A given `decision` is used as in `moe.moe`.
    Errors: RejectedError MESH-06, MOE-11, ROUTE-20. Spec: MESH-01, MESH-02.
    """
    sizes = layer.check_layer(inputs, parameters, "masked", expert_dtype)
    check_integer("k", k, "ROUTE-20", least=1, most=sizes["E"])
    check_integer("capacity", capacity, "ROUTE-20", least=1)
    if decision is not None:
        check_record(decision, {**sizes, "K": k}, "ROUTE-20")
    check_parts(
        groups=(sizes["G"], mesh.rows),
        experts=(sizes["E"], mesh.expert),
        F=(sizes["F"], mesh.model),
        D=(sizes["D"], mesh.model),
    )
    forced = [None] * mesh.rows if decision is None else parts_of(decision, mesh.rows)
    shares, slots, tables = [], [], []
    for own, given in zip(np.split(inputs, mesh.rows), forced, strict=True):
        mask = routing.padding_mask(own) if ignore_padding else None
        wide = np.float64 if expert_dtype == "float64" else np.float32
        logits = routing.router_logits(own, parameters["router"], dtype=wide)
        probabilities = routing.softmax(logits)
        made = given or collectives.decide(
            probabilities.astype(np.float32),
            k=k,
            capacity=capacity,
            padding_mask=mask,
            batch_prioritized=batch_prioritized,
        )
        weights = probabilities if mask is None else probabilities * mask[..., None]
        gate = np.take_along_axis(weights, made.expert_index.clip(0), axis=-1)
        made = replace(made, gate=np.where(made.expert_index < 0, np.zeros_like(gate), gate))
        shares.append(Routed(own, mask, logits, probabilities, made))
        tables.append(layer.slots(made, num_experts=sizes["E"]))
        slots.append(layer.dispatch(own, tables[-1][0]))
    outputs = _experts(slots, parameters, mesh, expert_dtype, collectives)
    combined = [
        layer.combine(output.astype(inputs.dtype), *table, tokens=sizes["T"])
        for output, table in zip(outputs, tables, strict=True)
    ]
    return LayerResult(
        np.concatenate(combined),
        joined([share.decision for share in shares]),
        collectives.metrics(shares),
        np.concatenate([share.logits for share in shares]),
    )


def _experts(
    slots: list[ndarray], parameters: Tensors, mesh: Mesh, dtype: str, collectives: Collectives
) -> list[ndarray]:
    """Return the outputs of each share's slots [g, E, C, D], computed where the experts are."""
    names, found = ("wi_0", "wi_1", "wo"), []
    for first in range(0, mesh.rows, mesh.expert):  # slots stay on their data coordinate
        column = slots[first : first + mesh.expert]
        brought = collectives.exchange(column, split=1, concat=0)  # [all g, E of a share, C, D]
        done = []
        for number, here in enumerate(brought):
            own = {name: np.split(parameters[name], mesh.expert)[number] for name in names}
            done.append(
                np.stack(
                    [feed_forward(x, own, mesh, collectives=collectives, dtype=dtype) for x in here]
                )
            )
        found += collectives.exchange(done, split=0, concat=1)
    return found


def feed_forward(
    inputs: Float[ndarray, "E S D"],
    kernels: Tensors,
    mesh: Mesh,
    *,
    collectives: Collectives = COLLECTIVES,
    **options: Any,
) -> Float[ndarray, "E S D"]:
    """Return a feed-forward as the sum of those of the parts of F.

    Options are those of `feed_forward.feed_forward`. Spec: MESH-02, MESH-05.
    """
    parts = [collectives.part_of_hidden(kernels, i, mesh.model) for i in range(mesh.model)]
    return collectives.add([whole.feed_forward(inputs, own, **options) for own in parts])


def moe_layer(
    inputs: Float[ndarray, "B L D"],
    parameters: Tensors,
    mesh: Mesh,
    *,
    training: bool,
    k: int,
    train_capacity_factor: float,
    eval_capacity_factor: float,
    min_expert_capacity: int,
    max_group_size: int,
    num_expert_replicas: int,
    collectives: Collectives = COLLECTIVES,
    **options: Any,
) -> LayerResult:
    """Apply the layer to a batch: groups and capacity are those of the WHOLE batch.

    Options are those of `moe`.
    Errors: RejectedError MESH-06 when shares would not hold whole groups; GROUP-09, MOE-11.
    Spec: MESH-01, MESH-02.
    """
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "B L D", sizes, "MOE-11")
    check_names("parameters", parameters, PARAMETERS, "MOE-11")
    check_array("parameters['router']", parameters["router"], "D E", sizes, "MOE-11")
    padded, groups = collectives.groups(
        sizes["B"],
        sizes["L"],
        max_group_size=max_group_size,
        num_experts=sizes["E"],
        num_expert_replicas=num_expert_replicas,
    )
    check_parts(rows=(sizes["B"], mesh.rows), groups=(groups, mesh.rows))
    if mesh.rows > 1 and padded[0] != sizes["B"]:
        more = f"{padded[0] - sizes['B']} of padding, which no share has; {padded[0]} would do"
        raise RejectedError("rows", "MESH-06", f"{sizes['B']} get {more}")
    grouped = grouping.to_groups(inputs, padded=padded, num_groups=groups)
    factor = grouping.capacity_factor(
        training=training,
        train_capacity_factor=train_capacity_factor,
        eval_capacity_factor=eval_capacity_factor,
    )
    capacity = grouping.expert_capacity(
        grouped.shape[1],
        num_experts=sizes["E"],
        capacity_factor=factor,
        min_expert_capacity=min_expert_capacity,
    )
    result = moe(
        grouped, parameters, mesh, k=k, capacity=capacity, collectives=collectives, **options
    )
    output = grouping.from_groups(result.output, padded=padded, shape=(sizes["B"], sizes["L"]))
    return replace(result, output=output)


def layer_gradients(
    inputs: Float[ndarray, "G T D"],
    parameters: Tensors,
    cotangent: Float[ndarray, "G T D"],
    decision: Decision,
    mesh: Mesh,
    *,
    balance: float,
    z: float,
    padding_mask: ndarray | None = None,
    collectives: Collectives = COLLECTIVES,
) -> dict[str, ndarray]:
    """Return `gradients.layer_gradients` of each share's groups, added up for what all shares hold.

    The two losses are means over all groups, of which a share has its part.
    Errors: RejectedError MESH-06, MOE-11, LOSS-13. Spec: MESH-03.
    """
    sizes = layer.check_layer(inputs, parameters, "masked", "float64")
    check_array("cotangent", cotangent, "G T D", sizes, "MOE-11")
    check_finite("balance", balance, "LOSS-13")
    check_finite("z", z, "LOSS-13")
    if padding_mask is not None:
        check_array("padding_mask", padding_mask, "G T", sizes, "MOE-11", kind="b")
    check_record(decision, sizes, "MOE-11")
    check_parts(groups=(sizes["G"], mesh.rows))
    masks = [None] * mesh.rows if padding_mask is None else np.split(padding_mask, mesh.rows)
    found = [
        gradients.layer_gradients(
            own,
            parameters,
            d_output,
            decided,
            balance=balance / mesh.rows,
            z=z / mesh.rows,
            padding_mask=mask,
        )
        for own, d_output, decided, mask in zip(
            np.split(inputs, mesh.rows),
            np.split(cotangent, mesh.rows),
            parts_of(decision, mesh.rows),
            masks,
            strict=True,
        )
    ]
    of_inputs = np.concatenate([one.pop("inputs") for one in found])
    return {"inputs": of_inputs, **collectives.add_gradients(found)}
