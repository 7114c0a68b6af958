"""SPEC.md "Decoding": from logits to a token; the random draw is an input.

Line-comparable to t5x decoding.py::temperature_sample, binary_search.py@3234135.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_finite, check_integer
from openmoe_spec.errors import RejectedError

LEAST_TEMPERATURE = 1e-4
"""At or below it the best token is taken."""

HIDDEN = -1e7
"""What stands for a logit that is cut off."""


def sample(
    logits: Float[ndarray, "B V"],
    *,
    noise: Float[ndarray, "B V"] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Int[ndarray, " B"]:
    """Return the token of the largest (cut logits / temperature + noise); equals: the least id.

    `noise` is drawn from the Gumbel distribution by the caller, which makes the draw categorical; it
    may be left out when the temperature is 0.
    Errors: RejectedError DEC-10 on logits that are not finite, both cuts at once, no noise.
    Spec: DEC-08, DEC-11, DEC-12, DEC-13. Source: decoding.py::temperature_sample.
    """
    sizes: dict[str, int] = {}
    check_array("logits", logits, "B V", sizes, "DEC-10")
    temperature = check_finite("temperature", temperature, "DEC-10")
    top_k = check_integer("top_k", top_k, "DEC-10", least=0, most=sizes["V"])
    top_p = check_finite("top_p", top_p, "DEC-10")
    if temperature < 0:
        raise RejectedError("temperature", "DEC-10", f"must be 0 or more, got {temperature}")
    if not 0 <= top_p <= 1:
        raise RejectedError("top_p", "DEC-10", f"must be in 0..1, got {top_p}")
    if top_k and top_p:
        raise RejectedError("top_p", "DEC-10", "must be 0 when top_k is given")
    if temperature <= LEAST_TEMPERATURE:
        return logits.argmax(axis=-1)
    if noise is None:
        raise RejectedError("noise", "DEC-10", "must be given unless the temperature is 0")
    check_array("noise", noise, "B V", sizes, "DEC-10")
    scaled = logits / logits.dtype.type(temperature)
    if top_k:
        scaled = among_largest(scaled, top_k)
    if top_p:
        scaled = among_mass(scaled, top_p)
    return (scaled + noise).argmax(axis=-1)


def among_largest(logits: Float[ndarray, "B V"], count: int) -> Float[ndarray, "B V"]:
    """Return logits with all below the `count`-th largest hidden; its equals stay. Spec: DEC-12.

    Source: binary_search.py::topk_mask.
    """
    least = -np.sort(-logits, axis=-1)[:, count - 1 : count]
    return np.where(logits >= least, logits, logits.dtype.type(HIDDEN))


def among_mass(logits: Float[ndarray, "B V"], mass: float) -> Float[ndarray, "B V"]:
    """Return logits with all hidden but the fewest most probable that hold `mass`; equals stay.

    Spec: DEC-13. Source: binary_search.py::topp_mask.
    """
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    ordered = -np.sort(-p, axis=-1)
    enough = ordered.cumsum(axis=-1) >= mass
    enough[:, -1] = True  # rounding may leave the whole below 1
    least = np.take_along_axis(ordered, enough.argmax(axis=-1)[:, None], axis=-1)
    return np.where(p >= least, logits, logits.dtype.type(HIDDEN))
