"""Planted bugs of SPEC.md "Routing audits": folds and weights of documents, intervals."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import audit_inference

Ends = tuple[float, float]


@mutant("AUDIT-25")
class BigEndianWords(ReferenceAdapter):
    """Words of a digest are big-endian."""

    def document_fold(self, document: str, **options: int) -> int:
        digest = hashlib.sha256(document.encode()).digest()
        return int.from_bytes(digest[:4], "big") % options.get("folds", 8)


@mutant("AUDIT-25")
class FoldOfTheDigest(ReferenceAdapter):
    """The whole digest is taken modulo the folds: right where these are a power of 2."""

    def document_fold(self, document: str, **options: int) -> int:
        digest = hashlib.sha256(document.encode()).digest()
        return int.from_bytes(digest, "little") % options.get("folds", 8)


@mutant("AUDIT-25")
class FoldOfPlainLetters(ReferenceAdapter):
    """The digest is of the name without what is not ASCII."""

    def document_fold(self, document: str, **options: int) -> int:
        plain = document.encode("ascii", "ignore").decode()
        return super().document_fold(plain or "-", **options)


@mutant("AUDIT-25")
class FoldIsNotWhole(ReferenceAdapter):
    """The fold is a real number."""

    def document_fold(self, document: str, **options: int) -> float:  # type: ignore[override]
        return float(super().document_fold(document, **options))


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
class HalfOfEachDigest(ReferenceAdapter):
    """Every digest gives four weights."""

    def document_weights(self, document: str, **options: int) -> ndarray:
        replicates = options.get("replicates", 100)
        digests = -(-replicates // 4)
        found = super().document_weights(document, **options | {"replicates": 8 * digests})
        return found.reshape(digests, 8)[:, :4].reshape(-1)[:replicates]


@mutant("AUDIT-25")
class SixAtMost(ReferenceAdapter):
    """A document counts six times at most."""

    def document_weights(self, document: str, **options: int) -> ndarray:
        return np.minimum(super().document_weights(document, **options), 6)


@mutant("AUDIT-25")
class ElevenAtMost(ReferenceAdapter):
    """The last threshold is left out."""

    def document_weights(self, document: str, **options: int) -> ndarray:
        return np.minimum(super().document_weights(document, **options), 11)


@mutant("AUDIT-25")
class SeedBehindTheName(ReferenceAdapter):
    """The name stands first, and then the seed."""

    def document_weights(self, document: str, **options: int) -> ndarray:
        drawn: list[int] = []
        replicates, seed = options.get("replicates", 100), options.get("seed", 0)
        for number in range(-(-replicates // 8)):
            digest = hashlib.sha256(f"{document} {seed} {number}".encode()).digest()
            drawn += np.frombuffer(digest, "<u4").tolist()
        below = np.cumsum([math.exp(-1) / math.factorial(m) for m in range(12)]) * 2**32
        return np.searchsorted(np.floor(below), drawn[:replicates], side="right")


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
class Percentiles(ReferenceAdapter):
    """The ends are quantiles of the replicates."""

    def bootstrap_interval(self, estimate: float, replicates: ndarray, **options: float) -> Ends:
        super().bootstrap_interval(estimate, replicates, **options)
        outside = (1 - options.get("level", 0.95)) / 2
        low, high = np.quantile(replicates, [outside, 1 - outside])
        return float(low), float(high)


@mutant("AUDIT-26")
class TwoDeviations(ReferenceAdapter):
    """The interval is two deviations each side, whatever the level."""

    def bootstrap_interval(self, estimate: float, replicates: ndarray, **options: float) -> Ends:
        half = 2 * float(replicates.std(ddof=1))
        return estimate - half, estimate + half


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


@mutant("AUDIT-26")
class SquaresAsTheyAre(ReferenceAdapter):
    """The jackknife's squares are summed without (F - 1)/F."""

    def jackknife_interval(self, estimate: float, left_out: ndarray, **options: float) -> Ends:
        folds = len(left_out)
        low, high = super().jackknife_interval(estimate, left_out, **options)
        half = (high - low) / 2 * math.sqrt(folds / (folds - 1))
        return estimate - half, estimate + half


@mutant("AUDIT-26")
class AroundTheEstimate(ReferenceAdapter):
    """Squares are around the estimate, not around the mean of what is left."""

    def jackknife_interval(self, estimate: float, left_out: ndarray, **options: float) -> Ends:
        folds, level = len(left_out), options.get("level", 0.95)
        squares = float(((left_out - estimate) ** 2).sum())
        half = audit_inference.student_quantile((1 + level) / 2, folds - 1)
        half *= math.sqrt((folds - 1) / folds * squares)
        return estimate - half, estimate + half


@mutant("AUDIT-26")
class DegreesOfAllFolds(ReferenceAdapter):
    """Student's distribution has F degrees of freedom."""

    def jackknife_interval(self, estimate: float, left_out: ndarray, **options: float) -> Ends:
        folds, chance = len(left_out), (1 + options.get("level", 0.95)) / 2
        low, high = super().jackknife_interval(estimate, left_out, **options)
        half = (high - low) / 2 / audit_inference.student_quantile(chance, folds - 1)
        half *= audit_inference.student_quantile(chance, folds)
        return estimate - half, estimate + half


@mutant("AUDIT-26")
class AlwaysAtNinetyFive(ReferenceAdapter):
    """The level is not looked at."""

    def jackknife_interval(self, estimate: float, left_out: ndarray, **_: float) -> Ends:
        return super().jackknife_interval(estimate, left_out)


@mutant("AUDIT-26")
class GainAtNinetyFive(ReferenceAdapter):
    """The gain's interval does not know the level."""

    def held_out_gain(self, by_fold: ndarray, *, level: float = 0.95) -> tuple[float, ...]:
        super().held_out_gain(by_fold, level=level)
        return super().held_out_gain(by_fold)


@mutant("AUDIT-26")
class GainOfTwoFolds(ReferenceAdapter):
    """Two folds are enough: each is guessed from the other, and the interval is not known."""

    def held_out_gain(self, by_fold: ndarray, *, level: float = 0.95) -> tuple[float, ...]:
        if len(by_fold) != 2:
            return super().held_out_gain(by_fold, level=level)
        right = self.held_out_hits(*by_fold) + self.held_out_hits(*by_fold[::-1])
        tokens, hits, plain = right.tolist()
        gain = (hits - plain) / (tokens - plain)
        return hits / tokens, plain / tokens, gain, math.nan, math.nan
