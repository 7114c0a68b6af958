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
    model,
    moe_arguments,
    part_gradients,
)
from openmoe_production.arguments import require_integers
from openmoe_production.calling import call
from openmoe_spec import layouts, parameters
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision, ForwardResult

Tree = Mapping[str, np.ndarray]
Fields = Mapping[str, Any]


class ModelAdapter:
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
        return _numpy(call(attention.rotary_tables, "ATTN-12", arrays, head_dim=head_dim))

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
        if part not in part_gradients.PARTS:
            legal = tuple(part_gradients.PARTS)
            raise RejectedError("part", "LAYER-08", f"must be one of {legal}, got {part!r}")
        function, clause = part_gradients.PARTS[part]
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
        return _numpy(call(function, clause, arrays, **options))

    # ---- the model -------------------------------------------------------------------------

    def forward(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        training: bool = False,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        decisions: Mapping[int, Decision] | None = None,
        num_expert_replicas: int = 1,
    ) -> ForwardResult:
        """Return logits, decisions, metrics and activations of a batch."""
        return _numpy(
            _of_model(
                model.forward,
                parameters,
                batch,
                configuration,
                decisions,
                training=training,
                dtype=dtype,
                expert_dtype=expert_dtype,
                num_expert_replicas=num_expert_replicas,
                trace=True,
            )
        )

    def loss(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        training: bool = False,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        decisions: Mapping[int, Decision] | None = None,
        num_expert_replicas: int = 1,
    ) -> dict[str, float]:
        """Return the parts of the loss by name."""
        self.normalizer("NUM_REAL_TARGET_TOKENS", batch)  # refuses weights that a trace hides
        _, parts = _of_model(
            model.loss_fn,
            parameters,
            batch,
            configuration,
            decisions,
            training=training,
            dtype=dtype,
            expert_dtype=expert_dtype,
            num_expert_replicas=num_expert_replicas,
        )
        return {name: float(part) for name, part in parts.items()}

    def model_gradients(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        training: bool = False,
        dtype: str = "float32",
        expert_dtype: str | None = None,
        decisions: Mapping[int, Decision] | None = None,
        num_expert_replicas: int = 1,
    ) -> dict[str, np.ndarray]:
        """Return the gradient of the total loss in each tensor."""
        self.normalizer("NUM_REAL_TARGET_TOKENS", batch)
        return _numpy(
            _of_model(
                _gradients,
                parameters,
                batch,
                configuration,
                decisions,
                training=training,
                dtype=dtype,
                expert_dtype=expert_dtype,
                num_expert_replicas=num_expert_replicas,
            )
        )

    # ---- loss of the model -----------------------------------------------------------------

    def cross_entropy(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        normalizing_factor: float | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> dict[str, float]:
        """Return `loss`, `z_loss` and `weight_sum`."""
        arrays = _loss_arrays(
            logits,
            targets,
            weights=weights,
            normalizing_factor=normalizing_factor,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
        )
        found = call(cross_entropy.cross_entropy, "LOSS-25", arrays)
        return {name: float(value) for name, value in found._asdict().items()}

    def cross_entropy_gradient(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        normalizing_factor: float | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> np.ndarray:
        """Return the gradient [B, L, V] of the loss, its z-loss included."""
        arrays = _loss_arrays(
            logits,
            targets,
            weights=weights,
            normalizing_factor=normalizing_factor,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
        )
        return np.asarray(call(part_gradients.cross_entropy_gradient, "LOSS-25", arrays))

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


def _gradients(parameters: Any, batch: Any, configuration: Configuration, **options: Any) -> Any:
    return jax.grad(model.loss_fn, has_aux=True)(parameters, batch, configuration, **options)[0]


def _of_model(
    function: Callable[..., Any],
    parameters: Tree,
    batch: Tree,
    configuration: Fields,
    decisions: Mapping[int, Decision] | None,
    **options: Any,
) -> Any:
    """Call a function of the model, having looked at the values that a trace does not show."""
    c = Configuration(**configuration)
    batches.require_parameters(parameters, c)
    batches.require_batch(batch, c)
    for decision in (decisions or {}).values():
        moe_arguments.require_record(decision, c.num_experts)
    arrays = {"parameters": dict(parameters), "batch": dict(batch), "decisions": decisions}
    return call(function, "LAYER-08", arrays, sized_by="parameters", configuration=c, **options)


def _loss_arrays(logits: Any, targets: Any, *, weights: Any, **numbers: Any) -> dict[str, Any]:
    """Return what a loss is computed of, numbers too: another number needs no other program."""
    cross_entropy.require_targets(logits, targets, weights)
    cross_entropy.require_options(**numbers)
    return {"logits": logits, "targets": targets, "weights": weights, **numbers}


def _require_positions(positions: np.ndarray) -> None:
    require_integers("positions", positions, "ATTN-12", least=0, most=2**31 - 1)


def _numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
