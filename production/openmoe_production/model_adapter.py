"""The whole model as the conformance kit sees it: NumPy in, NumPy out, everything jitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import (
    attention,
    batches,
    cross_entropy,
    layers,
    mesh_adapter,
    model,
    moe_arguments,
    stacking,
)
from openmoe_production.arguments import require_integers
from openmoe_production.calling import as_numpy, call
from openmoe_production.mesh_adapter import Mesh, MeshAdapter, held
from openmoe_production.part_gradients import PARTS, cross_entropy_gradient
from openmoe_production.sharding import Layout
from openmoe_spec import layouts, parameters
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision

Tree = Mapping[str, np.ndarray]
Fields = Mapping[str, Any]


def of_model(
    function: Callable[..., Any],
    parameters: Tree,
    configuration: Configuration,
    arrays: Mapping[str, Any],
    **options: Any,
) -> Any:
    """Call a function of the model, whose parameters fit it."""
    batches.require_parameters(parameters, configuration)
    arrays = {"parameters": dict(parameters), **arrays}
    return call(
        function, "LAYER-08", arrays, sized_by="parameters", configuration=configuration, **options
    )


def _of_batch(function: Callable[..., Any], *, weighed: bool = False) -> Callable[..., Any]:
    """Return the protocol's function of parameters and a batch; `weighed` ones refuse its weights."""

    def run(
        adapter: ModelAdapter,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        training: bool = False,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        decisions: Mapping[int, Decision] | None = None,
        num_expert_replicas: int = 1,
        mesh: Mesh | None = None,
    ) -> Any:
        c = Configuration(**configuration)
        batches.require_batch(batch, c)
        shape = batch["decoder_input_tokens"].shape
        require = mesh_adapter.of_model(c, *shape, num_expert_replicas=num_expert_replicas)
        if weighed:
            adapter.normalizer("NUM_REAL_TARGET_TOKENS", batch)  # a trace hides the weights
        for decision in (decisions or {}).values():
            moe_arguments.require_record(decision, c.num_experts)
        found = of_model(
            function,
            parameters,
            c,
            {"batch": dict(batch), "decisions": decisions},
            training=training,
            dtype=dtype,
            expert_dtype=expert_dtype,
            num_expert_replicas=num_expert_replicas,
            **adapter.on(mesh, require),
        )
        return as_numpy(found)

    return run


def _forward(parameters: Any, *arguments: Any, layout: Layout | None = None, **options: Any) -> Any:
    tensors = held(parameters, layout)
    return model.forward(tensors, *arguments, trace=True, layout=layout, **options)


def _losses(parameters: Any, *arguments: Any, layout: Layout | None = None, **options: Any) -> Any:
    return model.loss_fn(held(parameters, layout), *arguments, layout=layout, **options)[1]


def _gradients(
    parameters: Any, *arguments: Any, layout: Layout | None = None, **options: Any
) -> Any:
    of_loss = jax.grad(model.loss_fn, has_aux=True)
    found, _ = of_loss(held(parameters, layout), *arguments, layout=layout, **options)
    return stacking.join_gates(found) if layout else found


def _of_logits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the protocol's function of logits and targets."""

    def run(
        adapter: ModelAdapter,
        logits: np.ndarray,
        targets: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        normalizing_factor: float | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> Any:
        del adapter
        numbers = {
            "normalizing_factor": normalizing_factor,
            "z_loss": z_loss,
            "label_smoothing": label_smoothing,
        }
        cross_entropy.require_targets(logits, targets, weights)
        cross_entropy.require_options(**numbers)
        # Numbers are traced like arrays: another one needs no other program.
        arrays = {"logits": logits, "targets": targets, "weights": weights, **numbers}
        return as_numpy(call(function, "LOSS-25", arrays))

    return run


def _cross_entropy(*arguments: Any, **options: Any) -> dict[str, jax.Array]:
    return cross_entropy.cross_entropy(*arguments, **options)._asdict()


class ModelAdapter(MeshAdapter):
    """Functions of the model in the dialect `t5x`, in float32 or bfloat16."""

    # ---- parameters ------------------------------------------------------------------------

    def parameters(self, configuration: Fields) -> dict[str, Any]:
        """Return shape and logical axes of every tensor by name. Spec: PARAM-01."""
        return {
            one.name: {"shape": one.shape, "axes": one.axes}
            for one in parameters.parameters(Configuration(**configuration))
        }

    def sparse_layers(
        self, num_layers: int, num_sparse: int, *, layout: str = "MIXED"
    ) -> tuple[int, ...]:
        """Return the indices of the sparse layers. Spec: PARAM-02."""
        return parameters.sparse_layers(num_layers, num_sparse, layout)

    def count_parameters(self, configuration: Fields) -> dict[str, int]:
        """Return the sizes of a model. Spec: PARAM-03."""
        return asdict(parameters.count(Configuration(**configuration)))

    def port_parameters(self, parameters: Tree) -> dict[str, np.ndarray]:
        """Return the tensors as the published PyTorch port names and lays them out. Spec: PARAM-05."""
        found = {}
        for name, value in parameters.items():
            there = layouts.port_name(name)
            if there is None:
                raise RejectedError(
                    f"parameters[{name!r}]", "PARAM-05", f"has no counterpart, {value.shape}"
                )
            found[there[0]] = np.ascontiguousarray(value.T if there[1] else value)
        return found

    # ---- layers ----------------------------------------------------------------------------

    def embed(self, table: np.ndarray, ids: np.ndarray, *, dtype: str = "float32") -> np.ndarray:
        """Return embeddings [B, L, D]."""
        return np.asarray(call(layers.embed, "LAYER-08", {"table": table, "ids": ids}, dtype=dtype))

    def rms_norm(
        self, inputs: np.ndarray, scale: np.ndarray, *, dtype: str = "float32"
    ) -> np.ndarray:
        """Return normed inputs [..., D]."""
        arrays = {"inputs": inputs, "scale": scale}
        return np.asarray(call(layers.rms_norm, "LAYER-08", arrays, dtype=dtype))

    def token_mask(self, input_ids: np.ndarray) -> np.ndarray:
        """Return bool [B, L]."""
        return np.asarray(call(layers.token_mask, "LAYER-08", {"input_ids": input_ids}))

    def output_logits(
        self, inputs: np.ndarray, kernel: np.ndarray, *, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Return float32 logits [B, L, V]."""
        arrays = {"inputs": inputs, "kernel": kernel, "mask": mask}
        return np.asarray(call(layers.output_logits, "LAYER-08", arrays))

    def feed_forward(
        self, inputs: np.ndarray, kernels: Tree, *, dtype: str = "float32"
    ) -> np.ndarray:
        """Return one feed-forward on [S, D] with kernels wi_0, wi_1 and wo."""
        arrays = {"inputs": inputs, "kernels": dict(kernels)}
        return np.asarray(call(layers.feed_forward, "MOE-11", arrays, dtype=dtype))

    # ---- attention -------------------------------------------------------------------------

    def decoder_mask(
        self,
        target_ids: np.ndarray,
        *,
        segment_ids: np.ndarray | None = None,
        causal_attention: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return bool [B, L, L]."""
        if segment_ids is not None:
            batches.require_segments("segment_ids", segment_ids, "ATTN-12")
        arrays = {
            "target_ids": target_ids,
            "segment_ids": segment_ids,
            "causal_attention": causal_attention,
        }
        return np.asarray(call(attention.decoder_mask, "ATTN-12", arrays))

    def rotary_tables(
        self, positions: np.ndarray, *, head_dim: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return sine and cosine [..., N]."""
        _require_positions(positions)
        arrays = {"positions": positions}
        return as_numpy(call(attention.rotary_tables, "ATTN-12", arrays, head_dim=head_dim))

    def rotate(self, heads: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return heads [B, L, H, N] rotated."""
        _require_positions(positions)
        arrays = {"heads": heads, "positions": positions}
        return np.asarray(call(attention.rotate, "ATTN-12", arrays))

    def attention(
        self,
        inputs: np.ndarray,
        kernels: Tree,
        mask: np.ndarray | None,
        *,
        num_heads: int,
        dtype: str = "float32",
    ) -> np.ndarray:
        """Return the attention's output [B, L, D] under a mask bool [B, L, L]."""
        arrays = {"inputs": inputs, "kernels": dict(kernels), "mask": mask}
        return np.asarray(call(_attention, "ATTN-12", arrays, num_heads=num_heads, dtype=dtype))

    def part_gradients(
        self,
        part: str,
        inputs: np.ndarray,
        parameters: Tree,
        cotangent: np.ndarray,
        *,
        mask: np.ndarray | None = None,
        num_heads: int = 1,
        size: int = 0,
    ) -> dict[str, np.ndarray]:
        """Return gradients of sum(output x cotangent) by name: `inputs` and the parameters."""
        if part not in PARTS:
            legal = tuple(PARTS)
            raise RejectedError("part", "LAYER-08", f"must be one of {legal}, got {part!r}")
        function, clause = PARTS[part]
        arrays: dict[str, Any] = {
            "inputs": inputs,
            "weights": dict(parameters),
            "cotangent": cotangent,
        }
        options: dict[str, Any] = {}
        if part == "attention":
            arrays["mask"], options["num_heads"] = mask, num_heads
        if part == "embed":
            options["size"] = size
        return as_numpy(call(function, clause, arrays, **options))

    # ---- the model -------------------------------------------------------------------------

    forward = _of_batch(_forward)
    loss = _of_batch(_losses, weighed=True)
    model_gradients = _of_batch(_gradients, weighed=True)

    # ---- loss of the model -----------------------------------------------------------------

    cross_entropy = _of_logits(_cross_entropy)
    cross_entropy_gradient = _of_logits(cross_entropy_gradient)

    def normalizer(self, name: str, batch: Tree) -> dict[str, Any]:
        """Return `factor` and `weights`."""
        factor, weights = cross_entropy.normalizer(name, jax.tree.map(jnp.asarray, dict(batch)))
        return {"factor": float(factor), "weights": np.asarray(weights)}


def _attention(
    inputs: jax.Array,
    kernels: Mapping[str, jax.Array],
    mask: jax.Array | None = None,
    *,
    num_heads: int,
    dtype: str,
) -> jax.Array:
    layers.require_dtype("dtype", dtype, "ATTN-12")
    cast = inputs.astype(layers.DTYPES[dtype])
    return attention.attention(cast, kernels, mask, num_heads=num_heads)[0]


def _require_positions(positions: np.ndarray) -> None:
    require_integers("positions", positions, "ATTN-12", least=0, most=2**31 - 1)
