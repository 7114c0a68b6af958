"""SPEC.md "Dialects": from the names of choices to the functions they name.

One table, RULES: what each option exchanges. No other module knows that there are dialects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from openmoe_reference import attention, grouping, layers, losses, masks, moe, routing
from openmoe_reference.model import Rules, parallel_block
from openmoe_reference.moe import Steps
from openmoe_spec.dialects import choices

STEPS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("capacity", "even_slots"): {"capacity": grouping.even_capacity},
    ("groups", "whole_call"): {"groups": grouping.one_group},
    ("one_choice", "logits"): {"decide": routing.decide_one_by_logits},
    ("router_kernel", "activation"): {"router_logits": moe.router_logits_of_rounded},
    ("combine", "activation"): {"combine": moe.combine_rounded},
    ("feed_forward", "swiglu"): {"activations": ("swish", "linear")},
    ("balance", "batch"): {"balance_loss": losses.balance_loss_of_batch},
}
"""What an option exchanges in a sparse layer."""

RULES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("token_mask", "none"): {"token_mask": layers.every_token},
    ("attention_mask", "user"): {"visible": masks.visible_by_user},
    ("masked_keys", "first_key_open"): {"bias": masks.first_key_open_bias},
    ("extra_mlp", "parallel"): {"sparse_block": parallel_block},
    ("feed_forward", "swiglu"): {"activations": ("swish", "linear")},
    ("logits", "activation"): {"logits_dtype": "activation"},
}
"""What an option exchanges in the model around its layers."""


def steps(dialect: str | Mapping[str, str] = "t5x") -> Steps:
    """Return the functions of a sparse layer in a dialect. Errors: RejectedError DIAL-01."""
    exchanged: dict[str, Any] = {}
    for choice in choices(dialect).items():
        exchanged |= STEPS.get(choice, {})
    return Steps(**exchanged)


def rules(dialect: str | Mapping[str, str] = "t5x") -> Rules:
    """Return the functions of a model in a dialect, a name or single choices over `t5x`.

    Errors: RejectedError DIAL-01 on an unknown dialect, point or option. Spec: DIAL-01.
    """
    chosen = choices(dialect)
    exchanged: dict[str, Any] = {}
    for choice in chosen.items():
        exchanged |= RULES.get(choice, {})
    return replace(
        Rules(**exchanged),
        attention=partial(
            attention.attention,
            scale=chosen["attention_scale"],
            softmax_dtype=chosen["softmax"],
        ),
        moe=partial(moe.moe_layer, steps=steps(dialect)),
    )
