"""Mutants of SPEC.md "Decoding": its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.decoding import STEP, Exchanged, Experts
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import decoding, grouping, masks, model, moe
from openmoe_spec.records import Cache, LayerResult

Tree = Mapping[str, ndarray]


class _Attending(ReferenceAdapter):
    """A model whose steps attend otherwise."""

    def attended(self, bias: ndarray, options: dict[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        raise NotImplementedError

    def rules(self, dialect: Any = None) -> model.Rules:
        rules = super().rules(dialect)

        def attend(x: ndarray, kernels: Tree, bias: ndarray, **options: Any) -> Any:
            if options["cache"] is not None:
                bias, options = self.attended(bias, options)
            return rules.attention(x, kernels, bias, **options)

        return replace(rules, attention=attend)


def _slots(bias: ndarray) -> ndarray:
    return np.arange(bias.shape[-1])


@mutant("DEC-04")
class QueryAtPlaceZero(_Attending):
    """A lone query is rotated as the first of its call."""

    def attended(self, bias: ndarray, options: dict[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        return bias, options | {"positions": np.zeros_like(options["positions"])}


@mutant("DEC-04")
class QueryOnePlaceFurther(_Attending):
    """A lone query is rotated at index + 1."""

    def attended(self, bias: ndarray, options: dict[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        return bias, options | {"positions": options["positions"] + 1}


@mutant("DEC-04")
class OwnSlotIsHidden(_Attending):
    """A query sees the slots before its own."""

    def attended(self, bias: ndarray, options: dict[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        own = _slots(bias) == options["cache"][2][:, None, None]
        return np.where(own, masks.MASKED, bias), options


@mutant("DEC-04")
class EverySlotIsSeen(_Attending):
    """A query sees the empty slots too."""

    def attended(self, bias: ndarray, options: dict[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        return np.zeros_like(bias), options


@mutant("DEC-04")
class StartTokenIsPadding(_Attending):
    """The slot of the start token is hidden as padding."""

    def attended(self, bias: ndarray, options: dict[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        hidden = (_slots(bias) == 0) & (options["cache"][2][:, None, None] > 0)
        return np.where(hidden, masks.MASKED, bias), options


@mutant("DEC-04")
class SlotsOneLater(_Attending):
    """Key and value are written behind the slot that the query sees."""

    def attended(self, bias: ndarray, options: dict[str, Any]) -> tuple[ndarray, dict[str, Any]]:
        keys, values, index = options["cache"]
        return bias, options | {"cache": (keys, values, index + 1)}


@mutant("DEC-04")
class TokenMaskOfIds(ReferenceAdapter):
    """An id of 0 that is fed counts as padding."""

    def rules(self, dialect: Any = None) -> model.Rules:
        rules = super().rules(dialect)

        def token_mask(ids: ndarray) -> ndarray:
            mask = rules.token_mask(ids)
            return (ids > 0).astype(mask.dtype) if ids.shape[1] == 1 else mask

        return replace(rules, token_mask=token_mask)


@mutant("DEC-04")
class IndexStays(Exchanged):
    """A step does not add to the index: every token overwrites the last."""

    def exchanged(self) -> dict[str, Any]:
        def step(
            parameters: Tree, tokens: ndarray, cache: Cache, *rest: Any, **options: Any
        ) -> Any:
            new, passed = STEP(parameters, tokens, cache, *rest, **options)
            return replace(new, index=cache.index), passed

        return {"step": step}


@mutant("DEC-05")
class StepIsOneGroup(Experts):
    """The rows of a step are one group."""

    def called(
        self, inner: Callable[..., LayerResult], x: ndarray, weights: Tree, **options: Any
    ) -> LayerResult:
        if x.shape[1] > 1:
            return inner(x, weights, **options)
        return moe.moe_layer(x, weights, steps=moe.Steps(groups=grouping.one_group), **options)


@mutant("DEC-05")
class StepAtTrainingCapacity(Experts):
    """Steps have the capacity of training."""

    def called(
        self, inner: Callable[..., LayerResult], x: ndarray, weights: Tree, **options: Any
    ) -> LayerResult:
        return inner(x, weights, **options | {"training": x.shape[1] == 1})


@mutant("DEC-05")
class StepsNeverDrop(Experts):
    """Steps have room for every choice."""

    def called(
        self, inner: Callable[..., LayerResult], x: ndarray, weights: Tree, **options: Any
    ) -> LayerResult:
        room = {"min_expert_capacity": len(x)} if x.shape[1] == 1 else {}
        return inner(x, weights, **options | room)


@mutant("DEC-05")
class StepsHaveOneReplica(Experts):
    """Steps are grouped for one expert replica."""

    def called(
        self, inner: Callable[..., LayerResult], x: ndarray, weights: Tree, **options: Any
    ) -> LayerResult:
        replicas = {"num_expert_replicas": 1} if x.shape[1] == 1 else {}
        return inner(x, weights, **options | replicas)


@mutant("DEC-05")
class EndedRowsAreLeftOut(Exchanged):
    """Rows that have ended are taken out of the batch."""

    live: ndarray | None = None

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        chosen = super().sample(logits, **options)
        if self.live is not None:
            self.live = self.live & (chosen != decoding.END)
        return chosen

    def generate(self, parameters: Tree, batch: Tree, **options: Any) -> ndarray:
        self.live = np.ones(len(batch["decoder_input_tokens"]), bool)
        return super().generate(parameters, batch, **options)

    def exchanged(self) -> dict[str, Any]:
        def step(
            parameters: Tree, tokens: ndarray, cache: Cache, *rest: Any, **options: Any
        ) -> Any:
            if self.live is None or not self.live.any():
                return STEP(parameters, tokens, cache, *rest, **options)
            live = self.live
            part = Cache(cache.keys[:, live], cache.values[:, live], cache.index[live])
            new, passed = STEP(parameters, tokens[live], part, *rest, **options)
            keys, values = cache.keys.copy(), cache.values.copy()
            keys[:, live], values[:, live] = new.keys, new.values
            logits = np.zeros((len(tokens), *passed.logits.shape[1:]), passed.logits.dtype)
            logits[live] = passed.logits
            return Cache(keys, values, cache.index + 1), replace(passed, logits=logits)

        return {"step": step}


@mutant("DEC-06")
class WholePassInEveryStep(ReferenceAdapter):
    """Steps have no cache: the row so far is run through an evaluation pass again."""

    def decode(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Mapping[str, Any],
        steps: int,
        **options: Any,
    ) -> dict[str, Any]:
        found = super().decode(
            parameters, batch, configuration=configuration, steps=steps, **options
        )
        whole = {name: batch[name] for name in batch if name != "decoder_causal_attention"}
        logits = self.forward(parameters, whole, configuration=configuration).logits
        places = found["prefill"].index[:, None] + np.arange(steps)
        return found | {"logits": np.take_along_axis(logits, places[..., None], axis=1)}


@mutant("DEC-06")
class StepsForgetOneAnother(Exchanged):
    """A step sees the prompt and itself: what earlier steps cached is lost."""

    def exchanged(self) -> dict[str, Any]:
        def step(
            parameters: Tree, tokens: ndarray, cache: Cache, *rest: Any, **options: Any
        ) -> Any:
            new, passed = STEP(parameters, tokens, cache, *rest, **options)
            return Cache(cache.keys, cache.values, new.index), passed

        return {"step": step}
