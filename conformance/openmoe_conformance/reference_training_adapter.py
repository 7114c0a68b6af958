"""The reference's training and decoding as an implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.protocol import Mesh
from openmoe_conformance.reference_model_adapter import (
    Dialect,
    Fields,
    ReferenceModelAdapter,
    Tree,
    call_of,
)
from openmoe_reference import decoding, initialisation, optimizer, port_decoding, sampling
from openmoe_spec.config import Configuration
from openmoe_spec.dialects import T5X


class ReferenceTrainingAdapter(ReferenceModelAdapter):
    """Functions of training and decoding over the NumPy reference."""

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
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"configuration": configuration, "training": training}
        options |= {} if mesh is None else {"mesh": mesh}

        def of_batch(part: Tree) -> tuple[dict[str, Any], dict[str, ndarray]]:
            return (
                self.loss(parameters, part, **options),
                self.model_gradients(parameters, part, **options),
            )

        losses, gradients = (
            optimizer.accumulated(of_batch, batch, num_microbatches=num_microbatches)
            if mesh is None
            else self.accumulated_on_mesh(of_batch, batch, mesh, num_microbatches=num_microbatches)
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
        **mesh: Any,
    ) -> dict[str, Any]:
        found = self.accumulated_gradients(
            parameters,
            batch,
            configuration=configuration,
            num_microbatches=num_microbatches,
            **mesh,
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
        mesh: Mesh | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        for point in ("decode_position", "prompt_end"):
            if self.choice(point, dialect) != T5X[point]:
                raise UnsupportedError(f"no such answer where {point} is not {T5X[point]}")
        logits, first, last = decoding.forced_steps(
            parameters,
            batch,
            Configuration(**configuration),
            steps=steps,
            call=call_of(**options),
            rules=self.rules_of(batch, configuration, mesh, dialect),
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
        mesh: Mesh | None = None,
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
            call=call_of(**options),
            rules=self.rules_of(batch, configuration, mesh, dialect),
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
