"""Planted bugs of SPEC.md "Routing audits": shares, and how far they are spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference.audit import largest_spread


def _tokens(counts: ndarray) -> ndarray:
    return np.asarray(counts[..., 0].sum(axis=-1))


def _first(counts: ndarray) -> ndarray:
    return counts[..., :1]


@mutant("AUDIT-03")
class SharesOfTokens(ReferenceAdapter):
    """Choices are divided by tokens, so that shares make K."""

    def choice_shares(self, counts: ndarray) -> ndarray:
        return super().choice_shares(counts) * counts.shape[-1]


@mutant("AUDIT-03")
class NoTokenIsNoShare(ReferenceAdapter):
    """A key without a token has shares of 0."""

    def choice_shares(self, counts: ndarray) -> ndarray:
        return np.nan_to_num(super().choice_shares(counts))


@mutant("AUDIT-03")
class SharesOfFirstChoices(ReferenceAdapter):
    """Shares are of first choices."""

    def choice_shares(self, counts: ndarray) -> ndarray:
        return super().choice_shares(_first(counts))


@mutant("AUDIT-03")
class SharesInFloat32(ReferenceAdapter):
    """Shares are float32."""

    def choice_shares(self, counts: ndarray) -> ndarray:
        return super().choice_shares(counts).astype(np.float32)


@mutant("AUDIT-03")
class PartsOfTheText(ReferenceAdapter):
    """The choices of a key are divided by those of the whole text."""

    def choice_shares(self, counts: ndarray) -> ndarray:
        n = _tokens(counts)
        return super().choice_shares(counts) * n[..., None] / max(n.sum(), 1)


@mutant("AUDIT-04")
class SampleDeviation(ReferenceAdapter):
    """The squares are divided by E - 1."""

    def share_spread(self, counts: ndarray) -> ndarray:
        return np.asarray(self.choice_shares(counts).std(axis=-1, ddof=1))


@mutant("AUDIT-04")
class SpreadOfFirstChoices(ReferenceAdapter):
    """The spread is of first choices, whose largest is sqrt(1/E - 1/E^2)."""

    def share_spread(self, counts: ndarray) -> ndarray:
        return super().share_spread(_first(counts))


@mutant("AUDIT-04")
class NoTokenIsNoSpread(ReferenceAdapter):
    """A key without a token has a spread of 0."""

    def share_spread(self, counts: ndarray) -> ndarray:
        return np.nan_to_num(super().share_spread(counts))


@mutant("AUDIT-05")
class OneHundredTwentyEightAreEnough(ReferenceAdapter):
    """A key with exactly the least number of tokens counts too."""

    def mean_spread(self, counts: ndarray, *, least: int = 128) -> float:
        spread = self.share_spread(counts)[_tokens(counts) >= max(least, 1)]
        return float(spread.mean()) if spread.size else float("nan")


@mutant("AUDIT-05")
class KeysWeighTheirTokens(ReferenceAdapter):
    """A key with more tokens weighs more."""

    def mean_spread(self, counts: ndarray, *, least: int = 128) -> float:
        kept = _tokens(counts) > least
        if not kept.any():
            return float("nan")
        return float(np.average(self.share_spread(counts[kept]), weights=_tokens(counts)[kept]))


@mutant("AUDIT-05")
class EveryKeyCounts(ReferenceAdapter):
    """Rare keys, whose spread is large by chance, are in the mean."""

    def mean_spread(self, counts: ndarray, *, least: int = 128) -> float:
        return super().mean_spread(counts, least=min(least, 0))


@mutant("AUDIT-05")
class NoFrequentKeyIsNoSpread(ReferenceAdapter):
    """Where no key has enough tokens the mean is 0."""

    def mean_spread(self, counts: ndarray, *, least: int = 128) -> float:
        return float(np.nan_to_num(super().mean_spread(counts, least=least)))


@mutant("AUDIT-05")
class ChoicesPassTheFilter(ReferenceAdapter):
    """A key has more than 128 choices, not tokens."""

    def mean_spread(self, counts: ndarray, *, least: int = 128) -> float:
        return super().mean_spread(counts, least=least // counts.shape[-1])


@mutant("AUDIT-06")
class FloorOfTokens(ReferenceAdapter):
    """The floor is not divided by K: as if shares were of tokens."""

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        return super().spread_floor(tokens, **options) * options["k"]


@mutant("AUDIT-06")
class FloorIsNothing(ReferenceAdapter):
    """The floor is 0, the paper's line."""

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        return super().spread_floor(tokens, **options) * 0


@mutant("AUDIT-06")
class FloorOfEvenExperts(ReferenceAdapter):
    """The floor does not know the shares of the whole text."""

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        return super().spread_floor(tokens, **options | {"shares": None})


@mutant("AUDIT-06")
class ChoicesAreIndependent(ReferenceAdapter):
    """A token's choices are K draws that may meet: p is the share, and K n the number."""

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        shares, experts = options.get("shares"), options["num_experts"]
        p = np.full(experts, 1 / experts) if shares is None else shares
        n = np.where(tokens > 0, tokens, np.nan)
        return np.sqrt((p * (1 - p)).mean() / (options["k"] * n))


@mutant("AUDIT-06")
class FloorOfNoToken(ReferenceAdapter):
    """Without a token the floor is 0."""

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        return np.nan_to_num(super().spread_floor(tokens, **options))


class _Debiased(ReferenceAdapter):
    """The debiased spread in parts, of which a bug changes one."""

    def debiased_spread(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        n, own = _tokens(counts), self.choice_shares(counts)
        centre = np.full(own.shape[-1], 1 / own.shape[-1]) if shares is None else shares
        square = ((own - self.centre(centre)) ** 2).mean(axis=-1)
        square = square - self.noise(own * counts.shape[-1], counts.shape[-1], n)
        return np.where(n > 1, np.sqrt(self.cut(square)), np.nan)

    def specialisation(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        experts, k = counts.shape[-2:]
        return self.debiased_spread(counts, shares=shares) / largest_spread(k, experts)

    def centre(self, shares: ndarray) -> ndarray:
        return shares

    def noise(self, p: ndarray, k: int, n: ndarray) -> ndarray:
        return np.asarray((p * (1 - p)).mean(axis=-1) / (k**2 * np.maximum(n - 1, 1)))

    def cut(self, square: ndarray) -> ndarray:
        return np.maximum(square, 0)


@mutant("AUDIT-07")
class VarianceOfTheSample(_Debiased):
    """The variance is divided by n, and too small."""

    def noise(self, p: ndarray, k: int, n: ndarray) -> ndarray:
        return np.asarray((p * (1 - p)).mean(axis=-1) / (k**2 * np.maximum(n, 1)))


@mutant("AUDIT-07")
class EvenFloorIsTakenOff(_Debiased):
    """What is taken off is the floor of even experts, not the key's own variance."""

    def noise(self, p: ndarray, k: int, n: ndarray) -> ndarray:
        return super().noise(np.full_like(p, k / p.shape[-1]), k, n)


@mutant("AUDIT-07")
class BelowNothing(_Debiased):
    """The root is taken of a negative square."""

    def cut(self, square: ndarray) -> ndarray:
        return np.where(square < 0, np.nan, square)


@mutant("AUDIT-07")
class AlwaysAroundEvenShares(_Debiased):
    """The centre is 1/E whatever the whole text's shares are."""

    def centre(self, shares: ndarray) -> ndarray:
        return np.full(shares.shape, 1 / len(shares))


@mutant("AUDIT-07")
class OneTokenIsSpecial(ReferenceAdapter):
    """A key with one token, or none, has no spread instead of none that is known."""

    def debiased_spread(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        return np.nan_to_num(super().debiased_spread(counts, shares=shares))


@mutant("AUDIT-07")
class PartOfNothing(ReferenceAdapter):
    """The specialisation is the debiased spread itself."""

    def specialisation(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        return self.debiased_spread(counts, shares=shares)


@mutant("AUDIT-07")
class PartOfTheLargestOfOneChoice(ReferenceAdapter):
    """The specialisation is divided by the largest spread of first choices."""

    def specialisation(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        largest = largest_spread(1, counts.shape[-2])
        return self.debiased_spread(counts, shares=shares) / largest
