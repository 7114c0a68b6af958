"""SPEC.md "Meshes": whole models and their training on the mesh of `meshes.py`.

Rows never meet outside the experts and the loss: what is computed row by row is not cut along them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from openmoe_reference import (
    attention,
    batches,
    cross_entropy,
    grouping,
    layers,
    mesh_layers,
    model,
    model_gradients,
    optimizer,
)
from openmoe_reference.arguments import check_integer
from openmoe_reference.meshes import COLLECTIVES, Collectives, Mesh, Tensors, check_parts, parts_of
from openmoe_spec.config import Configuration

# ---- a pass --------------------------------------------------------------------------------


def rules(mesh: Mesh, *, collectives: Collectives = COLLECTIVES) -> model.Rules:
    """Return the functions of a pass on a mesh: heads, hidden widths and ids in parts.

    A norm, a router and the mask are whole on every share. Spec: MESH-04, MESH-05.
    """
    shared: dict[str, Any] = {"mesh": mesh, "collectives": collectives}
    return model.Rules(
        embed=partial(_embed, **shared),
        attention=partial(_attention, **shared),
        feed_forward=partial(mesh_layers.feed_forward, **shared),
        moe=partial(mesh_layers.moe_layer, **shared),
        output_logits=partial(_output_logits, mesh=mesh),
    )


def _embed(
    table: ndarray, ids: ndarray, *, mesh: Mesh, collectives: Collectives, dtype: str
) -> ndarray:
    size = len(table) // mesh.model
    found: ndarray = collectives.add(
        [
            layers.embed(part, ids - i * size, dtype=dtype)  # zeros where another has the id
            for i, part in enumerate(np.split(table, mesh.model))
        ]
    )
    return found


def _attention(
    inputs: ndarray,
    kernels: Tensors,
    bias: ndarray | None,
    *,
    mesh: Mesh,
    collectives: Collectives,
    num_heads: int,
    cache: tuple[ndarray, ndarray, ndarray] | None = None,
    **options: Any,
) -> tuple[ndarray, ndarray, ndarray]:
    def parts(value: ndarray, axis: int) -> list[ndarray]:
        return np.split(value, mesh.model, axis=axis)

    found = []
    for i in range(mesh.model):
        own = {name: parts(kernels[name], 0 if name == "out" else 1)[i] for name in kernels}
        seen = None if cache is None else (*(parts(one, 2)[i] for one in cache[:2]), cache[2])
        found.append(
            attention.attention(
                inputs,
                own,
                bias,
                num_heads=num_heads // mesh.model,
                cache=seen,  # type: ignore[arg-type]
                **options,
            )
        )
    outputs, keys, values = zip(*found, strict=True)
    return collectives.add(outputs), np.concatenate(keys, axis=2), np.concatenate(values, axis=2)


def _output_logits(inputs: ndarray, kernel: ndarray, *, mesh: Mesh, **options: Any) -> ndarray:
    parts = np.split(kernel, mesh.model, axis=1)
    return np.concatenate([layers.output_logits(inputs, one, **options) for one in parts], axis=-1)


# ---- losses and gradients ------------------------------------------------------------------


def total_loss(
    logits: Float[ndarray, "B L V"],
    batch: Tensors,
    metrics: Mapping[int, Mapping[str, np.floating]],
    configuration: Configuration,
    mesh: Mesh,
    *,
    collectives: Collectives = COLLECTIVES,
) -> dict[str, np.floating]:
    """Return the parts of the loss, the text's added up over the shares of rows.

    Rows have unlike numbers of tokens: each share divides by the weights of the WHOLE batch. `metrics`
    are of all groups as they are.
    Errors: RejectedError LOSS-25, MESH-06. Spec: MESH-05, LOSS-21..LOSS-23.
    """
    divisor, weights = cross_entropy.normalizer("NUM_REAL_TARGET_TOKENS", batch)
    cross_entropy.check_targets(logits, batch["decoder_target_tokens"], weights)
    check_parts(rows=(len(logits), mesh.rows))
    cut = (np.split(one, mesh.rows) for one in (logits, batch["decoder_target_tokens"], weights))
    shares = []
    for own, targets, weight in zip(*cut, strict=True):
        text = cross_entropy.cross_entropy(
            own,
            targets,
            weights=weight,
            normalizing_factor=float(divisor),
            z_loss=configuration.z_loss_factor,
            label_smoothing=configuration.label_smoothing,
        )
        right = ((own.argmax(axis=-1) == targets) * weight).sum()
        shares.append({**text._asdict(), "accuracy": right / divisor})
    text = collectives.add(shares)
    parts = {
        "cross_entropy": text["loss"] - text["z_loss"],
        "z_loss": text["z_loss"],
        **cross_entropy.router_losses(metrics, configuration, logits.dtype),
    }
    counts = {name: text[name] for name in ("weight_sum", "accuracy")}
    return {"total": sum(parts.values(), start=logits.dtype.type(0)), **parts, **counts}


def tensor_gradients(
    parameters: Tensors,
    batch: Tensors,
    configuration: Configuration,
    mesh: Mesh,
    *,
    call: model.Call,
    collectives: Collectives = COLLECTIVES,
) -> dict[str, ndarray]:
    """Return the gradient of each tensor, added up over the shares of rows.

    `call` holds all decisions; a share must make its groups of the whole by itself
    (`shares_stand_alone`) and have a position with a weight.
    Errors: as `model_gradients.model_gradients`; RejectedError MESH-06. Spec: MESH-03, MESH-05.
    """
    batches.check_parameters(parameters, configuration)
    batches.check_batch(batch, configuration)
    check_model(configuration, mesh, rows=len(batch["decoder_input_tokens"]))
    divisor, weights = cross_entropy.normalizer("NUM_REAL_TARGET_TOKENS", batch)
    decided = {i: parts_of(one, mesh.rows) for i, one in call.decisions.items()}
    found = []
    for number, own in enumerate(np.split(weights, mesh.rows)):
        # A share's part of the text's loss is that of its weights, of the routers' losses 1 / shares.
        part = float(own.sum() / divisor)
        scaled = replace(
            configuration,
            auxiliary_loss_factor=configuration.auxiliary_loss_factor / (part * mesh.rows),
            router_z_loss_factor=configuration.router_z_loss_factor / (part * mesh.rows),
        )
        rows = {name: np.split(value, mesh.rows)[number] for name, value in batch.items()}
        forced = replace(call, decisions={i: one[number] for i, one in decided.items()})
        _, of_share = model_gradients.model_gradients(parameters, rows, scaled, call=forced)
        found.append({name: part * value for name, value in of_share.items()})
    summed: dict[str, ndarray] = collectives.add_gradients(found)
    return summed


def shares_stand_alone(batch: int, length: int, mesh: Mesh, **sizes: int) -> bool:
    """Return whether a share of the rows makes by itself the groups that it has of the whole.

    `sizes` are those of `grouping.groups_by_experts`. Spec: MESH-01.
    """
    (rows, columns), groups = grouping.groups_by_experts(batch, length, **sizes)
    alone = grouping.groups_by_experts(batch // mesh.rows, length, **sizes)
    return alone == ((rows // mesh.rows, columns), groups // mesh.rows)


def accumulated(
    of_batch: optimizer.Gradients, batch: Tensors, mesh: Mesh, *, num_microbatches: int
) -> tuple[dict[str, float], dict[str, ndarray]]:
    """Return `optimizer.accumulated`: slices of the rows of the WHOLE batch, each then in shares.

    Errors: RejectedError MESH-06 when the rows of a slice have no equal shares; OPT-12.
    Spec: MESH-07.
    """
    rows = len(batch["decoder_input_tokens"])
    count = check_integer("num_microbatches", num_microbatches, "OPT-12", least=1, most=rows)
    check_parts(rows=(rows // count, mesh.rows))
    return optimizer.accumulated(of_batch, batch, num_microbatches=count)


def check_model(configuration: Configuration, mesh: Mesh, *, rows: int) -> None:
    """Refuse rows, experts, heads, widths or ids that have no equal parts. Spec: MESH-06."""
    c = configuration
    check_parts(
        rows=(rows, mesh.rows),
        num_experts=(c.num_experts, mesh.expert),
        num_heads=(c.num_heads, mesh.model),
        num_kv_heads=(c.key_value_heads, mesh.model),
        mlp_dim=(c.mlp_dim, mesh.model),
        expert_mlp_dim=(c.expert_width, mesh.model),
        embed_dim=(c.embed_dim, mesh.model),
        vocabulary_size=(c.vocabulary_size, mesh.model),
    )
