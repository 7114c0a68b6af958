"""Planted bugs that need JAX: programs that compute the right numbers in the wrong way, and a
wrong derivative. The kit's own mutants live in `openmoe_conformance.mutants`."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp

from openmoe_conformance.mutants import mutant
from openmoe_production import layers, moe, one_hot, part_gradients, programs, routing
from openmoe_production.adapter import Adapter
from openmoe_spec.records import Decision


def _shapes(sizes: dict[str, int]) -> tuple[Any, dict[str, Any]]:
    def shape(*letters: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(sizes[x] for x in letters), jnp.float32)

    sizes = sizes | {"double": 2 * sizes["hidden"]}
    parameters = {
        "router": shape("width", "experts"),
        "wi_0": shape("experts", "width", "double"),
        "wi_1": shape("experts", "width", "hidden"),
        "wo": shape("experts", "hidden", "width"),
    }
    return shape("groups", "tokens", "width"), parameters


class _Program(Adapter):
    """Production whose programs are traced from another layer."""

    def layer(self, inputs: Any, parameters: Any, **options: Any) -> Any:
        raise NotImplementedError

    def operations(self, program: str, **sizes: int) -> list[dict[str, Any]]:
        inputs, parameters = _shapes(sizes)
        layer = partial(self.layer, k=sizes["k"], capacity=sizes["capacity"])
        if program == "moe_gradients":
            loss = jax.grad(lambda x, w: layer(x, w).sum(), argnums=(0, 1))
            return programs.operations(loss, inputs, parameters)
        return programs.operations(layer, inputs, parameters)


@mutant("ROUTE-27")
class RouterAtDefaultPrecision(_Program):
    """The router's product leaves its precision to the device."""

    def layer(self, inputs: Any, parameters: Any, **options: Any) -> Any:
        return jax.nn.softmax(jnp.einsum("gtd,de->gte", inputs, parameters["router"]))


@mutant("ROUTE-27")
class RouterInBfloat16(_Program):
    """The router multiplies bfloat16 operands, at the highest precision."""

    def layer(self, inputs: Any, parameters: Any, **options: Any) -> Any:
        operands = inputs.astype(jnp.bfloat16), parameters["router"].astype(jnp.bfloat16)
        return jnp.einsum("gtd,de->gte", *operands, precision=jax.lax.Precision.HIGHEST)


@mutant("MOE-12")
class OneHotMasks(_Program):
    """Dispatch and combine multiply by masks of T x E x C elements."""

    def layer(self, inputs: Any, parameters: Any, **options: Any) -> Any:
        return one_hot.moe(inputs, parameters, **options)


@mutant("MOE-13")
class GathersAreDifferentiated(_Program):
    """Gathers are left to automatic differentiation, which scatters floats backwards."""

    def layer(self, inputs: Any, parameters: Any, *, k: int, capacity: int) -> Any:
        _, probabilities = routing.logits_and_probabilities(inputs, parameters["router"])
        decision = routing.decide(probabilities, k=k, capacity=capacity)
        experts = parameters["router"].shape[1]
        slot, inverse = moe.ways_of_tokens(decision, experts)
        take = jax.vmap(partial(jnp.take, axis=0, mode="fill", fill_value=0))
        slots = take(inputs, inverse // k)[0].reshape(experts, capacity, -1)
        weights = (parameters[name] for name in ("wi_0", "wi_1", "wo"))
        outputs = layers.gated_mlp(slots, *weights).reshape(1, experts * capacity, -1)
        weight = jnp.where(decision.kept, decision.gate, 0)
        return (take(outputs, slot) * weight[..., None]).sum(axis=2)


@mutant("MOE-13")
class FloatsAreScattered(_Program):
    """Token inputs are scattered into their slots."""

    def layer(self, inputs: Any, parameters: Any, *, k: int, capacity: int) -> Any:
        _, probabilities = routing.logits_and_probabilities(inputs, parameters["router"])
        decision: Decision = routing.decide(probabilities, k=k, capacity=capacity)
        experts = parameters["router"].shape[1]
        slot, _ = moe.ways_of_tokens(decision, experts)
        empty = jnp.zeros((experts * capacity, inputs.shape[-1]))
        return empty.at[slot[0].reshape(-1)].set(jnp.repeat(inputs[0], k, axis=0), mode="drop")


@jax.custom_vjp
def _combine(outputs: Any, weight: Any, slot: Any, inverse: Any) -> Any:
    return _right_combine(outputs, weight, slot, inverse)


def _unweighted_backward(saved: Any, cotangent: Any) -> Any:
    outputs, weight, slot, inverse = saved
    d_outputs, *_ = moe._combine_backward(
        (outputs, jnp.ones_like(weight), slot, inverse), cotangent
    )
    return d_outputs, *moe._combine_backward(saved, cotangent)[1:]


_right_combine = moe.combine
_combine.defvjp(moe._combine_forward, _unweighted_backward)


@mutant("MOE-09")
class BackwardPassForgetsGates(Adapter):
    """The custom derivative of combine does not weigh the cotangent of expert outputs."""

    def moe_gradients(
        self,
        inputs: Any,
        parameters: Any,
        cotangent: Any,
        *,
        auxiliary_loss_factor: float = 0.0,
        router_z_loss_factor: float = 0.0,
        **options: Any,
    ) -> dict[str, Any]:
        factors = (auxiliary_loss_factor, router_z_loss_factor)
        arrays = jax.tree.map(jnp.asarray, (inputs, dict(parameters), cotangent))
        with patch.object(moe, "combine", _combine):  # untraced: nothing cached is used
            d_inputs, d_parameters = part_gradients.layer_gradients(*arrays, factors, **options)
        return {"inputs": d_inputs, **d_parameters}
