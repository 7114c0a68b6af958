"""Planted bugs of SPEC.md "Routing audits": two checkpoints on the same tokens."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference.audit import tokens_of


@mutant("AUDIT-09")
class SameRankOnly(ReferenceAdapter):
    """Experts count where they have the same rank."""

    def saturation(self, first: ndarray, second: ndarray) -> float:
        return float((first == second).mean())


@mutant("AUDIT-09")
class AnyExpert(ReferenceAdapter):
    """A token counts whole where one expert is the same."""

    def saturation(self, first: ndarray, second: ndarray) -> float:
        return float((first[:, :, None] == second[:, None]).any(axis=(1, 2)).mean())


@mutant("AUDIT-09")
class JaccardIndex(ReferenceAdapter):
    """Shared experts are divided by those of either."""

    def saturation(self, first: ndarray, second: ndarray) -> float:
        shared = (first[:, :, None] == second[:, None]).sum(axis=(1, 2))
        return float((shared / (2 * first.shape[1] - shared)).mean())


@mutant("AUDIT-09")
class FirstChoicesOfBoth(ReferenceAdapter):
    """First choices alone are compared."""

    def saturation(self, first: ndarray, second: ndarray) -> float:
        return super().saturation(first[:, :1], second[:, :1])


@mutant("AUDIT-15")
class InNats(ReferenceAdapter):
    """The divergence is in nats."""

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        return super().table_divergence(first, second) * float(np.log(2))


@mutant("AUDIT-15")
class EveryIdOnce(ReferenceAdapter):
    """Ids count once each."""

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        found = [
            super(EveryIdOnce, self).table_divergence(one[None], other[None])
            for one, other in zip(first, second, strict=True)
        ]
        there = [one for one in found if not np.isnan(one)]
        return float(np.mean(there)) if there else float("nan")


@mutant("AUDIT-15")
class IdsOfEither(ReferenceAdapter):
    """An id of one checkpoint alone is as far apart as can be."""

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        n, m = tokens_of(first), tokens_of(second)
        both, alone = (n > 0) & (m > 0), (n > 0) ^ (m > 0)
        if not both.any():
            return float("nan")
        weight = (n + m)[both].sum()
        apart = super().table_divergence(first, second) * weight + (n + m)[alone].sum()
        return float(apart / (weight + (n + m)[alone].sum()))


@mutant("AUDIT-15")
class TokensOfTheFirst(ReferenceAdapter):
    """An id weighs its tokens in the first checkpoint."""

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        n, m = tokens_of(first), tokens_of(second)
        apart = [
            super(TokensOfTheFirst, self).table_divergence(one[None], other[None])
            for one, other in zip(first, second, strict=True)
        ]
        both = (n > 0) & (m > 0)
        return float(np.average(np.array(apart)[both], weights=n[both])) if both.any() else np.nan


@mutant("AUDIT-15")
class JointTable(ReferenceAdapter):
    """The middle of two tables is that of their tokens together, not of their shares."""

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        def nats(counts: ndarray) -> float:
            cells = counts.sum(axis=-1)
            shares = cells[cells > 0] / cells.sum()
            return float(-(shares * np.log(shares)).sum())

        total, weight = super().table_divergence(first, second) * 0, 0
        for one, other in zip(first, second, strict=True):
            n, m = int(one[:, 0].sum()), int(other[:, 0].sum())
            if n and m:
                total += (n + m) * nats(one + other) - n * nats(one) - m * nats(other)
                weight += n + m
        return total / (weight * float(np.log(2))) if weight else np.nan


@mutant("AUDIT-15")
class NoIdIsNoDistance(ReferenceAdapter):
    """Checkpoints without an id in common are not apart."""

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        return float(np.nan_to_num(super().table_divergence(first, second)))


@mutant("AUDIT-15")
class ProductsOfCounts(ReferenceAdapter):
    """The overlap is the sum of products of counts."""

    def overlap(self, first: ndarray, second: ndarray) -> ndarray:
        return first.T @ second


@mutant("AUDIT-15")
class GreedyRelabelling(ReferenceAdapter):
    """Each expert takes what overlaps it most of those that are left."""

    def relabelling(self, first: ndarray, second: ndarray) -> ndarray:
        shared = self.overlap(first, second)
        left = set(range(len(shared)))
        found = []
        for row in shared:
            most = max(int(row[column]) for column in left)
            found.append(min(column for column in left if int(row[column]) == most))
            left.remove(found[-1])
        return np.array(found)


@mutant("AUDIT-15")
class NumbersNeverMove(ReferenceAdapter):
    """Experts keep their numbers."""

    def relabelling(self, first: ndarray, second: ndarray) -> ndarray:
        return np.arange(first.shape[1])


@mutant("AUDIT-15")
class TheOtherWayRound(ReferenceAdapter):
    """The relabelling gives the expert of the first for each of the second."""

    def relabelling(self, first: ndarray, second: ndarray) -> ndarray:
        return np.argsort(super().relabelling(first, second))


@mutant("AUDIT-15")
class NumbersMoveForNothing(ReferenceAdapter):
    """Where another order does as well, it is taken."""

    def relabelling(self, first: ndarray, second: ndarray) -> ndarray:
        found, shared = super().relabelling(first, second), self.overlap(first, second)
        for one in range(len(found)):
            for other in range(one):
                swapped = found.copy()
                swapped[[one, other]] = found[[other, one]]
                rows = np.arange(len(found))
                if shared[rows, swapped].sum() == shared[rows, found].sum():
                    return swapped
        return found
