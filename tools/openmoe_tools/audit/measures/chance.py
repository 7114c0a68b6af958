"""What a capacity rule drops of routing by chance: queues alone make later tokens lose more.

Spec: AUDIT-16, AUDIT-18.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_reference.audit_drops import drop_counts
from openmoe_tools.audit.counting import queues
from openmoe_tools.audit.counting.layout import POSITION_BINS
from openmoe_tools.audit.measures.view import View

TOKENS = 400_000
"""Tokens that are drawn: the ratio of a quarter of a row is known to a sixth of a percent."""


def drops(view: View, rule: int) -> ndarray | None:
    """Return tokens and drops by part of a row, int64 [bins, 5], where every expert is as likely.

    None where the source does not tell how calls are cut into groups, or the layer pads them.
    """
    return view.once(("drops by chance", rule), lambda: _drawn(view, rule))


def _drawn(view: View, rule: int) -> ndarray | None:
    recipe, sizes = view.manifest["recipe"], view.sizes
    told = recipe["rules"][rule] if rule < len(recipe.get("rules", ())) else {}
    rows, length = recipe.get("rows"), sizes.length
    group, capacity = told.get("group_size"), told.get("capacity")
    if not (rows and group and capacity) or rows * length % group:
        return None
    calls = -(-TOKENS // (rows * length))
    draws = np.random.default_rng(0)
    chances = draws.random((calls * rows * length, sizes.experts), np.float32)
    # The places of the K largest of independent numbers are K different experts, all as likely.
    expert = np.argsort(-chances, axis=1)[:, : sizes.choices].astype(np.int32)
    queue = expert.reshape(-1, group, sizes.choices)
    dropped = queues.positions(queue, sizes.experts, "choices") >= capacity
    bins = np.arange(len(expert)) % length * POSITION_BINS // length
    return drop_counts(dropped.reshape(len(expert), -1), bins, num_keys=POSITION_BINS)
