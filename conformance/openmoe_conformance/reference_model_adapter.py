"""The reference's whole model as an implementation: functions of the adapter beyond one layer.

Every function is composed of `rules()` and `steps()`, so a mutant that exchanges one of them is wrong
wherever it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.protocol import Mesh
from openmoe_conformance.reference_mesh_adapter import ReferenceMeshAdapter
from openmoe_reference import (
    attention,
    cross_entropy,
    dialects,
    masks,
    model,
    model_gradients,
    part_gradients,
)
from openmoe_spec import layouts, parameters
from openmoe_spec.config import Configuration
from openmoe_spec.dialects import T5X, choices
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import ForwardResult

Tree = Mapping[str, ndarray]
Fields = Mapping[str, Any]


DIFFERENTIATED = (
    *("groups", "token_mask", "attention_mask", "masked_keys", "attention_scale"),
    *("extra_mlp", "feed_forward", "cross_entropy", "balance"),
)
"""Points whose other options the reference's gradients, made by hand, do not know."""

Dialect = str | Mapping[str, str]
"""A name, or single choices over `t5x`."""


class ReferenceModelAdapter(ReferenceMeshAdapter):
    """Functions of the whole model over the NumPy reference."""

    native: Dialect = "t5x"
    """What it speaks when it is not asked for another dialect."""

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        """Return the functions a model is composed of; mutants exchange some."""
        return dialects.rules(self.native if dialect is None else dialect)

    def rules_of(
        self, batch: Tree, configuration: Fields, mesh: Mesh | None, dialect: Dialect | None
    ) -> model.Rules:
        """Return the rules of a pass of a batch, on a mesh where one is given."""
        if mesh is None:
            return self.rules(dialect)
        if choices(self.native if dialect is None else dialect) != T5X:
            raise UnsupportedError("a simulated mesh speaks t5x alone")
        rows = len(batch["decoder_input_tokens"])
        return self.rules_on_mesh(mesh, Configuration(**configuration), rows)

    def choice(self, point: str, dialect: Dialect | None = None) -> str:
        """Return the choice at one point."""
        return choices(self.native if dialect is None else dialect)[point]

    # ---- parameters ------------------------------------------------------------------------

    def parameters(self, configuration: Fields) -> dict[str, Any]:
        return {
            one.name: {"shape": one.shape, "axes": one.axes}
            for one in parameters.parameters(
                Configuration(**configuration), doubled_gate=self._doubled_gate
            )
        }

    @property
    def _doubled_gate(self) -> bool:
        return self.choice("feed_forward") == "cubic"

    def sparse_layers(
        self, num_layers: int, num_sparse: int, *, layout: str = "MIXED"
    ) -> tuple[int, ...]:
        return parameters.sparse_layers(num_layers, num_sparse, layout)

    def count_parameters(self, configuration: Fields) -> dict[str, int]:
        counts = parameters.count(Configuration(**configuration), doubled_gate=self._doubled_gate)
        return asdict(counts)

    def port_parameters(self, parameters: Tree) -> dict[str, ndarray]:
        found = {}
        for name, value in parameters.items():
            there = layouts.port_name(name)
            if there is None:
                raise RejectedError(
                    f"parameters[{name!r}]", "PARAM-05", f"has no counterpart, {value.shape}"
                )
            found[there[0]] = np.ascontiguousarray(value.T if there[1] else value)
        return found

    # ---- layers and attention --------------------------------------------------------------

    def embed(self, table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
        return self.rules().embed(table, ids, dtype=dtype)

    def rms_norm(self, inputs: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
        return self.rules().norm(inputs, scale, dtype=dtype)

    def token_mask(self, input_ids: ndarray) -> ndarray:
        return self.rules().token_mask(input_ids)

    def output_logits(
        self, inputs: ndarray, kernel: ndarray, *, mask: ndarray | None = None
    ) -> ndarray:
        return self.rules().output_logits(inputs, kernel, mask=mask)

    def feed_forward(
        self,
        inputs: ndarray,
        kernels: Tree,
        *,
        activations: tuple[str, ...] | None = None,
        dtype: str = "float32",
    ) -> ndarray:
        rules = self.rules()
        one = {name: kernel[None] for name, kernel in kernels.items()}
        kinds = rules.activations if activations is None else tuple(activations)
        return rules.feed_forward(inputs[None], one, activations=kinds, dtype=dtype)[0]

    def decoder_mask(
        self,
        target_ids: ndarray,
        *,
        segment_ids: ndarray | None = None,
        causal_attention: ndarray | None = None,
    ) -> ndarray:
        batch = {
            "decoder_target_tokens": target_ids,
            "decoder_segment_ids": segment_ids,
            "decoder_causal_attention": causal_attention,
        }
        given = {name: value for name, value in batch.items() if value is not None}
        reasons = self.rules().visible(given, bidirectional=causal_attention is not None)
        return np.logical_and.reduce(reasons)

    def rotary_tables(self, positions: ndarray, *, head_dim: int) -> tuple[ndarray, ndarray]:
        return attention.rotary_tables(positions, head_dim)

    def rotate(self, heads: ndarray, positions: ndarray) -> ndarray:
        return attention.rotate(heads, positions)

    def attention(
        self,
        inputs: ndarray,
        kernels: Tree,
        mask: ndarray | None,
        *,
        num_heads: int,
        dtype: str = "float32",
    ) -> ndarray:
        rules = self.rules()
        bias = None if mask is None else rules.bias((mask,))
        return rules.attention(inputs, kernels, bias, num_heads=num_heads, dtype=dtype)[0]

    def part_gradients(
        self,
        part: str,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        *,
        mask: ndarray | None = None,
        num_heads: int = 1,
        activations: tuple[str, ...] = ("swiglu", "linear"),
        size: int = 0,
    ) -> dict[str, ndarray]:
        if part == "rms_norm":
            return part_gradients.norm_gradients(inputs, parameters["scale"], cotangent)
        if part == "attention":
            bias = None if mask is None else masks.finite_bias((mask,))
            return part_gradients.attention_gradients(
                inputs, parameters, bias, cotangent, num_heads=num_heads
            )
        if part == "feed_forward":
            kernels = {name: kernel[None] for name, kernel in parameters.items()}
            found = part_gradients.feed_forward_gradients(
                inputs[None], kernels, cotangent[None], activations=tuple(activations)
            )
            return {name: value[0] for name, value in found.items()}
        if part == "embed":
            of_embedding = self._embedding_gradient(None)
            return {"table": of_embedding(inputs, cotangent, vocabulary_size=size)}
        raise RejectedError("part", "LAYER-08", f"there is no part {part!r}")

    def _embedding_gradient(self, dialect: Dialect | None) -> Callable[..., ndarray]:
        if self.choice("start_embedding", dialect) == "frozen":
            return part_gradients.frozen_start_gradient
        return part_gradients.embedding_gradient

    # ---- the model -------------------------------------------------------------------------

    def forward(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        dialect: Dialect | None = None,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> ForwardResult:
        return model.forward(
            parameters,
            batch,
            Configuration(**configuration),
            call=call_of(**options),
            rules=self.rules_of(batch, configuration, mesh, dialect),
        )

    def total_loss(
        self, logits: ndarray, batch: Tree, metrics: Mapping[int, Any], configuration: Configuration
    ) -> dict[str, Any]:
        """Return the parts of the loss; a method of its own for mutants."""
        return cross_entropy.total_loss(logits, batch, metrics, configuration)

    def loss(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        dialect: Dialect | None = None,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        passed = self.forward(
            parameters, batch, configuration=configuration, dialect=dialect, mesh=mesh, **options
        )
        c = Configuration(**configuration)
        if mesh is not None:
            return self.loss_on_mesh(passed.logits, batch, passed.metrics, c, mesh)
        kind = self.choice("cross_entropy", dialect)
        if kind == "weighted_mean":
            return self.total_loss(passed.logits, batch, passed.metrics, c)
        text = cross_entropy.all_ones_loss(
            passed.logits,
            batch["decoder_target_tokens"],
            z_loss=c.z_loss_factor,
            label_smoothing=c.label_smoothing,
            by_row=kind == "all_ones_by_row",
        )
        router = cross_entropy.router_losses(passed.metrics, c, passed.logits.dtype)
        return {"total": text + sum(router.values()), "cross_entropy": text, **router}

    def model_gradients(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        dialect: Dialect | None = None,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        **options: Any,
    ) -> dict[str, ndarray]:
        """Return the gradient of each tensor, with decisions of a pass in `dtype`."""
        for point in DIFFERENTIATED:
            if self.choice(point, dialect) != T5X[point]:
                raise UnsupportedError(f"no such answer where {point} is not {T5X[point]}")
        of_embedding = self._embedding_gradient(dialect)
        if options.get("decisions") is None:
            options["decisions"] = self.forward(
                parameters,
                batch,
                configuration=configuration,
                dialect=dialect,
                dtype=dtype,
                mesh=mesh,
                **options,
            ).decisions
        if mesh is not None:
            call = call_of(dtype="float64" if dtype == "float32" else dtype, **options)
            return self.gradients_on_mesh(
                parameters, batch, Configuration(**configuration), mesh, call
            )
        return model_gradients.model_gradients(
            parameters,
            batch,
            Configuration(**configuration),
            call=call_of(dtype="float64" if dtype == "float32" else dtype, **options),
            of_embedding=of_embedding,
        )[1]

    # ---- loss of the model -----------------------------------------------------------------

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        return cross_entropy.cross_entropy(logits, targets, **options)._asdict()

    def cross_entropy_gradient(self, logits: ndarray, targets: ndarray, **options: Any) -> ndarray:
        return part_gradients.cross_entropy_gradient(logits, targets, **options)

    def normalizer(self, name: str, batch: Tree) -> dict[str, Any]:
        factor, weights = cross_entropy.normalizer(name, batch)
        return {"factor": factor, "weights": weights}


def call_of(decisions: Mapping[int, Any] | None = None, **options: Any) -> model.Call:
    """Return how a pass is run, from keywords of the protocol."""
    return model.Call(decisions=decisions or {}, **options)
