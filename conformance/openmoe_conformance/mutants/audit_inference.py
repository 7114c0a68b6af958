"""Planted bugs of SPEC.md "Routing audits": what keys tell, documents, intervals."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import audit_inference
from openmoe_reference.audit import choice_shares

Ends = tuple[float, float]


@mutant("AUDIT-22")
class PluggedIn(ReferenceAdapter):
    """Entropies are of the shares as they are: few tokens tell much by chance."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        def entropy(cells: ndarray) -> float:
            shares = cells[cells > 0] / counts.sum()
            return float(-(shares * np.log(shares)).sum())

        choice = entropy(counts.sum(axis=0))
        return choice + entropy(counts.sum(axis=1)) - entropy(counts.reshape(-1)), choice


@mutant("AUDIT-22")
class InformationInBits(ReferenceAdapter):
    """Information is in bits."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        told, choice = super().information(counts)
        return told / math.log(2), choice / math.log(2)


@mutant("AUDIT-22")
class EveryCellCorrects(ReferenceAdapter):
    """The correction counts cells that never occur."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        told, choice = super().information(counts)
        empty = (counts.size - np.count_nonzero(counts)) / (2 * counts.sum())
        return float(told - empty), choice


@mutant("AUDIT-23")
class UnknownKeysMiss(ReferenceAdapter):
    """A key without tokens to learn from is guessed wrong."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        found = super().held_out_hits(train, test)
        overall = train.sum(axis=0).argmax()
        found[1] -= test[train.sum(axis=1) == 0, overall].sum()
        return found


@mutant("AUDIT-23")
class HigherIndexOfEquals(ReferenceAdapter):
    """Of equal experts the higher is guessed."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        return super().held_out_hits(train[:, ::-1], test[:, ::-1])


@mutant("AUDIT-23")
class BaselineOfTheTest(ReferenceAdapter):
    """The baseline knows the commonest expert of what is asked."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        found = super().held_out_hits(train, test)
        found[2] = test.sum(axis=0).max()
        return found


def _gain(hits: ndarray) -> tuple[float, float, float]:
    tokens, right, plain = hits.tolist()
    return right / tokens, plain / tokens, (right - plain) / (tokens - plain)


@mutant("AUDIT-23")
class SeenInTraining(ReferenceAdapter):
    """A fold is guessed from all folds, itself among them."""

    def held_out_gain(self, by_fold: ndarray, *, level: float = 0.95) -> tuple[float, ...]:
        whole = by_fold.sum(axis=0)
        found = _gain(audit_inference.held_out_hits(whole, whole))
        right = super().held_out_gain(by_fold, level=level)
        return (*found, *right[3:])


@mutant("AUDIT-23")
class GuessesKeepWhatTheyLearnt(ReferenceAdapter):
    """A fold that is left out takes its own hits with it, and what others have learnt from it stays."""

    def held_out_gain(self, by_fold: ndarray, *, level: float = 0.95) -> tuple[float, ...]:
        whole = by_fold.sum(axis=0)
        hits = np.stack([audit_inference.held_out_hits(whole - one, one) for one in by_fold])
        found = _gain(hits.sum(axis=0))
        left_out = [_gain(hits.sum(axis=0) - one)[2] for one in hits]
        ends = audit_inference.jackknife_interval(found[2], np.array(left_out), level=level)
        return (*found, *ends)


@mutant("AUDIT-23")
class DifferenceOfAccuracies(ReferenceAdapter):
    """The gain is what accuracy has more than the baseline, not a part of its misses."""

    def held_out_gain(self, by_fold: ndarray, *, level: float = 0.95) -> tuple[float, ...]:
        accuracy, baseline, _, low, high = super().held_out_gain(by_fold, level=level)
        return accuracy, baseline, accuracy - baseline, low, high


@mutant("AUDIT-24")
class WithoutTheHalf(ReferenceAdapter):
    """Distances are sums of differences, not half of them."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        found = super().explained_by_tokens(slice_tokens, token_counts, slice_counts)
        return 2 * found[0], 2 * found[1], found[2]


@mutant("AUDIT-24")
class IdsOnce(ReferenceAdapter):
    """Ids of a slice count once each, however often they occur."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        shift = super().explained_by_tokens(slice_tokens, token_counts, slice_counts)[0]
        expected = choice_shares(token_counts[slice_tokens > 0]).mean(axis=0)
        unexplained = float(np.abs(choice_shares(slice_counts) - expected).sum() / 2)
        return shift, unexplained, unexplained / shift if shift else math.nan


@mutant("AUDIT-24")
class DistanceFromEven(ReferenceAdapter):
    """The shift is from even shares, not from those of the whole text."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        found = super().explained_by_tokens(slice_tokens, token_counts, slice_counts)
        shift = float(np.abs(choice_shares(slice_counts) - 1 / slice_counts.shape[0]).sum() / 2)
        return shift, found[1], found[1] / shift if shift else math.nan


@mutant("AUDIT-25")
class BigEndianWords(ReferenceAdapter):
    """Words of a digest are big-endian."""

    def document_fold(self, document: str, **options: int) -> int:
        digest = hashlib.sha256(document.encode()).digest()
        return int.from_bytes(digest[:4], "big") % options.get("folds", 8)


@mutant("AUDIT-25")
class EverySeedAlike(ReferenceAdapter):
    """The seed is not looked at."""

    def document_weights(self, document: str, **options: int) -> ndarray:
        return super().document_weights(document, **options | {"seed": 0})


@mutant("AUDIT-25")
class FirstWordsAlone(ReferenceAdapter):
    """Every digest gives one weight: its first word's."""

    def document_weights(self, document: str, **options: int) -> ndarray:
        replicates = options.get("replicates", 100)
        found = super().document_weights(document, **options | {"replicates": 8 * replicates})
        return found[::8]


@mutant("AUDIT-25")
class AllOrNothing(ReferenceAdapter):
    """A document counts once or not at all."""

    def document_weights(self, document: str, **options: int) -> ndarray:
        return np.minimum(super().document_weights(document, **options), 1)


@mutant("AUDIT-26")
class OneSidedQuantile(ReferenceAdapter):
    """The quantile is that at the level."""

    def bootstrap_interval(self, estimate: float, replicates: ndarray, **options: float) -> Ends:
        half = NormalDist().inv_cdf(options.get("level", 0.95)) * replicates.std(ddof=1)
        return estimate - half, estimate + half


@mutant("AUDIT-26")
class DeviationOfAllReplicates(ReferenceAdapter):
    """The deviation is divided by n."""

    def bootstrap_interval(self, estimate: float, replicates: ndarray, **options: float) -> Ends:
        half = NormalDist().inv_cdf((1 + options.get("level", 0.95)) / 2) * replicates.std()
        return estimate - half, estimate + half


@mutant("AUDIT-26")
class AroundTheReplicates(ReferenceAdapter):
    """The interval is around the replicates' mean."""

    def bootstrap_interval(self, estimate: float, replicates: ndarray, **options: float) -> Ends:
        return super().bootstrap_interval(float(replicates.mean()), replicates, **options)


@mutant("AUDIT-26")
class NormalForFewFolds(ReferenceAdapter):
    """Of a few folds the normal quantile is taken."""

    def jackknife_interval(self, estimate: float, left_out: ndarray, **options: float) -> Ends:
        folds = len(left_out)
        error = math.sqrt((folds - 1) / folds * float(((left_out - left_out.mean()) ** 2).sum()))
        half = NormalDist().inv_cdf(0.975) * error
        return estimate - half, estimate + half


@mutant("AUDIT-26")
class ErrorOfAMean(ReferenceAdapter):
    """The jackknife's squares are divided as those of independent values."""

    def jackknife_interval(self, estimate: float, left_out: ndarray, **options: float) -> Ends:
        folds = len(left_out)
        half = audit_inference.student_quantile(0.975, folds - 1)
        half *= float(left_out.std(ddof=1)) / math.sqrt(folds)
        return estimate - half, estimate + half


@mutant("AUDIT-27")
class NothingIsZero(ReferenceAdapter):
    """What is no number counts as 0."""

    def bootstrap_interval(self, estimate: float, replicates: ndarray, **options: Any) -> Ends:
        return super().bootstrap_interval(
            float(np.nan_to_num(estimate, posinf=0)), np.nan_to_num(replicates, posinf=0), **options
        )


@mutant("AUDIT-27")
class InformationOfNothing(ReferenceAdapter):
    """No token tells nothing, which is 0."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        return super().information(counts) if counts.min() >= 0 and counts.any() else (0.0, 0.0)
