"""Mutants of SPEC.md "Batching": rows of one example, and what was fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter

Examples = Sequence[Mapping[str, ndarray]]
Features = Mapping[str, ndarray]


def other(features: Features, name: str, array: ndarray) -> Features:
    """Return features with another one of a name."""
    return {**features, f"decoder_{name}": array.astype(np.int32)}


def tokens(features: Features) -> ndarray:
    """Return the target ids of some features."""
    return features["decoder_target_tokens"]


# ---- not packed --------------------------------------------------------------------------------


@mutant("BATCH-01")
class InputsAreFilledUpFirst(ReferenceAdapter):
    """Inputs are padded to their length before the targets follow."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        lengths = options["lengths"]
        if options["pack"] or "inputs" not in lengths:
            return right
        rows = [
            [np.pad(one[n], (0, size - len(one[n]))) for n, size in sorted(lengths.items())]
            for one in examples
        ]
        return other(right, "target_tokens", np.array([np.concatenate(row) for row in rows]))


@mutant("BATCH-01")
class AStartStandsBetween(ReferenceAdapter):
    """An id 1 stands between inputs and targets."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        if "inputs" in options["lengths"] and all("inputs" in one for one in examples):
            longer = dict(options["lengths"])
            super().decoder_features(examples, **options)
            longer["inputs"] += 1
            joined = [{**one, "inputs": np.append(one["inputs"], 1)} for one in examples]
            wide = super().decoder_features(joined, **options | {"lengths": longer})
            return {name: array[:, :-1] for name, array in wide.items()}
        return super().decoder_features(examples, **options)


@mutant("BATCH-02")
class TargetsAreFed(ReferenceAdapter):
    """What is fed is not shifted."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        return other(right, "input_tokens", tokens(right))


@mutant("BATCH-02")
class TheLastTargetIsNotFed(ReferenceAdapter):
    """The first padding is fed 0: the row ends with its last target."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        return other(right, "input_tokens", right["decoder_input_tokens"] * (tokens(right) != 0))


@mutant("BATCH-02")
class RowsBeginWithPadding(ReferenceAdapter):
    """The first id is 0 whatever the start token is."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        first = np.arange(right["decoder_input_tokens"].shape[1]) == 0
        return other(right, "input_tokens", np.where(first, 0, right["decoder_input_tokens"]))


@mutant("BATCH-03")
class InputsHaveWeights(ReferenceAdapter):
    """Every token has a weight."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        return super().decoder_features(examples, **options | {"loss_on_targets_only": False})


@mutant("BATCH-03")
class TheFirstTargetHasNoWeight(ReferenceAdapter):
    """The position that is fed the last input has no weight."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        weights = right["decoder_loss_weights"]
        if not options.get("loss_on_targets_only", True) or options["pack"]:
            return right
        before = np.roll(weights, 1, axis=1)
        before[:, 0] = 0
        return other(right, "loss_weights", weights * before)


@mutant("BATCH-03")
class EndsHaveNoWeight(ReferenceAdapter):
    """The last target of a row is not learnt."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        after = np.roll(tokens(right), -1, axis=1)
        after[:, -1] = 0
        return other(right, "loss_weights", right["decoder_loss_weights"] * (after != 0))


@mutant("BATCH-04")
class PrefixesEndWithTheInputs(ReferenceAdapter):
    """The flags cover the inputs and no position more."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        if "decoder_causal_attention" not in right or options["pack"]:
            return right
        flags = right["decoder_causal_attention"]
        return other(right, "causal_attention", np.pad(flags, ((0, 0), (0, 1)))[:, 1:])


@mutant("BATCH-05")
class CausalRowsHaveAnEmptyPrefix(ReferenceAdapter):
    """Targets alone are rows with inputs of length 0."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        lengths = dict(options["lengths"])
        if "inputs" not in lengths and all("targets" in one for one in examples):
            lengths["inputs"] = 0
            empty = np.zeros(0, np.int64)
            return super().decoder_features(
                [{**one, "inputs": empty} for one in examples], **options | {"lengths": lengths}
            )
        return super().decoder_features(examples, **options)


# ---- the rest ----------------------------------------------------------------------------------


@mutant("BATCH-10")
class LongExamplesAreCut(ReferenceAdapter):
    """What is longer than its length is cut."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        lengths = options["lengths"]
        cut = [{n: a[: lengths.get(n, 0)] for n, a in one.items()} for one in examples]
        return super().decoder_features(cut, **options)


@mutant("BATCH-10")
class MissingFeaturesAreEmpty(ReferenceAdapter):
    """A feature that an example lacks is empty."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        empty = dict.fromkeys(options["lengths"], np.zeros(0, np.int64))
        return super().decoder_features([{**empty, **one} for one in examples], **options)


@mutant("BATCH-11")
class PositionsAreTokens(ReferenceAdapter):
    """Padding counts as tokens: the paper's 780 billion."""

    def feed_statistics(self, features: Features) -> Mapping[str, int]:
        right = super().feed_statistics(features)
        return {**right, "tokens": right["positions"]}


@mutant("BATCH-11")
class RowsAreExamples(ReferenceAdapter):
    """Every row counts as one example."""

    def feed_statistics(self, features: Features) -> Mapping[str, int]:
        right = super().feed_statistics(features)
        return {**right, "examples": right["rows"]}
