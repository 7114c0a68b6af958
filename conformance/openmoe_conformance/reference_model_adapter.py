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

from openmoe_reference import (
    attention,
    cross_entropy,
    decoding,
    dialects,
    initialisation,
    masks,
    model,
    model_gradients,
    optimizer,
    part_gradients,
    port_decoding,
    sampling,
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


class ReferenceModelAdapter:
    """Functions of the whole model over the NumPy reference."""

    native: Dialect = "t5x"
    """What it speaks when it is not asked for another dialect."""

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        """Return the functions a model is composed of; mutants exchange some."""
        return dialects.rules(self.native if dialect is None else dialect)

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
        **options: Any,
    ) -> ForwardResult:
        return model.forward(
            parameters,
            batch,
            Configuration(**configuration),
            call=_call(**options),
            rules=self.rules(dialect),
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
        **options: Any,
    ) -> dict[str, Any]:
        passed = self.forward(
            parameters, batch, configuration=configuration, dialect=dialect, **options
        )
        c = Configuration(**configuration)
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
        **options: Any,
    ) -> dict[str, ndarray]:
        """Return the gradient of each tensor, with decisions of a pass in `dtype`."""
        for point in DIFFERENTIATED:
            if self.choice(point, dialect) != T5X[point]:
                raise RejectedError("dialect", "MODEL-08", f"no gradient for {point} otherwise")
        of_embedding = self._embedding_gradient(dialect)
        if options.get("decisions") is None:
            options["decisions"] = self.forward(
                parameters, batch, configuration=configuration, dtype=dtype, **options
            ).decisions
        return model_gradients.model_gradients(
            parameters,
            batch,
            Configuration(**configuration),
            call=_call(dtype="float64" if dtype == "float32" else dtype, **options),
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

    # ---- training --------------------------------------------------------------------------

    def learning_rate(self, step: int, *, dialect: Dialect | None = None) -> Any:
        if self.choice("warmup", dialect) == "linear":
            return optimizer.learning_rate_with_linear_warmup(step)
        return optimizer.learning_rate(step)

    def factoring(self, shape: tuple[int, ...], axes: tuple[str, ...]) -> optimizer.Factoring:
        """Return how a tensor is factored; a method of its own for mutants."""
        return optimizer.factoring(tuple(shape), tuple(axes))

    def optimizer_state(self, shape: tuple[int, ...], axes: tuple[str, ...]) -> dict[str, ndarray]:
        return optimizer.initial_state(tuple(shape), self.factoring(shape, axes))

    def adafactor(
        self,
        parameter: ndarray,
        gradient: ndarray,
        state: Tree,
        *,
        axes: tuple[str, ...],
        step: int,
        rate: float,
    ) -> dict[str, Any]:
        how = self.factoring(parameter.shape, axes)
        new, found = optimizer.update(parameter, gradient, state, how, step=step, rate=rate)
        return {"parameter": new, "state": found}

    def scaled_gradients(self, gradients: Tree, *, num_expert_partitions: int) -> dict[str, Any]:
        return optimizer.scaled_gradients(gradients, num_expert_partitions=num_expert_partitions)

    def accumulated_gradients(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        num_microbatches: int,
        training: bool = True,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"configuration": configuration, "training": training}

        def of_batch(part: Tree) -> tuple[dict[str, Any], dict[str, ndarray]]:
            return (
                self.loss(parameters, part, **options),
                self.model_gradients(parameters, part, **options),
            )

        losses, gradients = optimizer.accumulated(
            of_batch, batch, num_microbatches=num_microbatches
        )
        return {"loss": losses, "gradients": gradients}

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
    ) -> dict[str, Any]:
        found = self.accumulated_gradients(
            parameters, batch, configuration=configuration, num_microbatches=num_microbatches
        )
        gradients = self.scaled_gradients(
            found["gradients"], num_expert_partitions=num_expert_partitions
        )
        axes = {name: one["axes"] for name, one in self.parameters(configuration).items()}
        rate = float(self.learning_rate(step))
        updated = {
            name: self.adafactor(
                value,
                np.asarray(gradients[name], np.float32),
                state[name],
                axes=axes[name],
                step=step,
                rate=rate,
            )
            for name, value in parameters.items()
        }
        return {
            "loss": found["loss"],
            "parameters": {name: one["parameter"] for name, one in updated.items()},
            "state": {name: one["state"] for name, one in updated.items()},
        }

    def initialise(self, configuration: Fields, seed: int) -> dict[str, ndarray]:
        return initialisation.initialise(
            Configuration(**configuration), np.random.default_rng(seed)
        )

    # ---- decoding --------------------------------------------------------------------------

    def decode(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        steps: int,
        dialect: Dialect | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        for point in ("decode_position", "prompt_end"):
            if self.choice(point, dialect) != T5X[point]:
                raise RejectedError("dialect", "DEC-04", f"{point} has no such steps")
        logits, first, last = decoding.forced_steps(
            parameters,
            batch,
            Configuration(**configuration),
            steps=steps,
            call=_call(**options),
            rules=self.rules(dialect),
        )
        return {"logits": logits, "prefill": first, "cache": last}

    def generate(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        noise: ndarray | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        dialect: Dialect | None = None,
        **options: Any,
    ) -> ndarray:
        def choose(logits: ndarray, number: int) -> ndarray:
            drawn = None if noise is None else noise[:, number]
            options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            return self.sample(logits, noise=drawn, **options)

        return decoding.generate(
            parameters,
            batch,
            Configuration(**configuration),
            choose,
            call=_call(**options),
            rules=self.rules(dialect),
            feed_again=self.choice("prompt_end", dialect) == "fed_again",
        )

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        return sampling.sample(logits, **options)

    def cached_calls(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Fields,
        prefill: int,
        chunk: int = 1,
        positions_from_mask: bool = False,
        dialect: Dialect | None = None,
    ) -> dict[str, Any]:
        logits, passes = port_decoding.incremental(
            parameters,
            batch,
            Configuration(**configuration),
            prefill=prefill,
            chunk=chunk,
            positions_from_mask=positions_from_mask,
            rules=self.rules(dialect),
            decode_position=self.choice("decode_position", dialect),
        )
        return {"logits": logits, "decisions": [one.decisions for one in passes]}

    def greedy(
        self,
        parameters: Tree,
        ids: ndarray,
        *,
        configuration: Fields,
        new_tokens: int,
        attention_mask: ndarray | None = None,
        use_cache: bool = True,
        dialect: Dialect | None = None,
    ) -> ndarray:
        return port_decoding.greedy(
            parameters,
            ids,
            Configuration(**configuration),
            new_tokens=new_tokens,
            attention_mask=attention_mask,
            use_cache=use_cache,
            rules=self.rules(dialect),
            decode_position=self.choice("decode_position", dialect),
        )


def _call(decisions: Mapping[int, Any] | None = None, **options: Any) -> model.Call:
    return model.Call(decisions=decisions or {}, **options)
