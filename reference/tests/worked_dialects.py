"""Worked examples of dialects, answered by hand or by the naive form."""

from __future__ import annotations

import naive_training
import numpy as np
from worked_configuration import FIELDS
from worked_example import Example
from worked_model import FULL, LOGITS_BOUND, batch, fields, run, weights

from openmoe_spec.dialects import DIALECTS

# Copied by hand from the published config.json files and the paper's tables 11 and 12.
_PORT = {"z_loss_factor": 0.01, "label_smoothing": 0.001, "router_z_loss_factor": 0.0001}
_PAPER = {"z_loss_factor": 0.001, "router_z_loss_factor": 0.0001, "label_smoothing": 0.0}


def configurations() -> list[Example]:
    """Return published configurations in another dialect."""
    found = []
    for dialect, changes in (("torch_port", _PORT), ("paper", _PAPER)):
        for name, published in FIELDS.items():
            wanted = published | changes
            if (dialect, name) == ("paper", "base"):
                wanted["mlp_dim"] = 3072
            found.append(
                Example(
                    *(f"{dialect}_{name}", "DIAL-04", f"{name} of {dialect}", "configuration"),
                    {"name": name, "dialect": dialect},
                    wanted,
                )
            )
    return found


def rates() -> list[Example]:
    """Return learning rates of step 100."""
    return [
        Example(
            *(f"warmup_{dialect}", clause, f"step 100 in {dialect}", "learning_rate"),
            {"step": 100, "dialect": dialect},
            np.float64(naive_training.learning_rate(100, warmup=DIALECTS[dialect]["warmup"])),
            {"relative": 2e-6},
        )
        for dialect, clause in (("t5x", "DIAL-01"), ("torch_port", "DIAL-01"), ("paper", "DIAL-03"))
    ]


def passes() -> list[Example]:
    """Return forward passes in another dialect."""
    port = fields(num_experts=4, num_selected_experts=2, min_expert_capacity=1)
    masked = batch([[0, 5, 0, 0, 6], [0, 0, 3, 4, 1]], [[5, 1, 1, 6, 2], [1, 3, 4, 1, 2]])
    seen = {"attention_mask": np.array([[1, 1, 0, 0, 1], [0, 0, 1, 1, 1]], np.int32)}
    found = []
    for dialect, clause, configuration, given, what in (
        (
            "torch_port",
            "DIAL-01",
            port,
            masked | seen,
            "one group, no token mask, key 0 is visible",
        ),
        ("paper", "DIAL-03", fields(), FULL, "side by side, two projections, scaled products"),
    ):
        choices = DIALECTS[dialect]
        parameters = weights(configuration, 22, doubled_gate=choices["feed_forward"] == "cubic")
        passed = run(configuration, parameters, given, choices=choices)
        arguments = {
            "configuration": configuration,
            "parameters": parameters,
            "batch": given,
            "dialect": dialect,
        }
        answer = {"logits": passed.logits}
        found.append(
            Example(f"pass_{dialect}", clause, what, "forward", arguments, answer, LOGITS_BOUND)
        )
    return found


def examples() -> list[Example]:
    """Return the examples of dialects, in the order of SPEC.md."""
    return [*rates(), *passes(), *configurations()]
