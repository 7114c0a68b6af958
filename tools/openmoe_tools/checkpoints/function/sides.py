"""The two sides of the functional tier: models that are run, and recordings of those that cannot be."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference import dialects, grouping, model, routing
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision
from openmoe_tools.checkpoints.function.probes import groups_of, real_tokens

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}
"""From 1 to the next number, in each arithmetic that a model is run in."""

ROUTER = "/router/router_weights"
"""What the activations that hold a router's logits end in."""

Chosen = Mapping[int, tuple[ndarray, ndarray]]
"""By sparse layer: experts [B, L, K] and which choices are kept."""


def router_of(layer: int) -> str:
    """Return the activation that holds a layer's router logits."""
    return f"decoder/layers_{layer}/mlp{ROUTER}"


@dataclass(frozen=True, eq=False)
class Side:
    """A model that can be run.

    weights         by the names of PARAM-01, of any float dtype; they are widened to float32
    implementation  `reference`, or `production`, which speaks t5x alone
    dtype           of activations
    """

    weights: Mapping[str, ndarray]
    dialect: str = "t5x"
    implementation: str = "reference"
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Recording:
    """What a model printed: ids [B, L], logits [B, L, V], and maybe hidden states [n + 1, B, L, D].

    Hidden states are the embedding, then what each layer but the last gives on, then the last norm.
    """

    ids: ndarray
    logits: ndarray
    hidden_states: ndarray | None = None


@dataclass(frozen=True, eq=False)
class Recorded:
    """A model that cannot be run here, by its recordings; `dtype` is that of its activations."""

    recordings: tuple[Recording, ...]
    dtype: str = "float32"


def read_recorded(path: Path, dtype: str = "float32") -> Recorded:
    """Return the recordings of an .npz: `input_ids`, `logits`, `hidden_states`, or each with _0, _1, ...

    Errors: UsageError on a file that is none, or arrays that are missing or do not fit each other.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: is no archive of NumPy arrays ({error})") from error
    suffixes = [name.removeprefix("input_ids") for name in arrays if name.startswith("input_ids")]
    if not suffixes:
        raise UsageError(f"{path}: must hold input_ids [B, L] and logits [B, L, V]")
    made = []
    for suffix in sorted(suffixes, key=lambda one: (len(one), one)):
        ids, logits = arrays[f"input_ids{suffix}"], arrays.get(f"logits{suffix}")
        hidden = arrays.get(f"hidden_states{suffix}")
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or not ids.size:
            got = f"{ids.dtype} {list(ids.shape)}"
            raise UsageError(f"{path}: input_ids{suffix} must be integers [B, L], got {got}")
        if logits is None or logits.dtype.kind != "f" or logits.shape[:2] != ids.shape:
            got = "nothing" if logits is None else f"{logits.dtype} {list(logits.shape)}"
            wanted = f"floats [{ids.shape[0]}, {ids.shape[1]}, V]"
            raise UsageError(f"{path}: logits{suffix} must be {wanted}, got {got}")
        if hidden is not None and hidden.dtype.kind != "f":
            raise UsageError(f"{path}: hidden_states{suffix} must be floats, got {hidden.dtype}")
        made.append(Recording(ids, logits, hidden))
    return Recorded(tuple(made), dtype)


def check_recorded(one: Recording, c: Configuration) -> None:
    """Refuse a recording that is of no model of a configuration. Errors: UsageError."""
    if one.ids.min() < 0 or one.ids.max() >= c.vocabulary_size:
        raise UsageError(f"the recorded input_ids must lie in 0..{c.vocabulary_size - 1}")
    if one.ids.shape[1] > c.max_length:
        raise UsageError(f"the recorded rows must not be longer than {c.max_length}")
    if one.logits.shape[2:] != (c.vocabulary_size,):
        raise UsageError(f"the recorded logits must have {c.vocabulary_size} columns")
    shape = (c.num_layers + 1, *one.ids.shape, c.embed_dim)
    if one.hidden_states is not None and one.hidden_states.shape != shape:
        raise UsageError(f"the recorded hidden_states must have shape {list(shape)}")


class RefusedError(UsageError):
    """A pass that was refused, in a line."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over ids [B, L].

    logits       made when they are asked for: of one row's positions, [n, V]
    activations  by name, those of a router as [B, L, E]
    decisions    as they are forced on another pass
    chosen       by token, as its own routers chose
    """

    logits: Callable[[int, slice], ndarray]
    activations: Mapping[str, ndarray]
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    chosen: Chosen = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Model:
    """A side with its configuration: runs ids."""

    label: str
    side: Side
    configuration: Configuration

    @staticmethod
    def of(label: str, side: Side, configuration: Configuration) -> Model:
        """Return the side with float32 weights."""
        wide = {
            name: np.asarray(value).astype(np.float32, copy=False)
            for name, value in side.weights.items()
        }
        return Model(label, replace(side, weights=wide), configuration)

    def run(
        self,
        ids: ndarray,
        *,
        dtype: str | None = None,
        decisions: Mapping[int, Decision] | None = None,
    ) -> Pass:
        """Return a pass, with decisions forced on it where they are given."""
        real = real_tokens(ids)
        batch = {"decoder_input_tokens": ids, "decoder_target_tokens": real.astype(np.int32)}
        if not real.all():
            batch["attention_mask"] = real.astype(np.int32)
        run = {"reference": self._reference, "production": self._production}.get(
            self.side.implementation
        )
        if run is None:
            raise UsageError(f"implementation {self.side.implementation}: reference or production")
        try:
            found, logits = run(batch, dtype or self.side.dtype, decisions or {})
        except RejectedError as error:
            raise RefusedError(f"the forward pass of {self.label} is refused: {error}") from error
        activations = {
            name: self._by_token(np.asarray(one), ids.shape)
            if name.endswith(ROUTER)
            else np.asarray(one)
            for name, one in found.activations.items()
        }
        chosen = {
            layer: (
                self._by_token(one.expert_index, ids.shape),
                self._by_token(one.kept, ids.shape),
            )
            for layer, one in found.decisions.items()
        }
        return Pass(logits, activations, found.decisions, chosen)

    def _reference(
        self, batch: Mapping[str, ndarray], dtype: str, decisions: Mapping[int, Decision]
    ) -> tuple[Any, Callable[[int, slice], ndarray]]:
        rules = dialects.rules(self.side.dialect)

        def later(
            x: ndarray, kernel: ndarray, *, mask: ndarray, dtype: str
        ) -> Any:  # not an array yet: of a whole row there may be gigabytes
            def some(row: int, at: slice) -> ndarray:
                part = x[row : row + 1, at], mask[row : row + 1, at]
                return rules.output_logits(part[0], kernel, mask=part[1], dtype=dtype)[0]

            return some

        found = model.forward(
            self.side.weights,
            batch,
            self.configuration,
            call=model.Call(dtype=dtype, decisions=decisions),
            rules=replace(rules, output_logits=later),
        )
        return found, found.logits

    def _production(
        self, batch: Mapping[str, ndarray], dtype: str, decisions: Mapping[int, Decision]
    ) -> tuple[Any, Callable[[int, slice], ndarray]]:
        from openmoe_tools import conforming  # noqa: PLC0415 - only production needs JAX

        if self.side.dialect != "t5x":
            raise UsageError(f"{self.label}: production speaks t5x, not {self.side.dialect}")
        conforming.require_jax("implementation production (reference needs none)")
        from openmoe_production.adapter import Adapter  # noqa: PLC0415

        found = Adapter().forward(
            self.side.weights,
            batch,
            configuration=asdict(self.configuration),
            dtype=dtype,
            decisions=decisions or None,
        )
        logits = np.asarray(found.logits)
        return found, lambda row, at: logits[row, at]

    def _by_token(self, grouped_values: ndarray, shape: tuple[int, ...]) -> ndarray:
        """Return [G, T, n] as [B, L, n], so that dialects with other groups can be compared."""
        both = (shape[0], shape[1])
        padded, _ = groups_of(both, self.configuration, self.side.dialect)
        return grouping.from_groups(grouped_values, padded=padded, shape=both)

    def decide(self, layer: int, found: Pass, like: Pass) -> tuple[ndarray, ndarray]:
        """Return what a router of a forced pass would have chosen itself, by token."""
        c, own = self.configuration, found.activations[router_of(layer)]
        padded, groups = groups_of((own.shape[0], own.shape[1]), c, self.side.dialect)
        logits = grouping.to_groups(own, padded=padded, num_groups=groups)
        try:
            made = dialects.steps(self.side.dialect).decide(
                routing.softmax(logits).astype(np.float32),
                k=c.num_selected_experts,
                capacity=like.decisions[layer].capacity,
                padding_mask=(logits != 0).any(axis=-1) if c.ignore_padding_tokens else None,
                batch_prioritized=c.batch_prioritized_routing,
                logits=logits,
            )
        except RejectedError as error:
            raise RefusedError(f"layer {layer} of {self.label} cannot route: {error}") from error
        return self._by_token(made.expert_index, own.shape), self._by_token(made.kept, own.shape)


def recorded_pass(one: Recording) -> Pass:
    """Return a recording as the pass that it is of."""
    hidden = () if one.hidden_states is None else one.hidden_states
    named = {f"hidden_states[{i}]": state for i, state in enumerate(hidden)}
    return Pass(lambda row, at: one.logits[row, at], named)


def with_hidden(found: Pass, c: Configuration) -> dict[str, ndarray]:
    """Return activations and, after them, the hidden states that a recording may hold."""
    shown, states = dict(found.activations), [found.activations["token_embedder"]]
    for i in range(c.num_layers - 1):
        name = f"decoder/layers_{i}"
        extra = shown.get(f"{name}/extra_mlp")
        states.append(shown[name] if extra is None else shown[name] + extra)
    states.append(shown["decoder/decoder_norm"])
    return shown | {f"hidden_states[{i}]": state for i, state in enumerate(states)}
