"""What the mixture-of-experts layer refuses. Spec: MOE-11."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from openmoe_production.arguments import require_floats, require_integers, require_shape
from openmoe_production.layers import require_dtype
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import PARAMETERS, ROUTERS, Decision


def require_names(parameters: Mapping[str, jax.Array]) -> None:
    """Refuse parameters of other names than `records.PARAMETERS`."""
    if set(parameters) != set(PARAMETERS):
        raise RejectedError(
            "parameters", "MOE-11", f"must hold {PARAMETERS}, got {sorted(parameters)}"
        )


def require_record(decision: Decision, num_experts: int) -> None:
    """Refuse, outside a trace, kept choices without an expert or a slot of their own."""
    if isinstance(decision.kept, jax.core.Tracer):
        return
    expert, position, kept = map(
        np.asarray, (decision.expert_index, decision.position, decision.kept)
    )
    require_integers("decision.expert_index", expert, "MOE-11", least=-1, most=num_experts - 1)
    if (kept & ((expert < 0) | (position < 0) | (position >= decision.capacity))).any():
        raise RejectedError("decision.kept", "MOE-11", "must be false where there is no slot")
    places = np.argwhere(kept)[:, 0], expert[kept], position[kept]
    if len(set(zip(*(place.tolist() for place in places), strict=True))) < int(kept.sum()):
        raise RejectedError("decision.position", "MOE-11", "must not give one slot to two choices")


def require_forced(decision: Decision, shape: tuple[int, ...], capacity: int) -> None:
    """Refuse a decision given to a layer of another shape [G, T, K] or capacity."""
    for name in ("expert_index", "position", "kept"):
        wanted = dict(zip("GTK", shape, strict=True))
        require_shape(f"decision.{name}", getattr(decision, name), wanted, "MOE-11")
    if decision.capacity != capacity:
        raise RejectedError(
            "decision.capacity", "MOE-11", f"must be {capacity}, got {decision.capacity}"
        )


def require_layer(
    inputs: jax.Array,
    parameters: Mapping[str, jax.Array],
    router: str,
    expert_dtype: str,
    *,
    shares: int = 1,
) -> None:
    """Refuse inputs [G, T, D], parameters and options that do not make a layer.

    The experts of one of `shares` are an equal part of those that the router knows.
    """
    if router not in ROUTERS:
        raise RejectedError("router", "MOE-11", f"must be one of {ROUTERS}, got {router!r}")
    require_dtype("expert_dtype", expert_dtype, "MOE-11")
    require_names(parameters)
    require_shape("inputs", inputs, {"G": None, "T": None, "D": None}, "MOE-11")
    width = inputs.shape[2]
    require_shape("parameters['router']", parameters["router"], {"D": width, "E": None}, "MOE-11")
    experts = parameters["router"].shape[1] // shares
    shape: dict[str, dict[str, int | None]] = {"wi_1": {"E": experts, "D": width, "F": None}}
    require_shape("parameters['wi_1']", parameters["wi_1"], shape["wi_1"], "MOE-11")
    hidden = parameters["wi_1"].shape[2]
    shape["wi_0"] = {"E": experts, "D": width, "2F": 2 * hidden}
    shape["wo"] = {"E": experts, "F": hidden, "D": width}
    for name in ("wi_0", "wo"):
        require_shape(f"parameters[{name!r}]", parameters[name], shape[name], "MOE-11")
    require_floats("inputs", inputs, "MOE-11")
    for name in PARAMETERS:
        require_floats(f"parameters[{name!r}]", parameters[name], "MOE-11")
