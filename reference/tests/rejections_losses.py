"""What the layer's losses, metrics and gradients refuse."""

from __future__ import annotations

from collections.abc import Iterator

from rejections import (
    LEGAL,
    NOT_FACTORS,
    Row,
    changed,
    changed_record,
    rows_of_arrays,
    rows_of_sizes,
    rows_of_values,
)
from rejections_moe import parameter_rows
from rejections_routing import (
    CHANCES,
    CHOICE,
    DECISION,
    INPUTS,
    KEPT,
    KERNEL,
    LAYER,
    LOGITS,
    MASK,
    D,
    E,
    G,
    T,
    choice_rows,
    normal,
    place_rows,
    record_rows,
)

from openmoe_reference import losses

LEGAL.update(
    {
        "losses.balance_loss": {
            "probabilities": CHANCES,
            "expert_index": DECISION.expert_index,
            "padding_mask": MASK,
        },
        "losses.balance_loss_of_batch": {
            "probabilities": CHANCES,
            "expert_index": DECISION.expert_index,
            "padding_mask": MASK,
        },
        "losses.router_z_loss": {"logits": LOGITS, "padding_mask": MASK},
        "losses.metrics": {
            "logits": LOGITS,
            "probabilities": CHANCES,
            "decision": DECISION,
            "padding_mask": None,
            "scatter": False,
            "balance": losses.balance_loss,
        },
        "gradients.router_gradients": {
            "inputs": INPUTS,
            "kernel": KERNEL,
            "probability_cotangent": normal(G, T, E),
            "logit_cotangent": normal(G, T, E),
        },
        "gradients.loss_cotangents": {
            "inputs": INPUTS,
            "kernel": KERNEL,
            "expert_index": DECISION.expert_index,
            "balance": 0.5,
            "z": 0.25,
            "padding_mask": MASK,
        },
        "gradients.layer_gradients": {
            "inputs": INPUTS,
            "parameters": LAYER,
            "cotangent": normal(G, T, D),
            "decision": DECISION,
            "balance": 0.5,
            "z": 0.25,
            "padding_mask": MASK,
        },
    }
)


def loss_rows() -> Iterator[Row]:
    """Yield the illegal calls of the layer's losses."""
    clauses = ("LOSS-13",)
    for function in ("losses.balance_loss", "losses.balance_loss_of_batch"):
        yield from rows_of_arrays(function, tuple(LEGAL[function]), clauses)
        yield from rows_of_sizes(
            function,
            {"probabilities": (0, 1), "expert_index": (0, 1), "padding_mask": (0, 1)},
            clauses,
        )
        yield from rows_of_values(
            function,
            "expert_index",
            {
                "an expert too many": changed(DECISION.expert_index, (0, 0, 0), E),
                "below -1": changed(DECISION.expert_index, (0, 0, 0), -2),
            },
            *clauses,
        )
    function = "losses.router_z_loss"
    yield from rows_of_arrays(function, ("logits", "padding_mask"), clauses)
    yield from rows_of_sizes(function, {"logits": (0, 1), "padding_mask": (0, 1)}, clauses)
    function = "losses.metrics"
    axes = {"logits": (0, 1, 2), "probabilities": (0, 1, 2), "padding_mask": (0, 1)}
    masked = LEGAL[function] | {"padding_mask": MASK}
    for row in (
        *rows_of_arrays(function, tuple(axes), clauses, arrays=masked),
        *rows_of_sizes(function, axes, clauses, arrays=masked),
    ):
        named = row.arguments if len(row.arguments) == 1 else (*row.arguments, "decision")
        yield row._replace(arguments=named)
        yield row._replace(
            what=f"{row.what}, experts' choice",
            changes=row.changes | {"decision": CHOICE},
            arguments=named,
        )
    yield from record_rows(function, ("expert_index", "gate", "kept"), clauses)
    yield from choice_rows(function, clauses)
    bad = {
        "an expert too many": changed_record(DECISION, expert_index=(KEPT, E)),
        "an expert below -1": changed_record(DECISION, expert_index=(KEPT, -2)),
        "capacity zero": changed_record(DECISION, capacity=0),
        "capacity two and a half": changed_record(DECISION, capacity=2.5),
    }
    yield from rows_of_values(function, "decision", bad, *clauses)


def gradient_rows() -> Iterator[Row]:
    """Yield the illegal calls of the gradients; they have no clause of their own."""
    clauses = ("ROUTE-20", "MOE-11", "LOSS-13")
    function = "gradients.router_gradients"
    axes = {
        "inputs": (0, 1, 2),
        "kernel": (0, 1),
        "probability_cotangent": (0, 1, 2),
        "logit_cotangent": (0, 1, 2),
    }
    yield from rows_of_arrays(function, tuple(axes), clauses)
    yield from rows_of_sizes(function, axes, clauses)
    not_finite = {
        what: NOT_FACTORS[what] for what in ("infinity", "not a number", "a numeral", "nothing")
    }
    function = "gradients.loss_cotangents"
    axes = {"inputs": (0, 1, 2), "kernel": (0,), "expert_index": (0, 1), "padding_mask": (0, 1)}
    yield from rows_of_arrays(function, tuple(axes), clauses)
    yield from rows_of_sizes(function, axes, clauses)
    for argument in ("balance", "z"):
        yield from rows_of_values(function, argument, not_finite, *clauses)
    function = "gradients.layer_gradients"
    axes = {"inputs": (0, 1), "cotangent": (0, 1, 2), "padding_mask": (0, 1)}
    yield from rows_of_arrays(function, tuple(axes), clauses)
    for row in rows_of_sizes(function, axes, clauses):
        yield row._replace(arguments=(*row.arguments, "parameters", "decision"))
    yield from parameter_rows(function)
    yield from record_rows(function, ("expert_index", "gate", "position", "kept"), clauses)
    yield from place_rows(function, clauses)
    yield from choice_rows(function, clauses)
    for argument in ("balance", "z"):
        yield from rows_of_values(function, argument, not_finite, *clauses)


ROWS = [*loss_rows(), *gradient_rows()]
