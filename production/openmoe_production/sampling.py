"""From logits to a token; the random draw is an input. Spec: DEC-08, DEC-10..DEC-13."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from openmoe_production.arguments import require_floats, require_shape
from openmoe_spec.errors import RejectedError

LEAST_TEMPERATURE = 1e-4
"""At or below it the best token is taken."""

HIDDEN = -1e7
"""What stands for a logit that is cut off."""

Choose = Callable[[jax.Array, jax.Array], jax.Array]
"""Picks a token a row, [B], from logits [B, V] and the number of the step."""


def sample(
    logits: jax.Array,
    *,
    noise: jax.Array | None = None,
    temperature: jax.Array | float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> jax.Array:
    """Return the token [B] of the largest (cut logits / temperature + noise); equals: the least id.

    `noise` [B, V] is Gumbel's, see `gumbel`; without it the temperature must be 0 and the best token
    is taken. The cuts are static, the temperature need not be. A compiled program cannot refuse a row
    whose logits are not finite: its token is -1, which is none, see `require_tokens`.
    Errors: RejectedError DEC-10. Spec: DEC-08, DEC-11. Source: t5x decoding.py::temperature_sample.
    """
    require_shape("logits", logits, {"B": None, "V": None}, "DEC-10")
    require_floats("logits", logits, "DEC-10")
    require_choice(temperature, top_k, top_p, vocabulary_size=logits.shape[-1], noise=noise)
    finite = jnp.isfinite(logits).all(axis=-1)
    best = jnp.where(finite, _argmax(logits), -1)
    if noise is None:
        return best
    require_shape("noise", noise, dict(zip("BV", logits.shape, strict=True)), "DEC-10")
    require_floats("noise", noise, "DEC-10")
    # Without the barrier XLA multiplies with the reciprocal, which rounds twice.
    divisor: jax.Array = lax.optimization_barrier(jnp.full_like(logits, temperature))  # type: ignore[no-untyped-call]
    scaled = logits / divisor
    if top_k:
        scaled = among_largest(scaled, top_k)
    if top_p:
        scaled = among_mass(scaled, top_p)
    drawn = jnp.where(finite, _argmax(scaled + noise), -1)
    return jnp.where(temperature <= LEAST_TEMPERATURE, best, drawn)


def _argmax(values: jax.Array) -> jax.Array:
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def require_tokens(tokens: np.ndarray) -> None:
    """Refuse what a compiled program chose from logits that are not finite. Spec: DEC-10."""
    if (tokens < 0).any():
        reason = "must be finite, got infinity or not-a-number"
        raise RejectedError("logits", "DEC-10", reason)


def among_largest(logits: jax.Array, count: int) -> jax.Array:
    """Return logits [B, V] with all below the `count`-th largest hidden; its equals stay.

    Spec: DEC-12. Source: t5x binary_search.py::topk_mask.
    """
    least = lax.top_k(logits, count)[0][:, -1:]
    return jnp.where(logits >= least, logits, HIDDEN)


def among_mass(logits: jax.Array, mass: float) -> jax.Array:
    """Return logits [B, V] with all hidden but the fewest most probable that hold `mass`.

    Equals of the least of them stay. Spec: DEC-13. Source: t5x binary_search.py::topp_mask.
    """
    p = jax.nn.softmax(logits, axis=-1)
    ordered = jnp.sort(p, axis=-1, descending=True)
    enough = (jnp.cumsum(ordered, axis=-1) >= mass).at[:, -1].set(True)  # rounding may miss 1
    least = jnp.take_along_axis(ordered, enough.argmax(axis=-1)[:, None], axis=-1)
    return jnp.where(p >= least, logits, HIDDEN)


def require_choice(
    temperature: jax.Array | float,
    top_k: int,
    top_p: float,
    *,
    vocabulary_size: int,
    noise: Any,
) -> None:
    """Refuse numbers out of range, both cuts at once, and a draw without noise. Spec: DEC-10."""
    whole = isinstance(top_k, int | np.integer) and not isinstance(top_k, bool)
    if not whole or not 0 <= top_k <= vocabulary_size:
        reason = f"must be a whole number in 0..{vocabulary_size}, got {top_k!r}"
        raise RejectedError("top_k", "DEC-10", reason)
    _require_number("top_p", top_p, most=1.0)
    if top_k and top_p:
        raise RejectedError("top_p", "DEC-10", "must be 0 when top_k is given")
    if isinstance(temperature, jax.core.Tracer):
        return  # its value is not known here; the caller checks it before jit
    _require_number("temperature", temperature, most=float(np.finfo(np.float32).max))
    if noise is None and temperature > LEAST_TEMPERATURE:
        raise RejectedError("noise", "DEC-10", "must be given unless the temperature is 0")


def _require_number(name: str, value: object, *, most: float) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    number = number or (isinstance(value, jax.Array) and value.ndim == 0)
    if not number or not 0 <= value <= most:  # type: ignore[operator]
        raise RejectedError(name, "DEC-10", f"must be a number in 0..{most:g}, got {value!r}")


def gumbel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return noise that makes the choice a draw from the softmax. Spec: DEC-11."""
    return jax.random.gumbel(key, shape, jnp.float32)


def chooser(
    key: jax.Array | None = None,
    *,
    temperature: jax.Array | float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> Choose:
    """Return what picks the tokens of each step, with noise of its own for each from `key`.

    Without a key the temperature must be 0. Errors: RejectedError DEC-10. Spec: DEC-08, DEC-11.
    """

    def choose(logits: jax.Array, number: jax.Array) -> jax.Array:
        drawn = None if key is None else gumbel(jax.random.fold_in(key, number), logits.shape)
        return sample(logits, noise=drawn, temperature=temperature, top_k=top_k, top_p=top_p)

    return choose


BEST = chooser()
"""Picks the token of the largest logit."""
