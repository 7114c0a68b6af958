"""Planted bugs of SPEC.md "Routing audits": what keys tell of the routing."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import audit_inference
from openmoe_reference.audit import choice_shares


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


@mutant("AUDIT-22")
class NeverBelowNothing(ReferenceAdapter):
    """Information below 0 is cut: its mean over chance is above 0 again."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        told, choice = super().information(counts)
        return max(told, 0.0), choice


@mutant("AUDIT-22")
class PlainEntropy(ReferenceAdapter):
    """The choice's entropy that is answered has no correction."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        told, choice = super().information(counts)
        cells = np.count_nonzero(counts.sum(axis=0))
        return told, float(choice - (cells - 1) / (2 * counts.sum()))


@mutant("AUDIT-22")
class PartOfTheEntropy(ReferenceAdapter):
    """Information is a part of the choice's entropy."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        told, choice = super().information(counts)
        return (told / choice if choice else 0.0), choice


@mutant("AUDIT-23")
class UnknownKeysMiss(ReferenceAdapter):
    """A key without tokens to learn from is guessed wrong."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        found = super().held_out_hits(train, test)
        overall = train.sum(axis=0).argmax()
        found[1] -= test[train.sum(axis=1) == 0, overall].sum()
        return found


@mutant("AUDIT-23")
class UnknownKeysTakeTheFirst(ReferenceAdapter):
    """Of a key without tokens to learn from all experts are equal, and the first is guessed."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        found = super().held_out_hits(train, test)
        found[1] = np.take_along_axis(test, train.argmax(axis=1)[:, None], axis=1).sum()
        return found


@mutant("AUDIT-23")
class UnknownKeysAreLeftOut(ReferenceAdapter):
    """A key without tokens to learn from is not asked."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        known = train.sum(axis=1, keepdims=True) > 0
        return super().held_out_hits(train, test * known)


@mutant("AUDIT-23")
class GuessesOfAByte(ReferenceAdapter):
    """The expert that is guessed is held in a byte."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        found = super().held_out_hits(train, test)
        best = train.sum(axis=0).argmax()
        guess = np.where(train.sum(axis=1) > 0, train.argmax(axis=1), best) % 256
        found[1] = np.take_along_axis(test, guess[:, None], axis=1).sum()
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


@mutant("AUDIT-23")
class MeanOfFolds(ReferenceAdapter):
    """The gain is the mean of the folds' own."""

    def held_out_gain(self, by_fold: ndarray, *, level: float = 0.95) -> tuple[float, ...]:
        found = list(super().held_out_gain(by_fold, level=level))
        whole = by_fold.sum(axis=0)
        each = [_gain(audit_inference.held_out_hits(whole - one, one))[2] for one in by_fold]
        found[2] = float(np.mean(each))
        return tuple(found)


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


@mutant("AUDIT-24")
class ShiftFromTheRest(ReferenceAdapter):
    """The shift is from the rest of the text, the slice not among it."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        shift, left, part = super().explained_by_tokens(slice_tokens, token_counts, slice_counts)
        rest = token_counts.sum(axis=0) - slice_counts
        if rest.any():
            apart = choice_shares(slice_counts) - choice_shares(rest)
            shift = float(np.abs(apart).sum() / 2)
            part = left / shift if shift else math.nan
        return shift, left, part


@mutant("AUDIT-24")
class IdsOfTheWholeText(ReferenceAdapter):
    """An id of the slice weighs its tokens in the whole text."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        shift = super().explained_by_tokens(slice_tokens, token_counts, slice_counts)[0]
        expected = choice_shares(token_counts[slice_tokens > 0].sum(axis=0))
        left = float(np.abs(choice_shares(slice_counts) - expected).sum() / 2)
        return shift, left, left / shift if shift else math.nan


@mutant("AUDIT-24")
class NoShiftIsExplained(ReferenceAdapter):
    """Where there is no shift, all of it is explained."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        shift, left, part = super().explained_by_tokens(slice_tokens, token_counts, slice_counts)
        return shift, left, part if shift else 0.0
