"""Training and decoding as the conformance kit sees them: NumPy in, NumPy out, everything jitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import (
    batches,
    decoding,
    initialisation,
    mesh_adapter,
    optimizer,
    sampling,
)
from openmoe_production.arguments import (
    require_count,
    require_factor,
    require_floats,
    require_shape,
)
from openmoe_production.calling import as_numpy, call
from openmoe_production.mesh_adapter import Mesh, MeshAdapter, held
from openmoe_production.model_adapter import of_model
from openmoe_production.sharding import Layout
from openmoe_production.training import require_microbatches
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

Tree = Mapping[str, Any]
Fields = Mapping[str, Any]


class TrainingAdapter(MeshAdapter):
    """Functions of training and decoding in the dialect `t5x`."""

    # ---- training --------------------------------------------------------------------------

    def learning_rate(self, step: int) -> float:
        """Return the rate of an update."""
        optimizer.require_step(step)
        return float(call(optimizer.learning_rate, "OPT-12", {"step": step}))

    def optimizer_state(self, shape: tuple[int, ...], axes: tuple[str, ...]) -> dict[str, Any]:
        """Return the moments of one tensor before the first update, by the names of SLOTS."""
        one: Any = jax.ShapeDtypeStruct(shape, jnp.float32)  # type: ignore[no-untyped-call]
        return as_numpy(optimizer.adafactor({"": tuple(axes)}).init({"": one}).slots[""])

    def adafactor(
        self,
        parameter: np.ndarray,
        gradient: np.ndarray,
        state: Tree,
        *,
        axes: tuple[str, ...],
        step: int,
        rate: float,
    ) -> dict[str, Any]:
        """Return one tensor and its moments after an update: `parameter` and `state`."""
        optimizer.require_step(step)
        require_factor("rate", rate, "OPT-12")
        arrays = {
            "parameter": parameter,
            "gradient": gradient,
            "state": dict(state),
            "step": step,
            "rate": rate,
        }
        return as_numpy(call(_adafactor, "OPT-12", arrays, axes=tuple(axes)))

    def scaled_gradients(self, gradients: Tree, *, num_expert_partitions: int) -> dict[str, Any]:
        """Return gradients with those of experts multiplied."""
        moved = {name: jnp.asarray(value) for name, value in gradients.items()}
        return as_numpy(
            optimizer.scaled_gradients(moved, num_expert_partitions=num_expert_partitions)
        )

    def accumulated_gradients(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        num_microbatches: int,
        training: bool = True,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """Return `loss`, by parts, and `gradients`, added up over microbatches."""
        c = Configuration(**configuration)
        batches.require_batch(batch, c)
        require_microbatches(batch, num_microbatches)
        found = of_model(
            mesh_adapter.accumulated,
            parameters,
            c,
            {"batch": dict(batch)},
            num_microbatches=num_microbatches,
            training=training,
            **self.on(mesh, mesh_adapter.of_slices(c, batch, num_microbatches)),
        )
        for name, gradient in found.gradients.items():
            require_floats(f"gradients[{name!r}]", gradient, "OPT-12")
        return {"loss": _numbers(found.shown.losses), "gradients": as_numpy(found.gradients)}

    def train_step(
        self,
        parameters: Tree,
        state: Mapping[str, Tree],
        batch: Tree,
        *,
        configuration: Fields,
        step: int,
        num_microbatches: int = 1,
        num_expert_partitions: int = 1,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """Return `loss`, by parts, and the updated `parameters` and `state`."""
        c = Configuration(**configuration)
        batches.require_batch(batch, c)
        optimizer.require_step(step)
        require_microbatches(batch, num_microbatches)
        require_count("num_expert_partitions", num_expert_partitions, "OPT-12")
        slots = {name: dict(moments) for name, moments in state.items()}
        found = of_model(
            mesh_adapter.train_step,
            parameters,
            c,
            {"state": optimizer.State(jnp.int32(step), slots), "batch": dict(batch)},
            num_microbatches=num_microbatches,
            num_expert_partitions=num_expert_partitions,
            **self.on(mesh, mesh_adapter.of_slices(c, batch, num_microbatches)),
        )
        for name, moments in found.state.slots.items():
            for moment in moments.values():  # as finite as the gradients were
                require_floats(f"gradients[{name!r}]", moment, "OPT-12")
        return {
            "loss": _numbers(found.shown.losses),
            "parameters": as_numpy(found.parameters),
            "state": as_numpy(found.state.slots),
        }

    def initialise(self, configuration: Fields, seed: int) -> dict[str, np.ndarray]:
        """Return freshly drawn tensors by name."""
        c = Configuration(**configuration)
        return as_numpy(initialisation.initialise(c, jax.random.key(seed)))

    # ---- decoding --------------------------------------------------------------------------

    def decode(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        steps: int,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        num_expert_replicas: int = 1,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        """Return `logits` [B, S, V] of steps on the batch's own tokens, and the caches around them."""
        c = Configuration(**configuration)
        decoding.require_steps(batch, c, steps)
        logits, first, last = of_model(
            _forced_steps,
            parameters,
            c,
            {"batch": dict(batch)},
            steps=steps,
            dtype=dtype,
            expert_dtype=expert_dtype,
            num_expert_replicas=num_expert_replicas,
            **self.on(mesh, mesh_adapter.of_steps(c, batch, num_expert_replicas)),
        )
        return {"logits": np.asarray(logits), "prefill": as_numpy(first), "cache": as_numpy(last)}

    def generate(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        noise: np.ndarray | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        num_expert_replicas: int = 1,
        mesh: Mesh | None = None,
    ) -> np.ndarray:
        """Return new ids [B, L]; step s adds noise[:, s] of noise [B, S, V]."""
        c = Configuration(**configuration)
        decoding.prefill_batch(batch, c)
        sampling.require_choice(
            temperature, top_k, top_p, vocabulary_size=c.vocabulary_size, noise=noise
        )
        if noise is not None:
            _require_noise(noise, batch, c)
        found = np.asarray(
            of_model(
                _generate,
                parameters,
                c,
                {"batch": dict(batch), "noise": noise, "temperature": float(temperature)},
                top_k=top_k,
                top_p=top_p,
                dtype=dtype,
                expert_dtype=expert_dtype,
                num_expert_replicas=num_expert_replicas,
                **self.on(mesh, mesh_adapter.of_steps(c, batch, num_expert_replicas)),
            )
        )
        sampling.require_tokens(found)
        return found

    def sample(
        self,
        logits: np.ndarray,
        *,
        noise: np.ndarray | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
    ) -> np.ndarray:
        """Return a token [B] of logits [B, V]."""
        sampling.require_choice(
            temperature, top_k, top_p, vocabulary_size=logits.shape[-1], noise=noise
        )
        arrays = {"logits": logits, "noise": noise, "temperature": float(temperature)}
        return np.asarray(call(sampling.sample, "DEC-10", arrays, top_k=top_k, top_p=top_p))


def _adafactor(
    parameter: jax.Array,
    gradient: jax.Array,
    state: optimizer.Slots,
    step: jax.Array,
    rate: jax.Array,
    *,
    axes: tuple[str, ...],
) -> dict[str, Any]:
    one = optimizer.adafactor({"": axes}, lambda _: rate)
    before = optimizer.State(step, {"": state})
    changes, after = one.update({"": gradient}, before, {"": parameter})
    return {"parameter": parameter + changes[""], "state": after.slots[""]}


def _forced_steps(parameters: Any, *, layout: Layout | None = None, **options: Any) -> Any:
    return decoding.forced_steps(held(parameters, layout), layout=layout, **options)


def _generate(
    parameters: Any,
    batch: Any,
    temperature: jax.Array,
    noise: jax.Array | None = None,
    *,
    configuration: Configuration,
    top_k: int,
    top_p: float,
    layout: Layout | None = None,
    **options: Any,
) -> jax.Array:
    def choose(logits: jax.Array, number: jax.Array) -> jax.Array:
        return sampling.sample(
            logits,
            noise=None if noise is None else noise[:, number],
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    tensors = held(parameters, layout)
    return decoding.generate(tensors, batch, configuration, choose, layout=layout, **options)


def _require_noise(noise: Any, batch: Tree, configuration: Configuration) -> None:
    rows, length = batch["decoder_input_tokens"].shape
    wanted = {"B": rows, "S": None, "V": configuration.vocabulary_size}
    require_shape("noise", noise, wanted, "DEC-10")
    require_floats("noise", noise, "DEC-10")
    steps = length - int(decoding.prompt(batch)[1].min())
    if noise.shape[1] < steps:
        raise RejectedError("noise", "DEC-10", f"must serve {steps} steps, got {noise.shape}")


def _numbers(parts: Mapping[str, jax.Array]) -> dict[str, float]:
    return {name: float(part) for name, part in parts.items()}
