"""The functional tier: both models' forward passes on the same ids, and where they part first.

How far they may be apart is measured, not chosen: from what rounding does to the first model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from openmoe_spec.config import Configuration
from openmoe_tools.checkpoints.function.comparison import Comparison
from openmoe_tools.checkpoints.function.probes import (
    BUDGET,
    SEED,
    Probe,
    extend,
    probes,
)
from openmoe_tools.checkpoints.function.result import Functional
from openmoe_tools.checkpoints.function.sides import (
    Model,
    Recorded,
    RefusedError,
    Side,
    check_recorded,
)
from openmoe_tools.checkpoints.verification.findings import DIFFERS


def prepare(
    a: Side,
    configuration: Configuration,
    *,
    seed: int = SEED,
    budget: int = BUDGET,
) -> tuple[Probe, ...]:
    """Return the rows to compare with: those of `probes`, and random ones until A's experts are reached.

    Errors: UsageError on an unknown implementation, and on weights that do not fit.
    """
    one = Model.of("A", a, configuration)
    with np.errstate(over="ignore", invalid="ignore"):
        return extend(
            probes(configuration, seed),
            lambda ids: one.run(ids).decisions,
            configuration,
            dialect=a.dialect,
            seed=seed,
            budget=budget,
        )


def compare(
    a: Side,
    b: Side | Recorded,
    configuration: Configuration,
    probes: tuple[Probe, ...] | None = None,
    *,
    cast: str | Mapping[str, str] | None = None,
    same_weights: bool = False,
    seed: int = SEED,
    budget: int = BUDGET,
) -> Functional:
    """Return whether B computes what A does, as far as rounding and a declared cast let it.

    probes        rows of ids; None: those of `prepare`, or those of a recording
    cast          dtype of B's weights, of all or by name, after which they may differ from A's
    same_weights  they are known to be equal, bit by bit or after the cast
    Errors: UsageError on recordings that do not fit the configuration, an unknown implementation.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite becomes a finding
        try:
            if isinstance(b, Recorded):
                for one in b.recordings:
                    check_recorded(one, configuration)
                recorded = (one.ids.astype(np.int32) for one in b.recordings)
                asked = tuple(Probe(ids, "recorded") for ids in recorded)
            else:
                asked = (
                    prepare(a, configuration, seed=seed, budget=budget)
                    if probes is None
                    else probes
                )
            found = Comparison(a, b, configuration, asked, cast)
            return found.result(same_weights=same_weights)
        except RefusedError as error:
            return Functional(verdict=DIFFERS, findings=(str(error),))
