"""Mutants of SPEC.md "Decoding"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import attention, decoding, model
from openmoe_spec.config import Configuration
from openmoe_spec.records import Cache, ForwardResult, LayerResult

Tree = Mapping[str, ndarray]
Prefilled = tuple[Cache, ForwardResult]

PROMPT, PREFILL, STEP, GENERATE = (
    decoding.prompt,
    decoding.prefill,
    decoding.step,
    decoding.generate,
)
"""The reference's own, for mutants that put another in their place."""


class Exchanged(ReferenceAdapter):
    """Decoding with names of the reference's module exchanged while it runs."""

    def exchanged(self) -> dict[str, Any]:
        raise NotImplementedError

    def decode(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        with patch.multiple(decoding, **self.exchanged()):
            return super().decode(*arguments, **options)

    def generate(self, *arguments: Any, **options: Any) -> ndarray:
        with patch.multiple(decoding, **self.exchanged()):
            return super().generate(*arguments, **options)


# ---- prompt ------------------------------------------------------------------------------------


@mutant("DEC-01")
class PromptIsTheWholeRow(ReferenceAdapter):
    """The continuation counts as prompt."""

    def decode(self, parameters: Tree, batch: Tree, **options: Any) -> dict[str, Any]:
        every = np.ones_like(batch["decoder_causal_attention"])
        whole = {**batch, "decoder_causal_attention": every}
        return super().decode(parameters, whole, **options)


@mutant("DEC-01")
class ContinuationIsNotCut(Exchanged):
    """Prefill reads the whole rows and takes only the length from the prompt."""

    def exchanged(self) -> dict[str, Any]:
        return {"prompt": lambda batch: (batch["decoder_input_tokens"], PROMPT(batch)[1])}


@mutant("DEC-01")
class StartTokenCounts(Exchanged):
    """n_b counts the first position too."""

    def exchanged(self) -> dict[str, Any]:
        return {"prompt": lambda batch: (PROMPT(batch)[0], PROMPT(batch)[1] + 1)}


@mutant("DEC-01")
class ZerosInsideCount(Exchanged):
    """n_b is the last place of the prompt, ids of 0 before it included."""

    def exchanged(self) -> dict[str, Any]:
        def prompt(batch: Tree) -> tuple[ndarray, ndarray]:
            last = batch["decoder_causal_attention"].sum(axis=1) - 1
            return PROMPT(batch)[0], last.astype(np.int32)

        return {"prompt": prompt}


# ---- prefill -----------------------------------------------------------------------------------


class Experts(ReferenceAdapter):
    """A model whose sparse layers are called otherwise in prefill (L tokens a row) or in steps."""

    def called(
        self, inner: Callable[..., LayerResult], x: ndarray, weights: Tree, **options: Any
    ) -> LayerResult:
        raise NotImplementedError

    def rules(self, dialect: Any = None) -> model.Rules:
        rules = super().rules(dialect)

        def experts(x: ndarray, weights: Tree, **options: Any) -> LayerResult:
            return self.called(rules.moe, x, weights, **options)

        return replace(rules, moe=experts)


@mutant("DEC-02")
class PrefillAtTrainingCapacity(Experts):
    """Prefill has the capacity of training."""

    def called(
        self, inner: Callable[..., LayerResult], x: ndarray, weights: Tree, **options: Any
    ) -> LayerResult:
        return inner(x, weights, **options | {"training": x.shape[1] > 1})


@mutant("DEC-02")
class PrefillNeverDrops(Experts):
    """Prefill has room for every choice."""

    def called(
        self, inner: Callable[..., LayerResult], x: ndarray, weights: Tree, **options: Any
    ) -> LayerResult:
        room = {"min_expert_capacity": x.shape[0] * x.shape[1]} if x.shape[1] > 1 else {}
        return inner(x, weights, **options | room)


@mutant("DEC-02")
class StartTokenIsHidden(ReferenceAdapter):
    """The mask of prefill comes from the prompt's ids, so position 0 is padding."""

    def rules(self, dialect: Any = None) -> model.Rules:
        rules = super().rules(dialect)

        def visible(batch: Tree, **options: Any) -> tuple[ndarray, ...]:
            seen = {**batch, "decoder_target_tokens": batch["decoder_input_tokens"]}
            return rules.visible(seen, **options)

        return replace(rules, visible=visible)


@mutant("DEC-02")
class PrefillOfThePromptAlone(Exchanged):
    """Prefill leaves out the places behind the longest prompt, and groups change."""

    def exchanged(self) -> dict[str, Any]:
        def prefill(parameters: Tree, batch: Tree, *rest: Any, **options: Any) -> Prefilled:
            length = batch["decoder_input_tokens"].shape[1]
            used = int(batch["decoder_causal_attention"].sum(axis=1).max())
            short = {name: value[:, :used] for name, value in batch.items()}
            cache, passed = PREFILL(parameters, short, *rest, **options)
            rest_of_row = ((0, 0), (0, 0), (0, length - used), (0, 0), (0, 0))
            keys, values = (np.pad(one, rest_of_row) for one in (cache.keys, cache.values))
            return Cache(keys, values, cache.index), passed

        return {"prefill": prefill}


class _Cached(Exchanged):
    """Prefill with another cache."""

    def cached(self, cache: Cache, batch: Tree) -> Cache:
        raise NotImplementedError

    def exchanged(self) -> dict[str, Any]:
        def prefill(parameters: Tree, batch: Tree, *rest: Any, **options: Any) -> Prefilled:
            every = np.full(len(batch["decoder_input_tokens"]), 10**6)
            _, end = PROMPT(batch)
            whole, passed = PREFILL(parameters, batch, *rest, **options | {"end": every})
            return self.cached(replace(whole, index=end), batch), passed

        return {"prefill": prefill}


def _emptied(cache: Cache, first: ndarray) -> Cache:
    filled = (np.arange(cache.keys.shape[2]) < first[:, None])[None, :, :, None, None]
    return replace(cache, keys=cache.keys * filled, values=cache.values * filled)


@mutant("DEC-03")
class LastTokenIsCached(_Cached):
    """n_b + 1 positions are cached, and the first step feeds what follows the prompt."""

    def cached(self, cache: Cache, batch: Tree) -> Cache:
        return _emptied(replace(cache, index=cache.index + 1), cache.index + 1)


@mutant("DEC-03")
class RotatedKeysAreCached(_Cached):
    """Keys are cached as they were rotated in prefill, and rotated again in steps."""

    def cached(self, cache: Cache, batch: Tree) -> Cache:
        places = np.arange(cache.keys.shape[2])
        keys = np.stack([attention.rotate(layer, places) for layer in cache.keys])
        return _emptied(replace(cache, keys=keys), cache.index)


@mutant("DEC-03")
class PaddingIsCached(_Cached):
    """What prefill computed behind the prompt stays in the cache, never to be seen."""

    def cached(self, cache: Cache, batch: Tree) -> Cache:
        return cache


# ---- generation --------------------------------------------------------------------------------


@mutant("DEC-07")
class PromptIsKept(ReferenceAdapter):
    """What is returned begins with the prompt."""

    def generate(self, parameters: Tree, batch: Tree, **options: Any) -> ndarray:
        made = super().generate(parameters, batch, **options)
        inputs, length = PROMPT(batch)
        rows = [[*row[1 : n + 1], *new] for row, n, new in zip(inputs, length, made, strict=True)]
        return np.array([row[: made.shape[1]] for row in rows])


@mutant("DEC-07")
class PromptsOwnEndEnds(ReferenceAdapter):
    """A row whose prompt holds an id 1 has ended before it begins."""

    def generate(self, parameters: Tree, batch: Tree, **options: Any) -> ndarray:
        ended = (PROMPT(batch)[0] == decoding.END).any(axis=1, keepdims=True)
        return np.where(ended, 0, super().generate(parameters, batch, **options))


@mutant("DEC-07")
class NothingEnds(Exchanged):
    """Rows go on behind an id 1 until they are full."""

    def exchanged(self) -> dict[str, Any]:
        return {"END": -1}


@mutant("DEC-07")
class EndIsNotEmitted(ReferenceAdapter):
    """The id 1 that ends a row is left out."""

    def generate(self, parameters: Tree, batch: Tree, **options: Any) -> ndarray:
        made = super().generate(parameters, batch, **options)
        return np.where(made == decoding.END, 0, made)


@mutant("DEC-07")
class FirstRowEndsAll(ReferenceAdapter):
    """The loop stops when one row has ended."""

    def generate(self, parameters: Tree, batch: Tree, **options: Any) -> ndarray:
        made = super().generate(parameters, batch, **options)
        ends = (made == decoding.END).any(axis=0)
        return np.where(np.cumsum(ends) - ends > 0, 0, made)


@mutant("DEC-07")
class OneTokenTooFew(ReferenceAdapter):
    """A row is full one place early."""

    def generate(self, parameters: Tree, batch: Tree, **options: Any) -> ndarray:
        made = super().generate(parameters, batch, **options)
        room = made.shape[1] - 1 - PROMPT(batch)[1][:, None]
        return np.where(np.arange(made.shape[1]) < room, made, 0)


@mutant("DEC-07")
class LastTokenIsFedTwice(LastTokenIsCached):
    """The prompt's last token is cached and then fed again into the next slot."""


@mutant("DEC-07")
class LastTokenIsNotFedAgain(Exchanged):
    """The first new id comes from the logits of prefill, which drops."""

    def exchanged(self) -> dict[str, Any]:
        def generate(*arguments: Any, **options: Any) -> ndarray:
            return GENERATE(*arguments, **options | {"feed_again": False})

        return {"generate": generate}


# ---- what decoding must reject -----------------------------------------------------------------


@mutant("DEC-09")
class StepsBeyondTheCacheRepeat(ReferenceAdapter):
    """Steps that do not fit give the last logits again."""

    def decode(
        self, parameters: Tree, batch: Tree, *, steps: int, **options: Any
    ) -> dict[str, Any]:
        room = batch["decoder_input_tokens"].shape[1] - int(PROMPT(batch)[1].max())
        found = super().decode(parameters, batch, steps=min(steps, room), **options)
        logits = found["logits"]
        again = np.repeat(logits[:, -1:], max(steps - room, 0), axis=1)
        return found | {"logits": np.concatenate([logits, again], axis=1)}


@mutant("DEC-09")
class CausalAttentionMayLack(ReferenceAdapter):
    """Without decoder_causal_attention the start token alone is the prompt."""

    def decode(self, parameters: Tree, batch: Tree, **options: Any) -> dict[str, Any]:
        prefix = {"decoder_causal_attention": np.zeros_like(batch["decoder_input_tokens"])}
        prefix["decoder_causal_attention"][:, 0] = 1
        return super().decode(parameters, prefix | dict(batch), **options)


@mutant("DEC-09")
class UnknownTokensAreClipped(ReferenceAdapter):
    """Ids outside the vocabulary count as its last or first one."""

    def decode(
        self, parameters: Tree, batch: Tree, *, configuration: Mapping[str, Any], **options: Any
    ) -> dict[str, Any]:
        largest = Configuration(**configuration).vocabulary_size - 1
        known = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].clip(0, largest)}
        return super().decode(parameters, known, configuration=configuration, **options)
