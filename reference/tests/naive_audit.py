"""Deliberately naive routing audits: counts, measures, drops, predictors and intervals.

Written from SPEC.md chapter 22 as plain loops over lists, sharing nothing with the reference,
constants included. Whole numbers and ratios of them are exact (fractions); a root, a logarithm and a
quantile are one rounding away. NaN stands where there is no number. Arguments are legal ones:
nothing is refused here. Counts are [keys][experts][ranks], choices [tokens][ranks].
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction

NONE = math.nan
Counts = Sequence[Sequence[Sequence[int]]]
Key = Sequence[Sequence[int]]
Choices = Sequence[Sequence[int]]

# ---- counting ------------------------------------------------------------------------------------


def counted_tokens(ids: Choices) -> list[list[bool]]:
    """Return which tokens of each row count: all up to the last that is not padding."""
    answer = []
    for row in ids:
        last = -1
        for place, token in enumerate(row):
            if token != 0:
                last = place
        answer.append([place <= last for place in range(len(row))])
    return answer


def count_choices(
    keys: Sequence[int], expert_index: Choices, *, num_keys: int, num_experts: int
) -> list[list[list[int]]]:
    """Return tokens by key, expert and rank of the choice; a key of -1 is not counted."""
    ranks = len(expert_index[0])
    counts = [[[0] * ranks for _ in range(num_experts)] for _ in range(num_keys)]
    for key, chosen in zip(keys, expert_index, strict=True):
        if key != -1:
            for rank, expert in enumerate(chosen):
                counts[key][expert][rank] += 1
    return counts


def tokens_of(key: Key) -> int:
    """Return the tokens of a key: each has one first choice."""
    return sum(ranks[0] for ranks in key)


def together(counts: Counts) -> list[list[int]]:
    """Return the counts of all keys as of one."""
    experts, ranks = len(counts[0]), len(counts[0][0])
    return [
        [sum(key[expert][rank] for key in counts) for rank in range(ranks)]
        for expert in range(experts)
    ]


def _shares(key: Key) -> list[Fraction] | None:
    tokens = tokens_of(key)
    if tokens == 0:
        return None
    return [Fraction(sum(ranks), len(ranks) * tokens) for ranks in key]


def choice_shares(counts: Counts) -> list[list[float]]:
    """Return each expert's part of the choices of each key."""
    answer = []
    for key in counts:
        shares = _shares(key)
        answer.append([NONE] * len(key) if shares is None else [float(one) for one in shares])
    return answer


def _root(square: Fraction) -> float:
    return math.sqrt(square)


def _mean_square(shares: Sequence[Fraction], centre: Sequence[Fraction]) -> Fraction:
    squares = [(share - middle) ** 2 for share, middle in zip(shares, centre, strict=True)]
    return sum(squares, Fraction(0)) / len(shares)


def _even(experts: int) -> list[Fraction]:
    return [Fraction(1, experts)] * experts


def share_spread(counts: Counts) -> list[float]:
    """Return the root of the mean over experts of (share - 1/E)^2, by key."""
    answer = []
    for key in counts:
        shares = _shares(key)
        answer.append(NONE if shares is None else _root(_mean_square(shares, _even(len(key)))))
    return answer


def mean_spread(counts: Counts, *, least: int = 128) -> float:
    """Return the mean spread of the keys with more than `least` tokens, each counting once."""
    found = [
        spread
        for key, spread in zip(counts, share_spread(counts), strict=True)
        if tokens_of(key) > least
    ]
    return math.fsum(found) / len(found) if found else NONE


def largest_spread(k: int, num_experts: int) -> float:
    """Return the spread of a key whose tokens all take the same experts."""
    return _root(Fraction(1, k * num_experts) - Fraction(1, num_experts**2))


def _noise(chances: Sequence[Fraction], trials: int, k: int) -> Fraction:
    terms = [chance * (1 - chance) for chance in chances]
    return sum(terms, Fraction(0)) / (len(chances) * trials * k**2)


def spread_floor(
    tokens: Sequence[int], *, k: int, num_experts: int, shares: Sequence[float] | None = None
) -> list[float]:
    """Return the spread that chance alone gives keys with so many tokens."""
    if shares is None:
        chances = [Fraction(k, num_experts)] * num_experts
    else:
        # A share of 1/K, in float64, may be above it by its rounding.
        chances = [min(k * Fraction(share), Fraction(1)) for share in shares]
    return [_root(_noise(chances, n, k)) if n else NONE for n in tokens]


def debiased_square(
    key: Key, *, shares: Sequence[float | Fraction] | None = None
) -> Fraction | None:
    """Return the debiased spread's square before it is cut at 0; None below two tokens."""
    tokens, ranks = tokens_of(key), len(key[0])
    own = _shares(key)
    if own is None or tokens < 2:
        return None
    centre = _even(len(key)) if shares is None else [Fraction(share) for share in shares]
    return _mean_square(own, centre) - _noise([ranks * one for one in own], tokens - 1, ranks)


def debiased_spread(counts: Counts, *, shares: Sequence[float] | None = None) -> list[float]:
    """Return the spread less what chance adds to it, by key."""
    answer = []
    for key in counts:
        square = debiased_square(key, shares=shares)
        answer.append(NONE if square is None else _root(max(square, Fraction(0))))
    return answer


def specialisation(counts: Counts, *, shares: Sequence[float] | None = None) -> list[float]:
    """Return the debiased spread's part of the largest."""
    largest = largest_spread(len(counts[0][0]), len(counts[0]))
    return [one / largest for one in debiased_spread(counts, shares=shares)]


# ---- measures ------------------------------------------------------------------------------------


def top_tokens(counts: Counts, *, by: str, number: int = 10, least: int = 10) -> list[list[int]]:
    """Return the ids that lead each expert's list; -1 where there are no more."""
    experts, k = len(counts[0]), len(counts[0][0])
    loads = _shares(together(counts)) or [Fraction(0)] * experts
    answer = []
    for expert, load in enumerate(loads):
        ranked = []
        for token, key in enumerate(counts):
            count, n = sum(key[expert]), tokens_of(key)
            if count == 0 or (by == "precision" and n < least):
                continue
            if by == "count":
                score = Fraction(count)
            elif by == "precision":
                score = Fraction(count, k * n)
            else:
                score = (count + 10 * k * load) / (k * (n + 10)) / load
            ranked.append((-score, token))
        leading = [token for _, token in sorted(ranked)[:number]]
        answer.append(leading + [-1] * (number - len(leading)))
    return answer


def saturation(first: Choices, second: Choices) -> float:
    """Return the mean part of the experts that both choose."""
    common = sum(len(set(one) & set(other)) for one, other in zip(first, second, strict=True))
    return float(Fraction(common, len(first) * len(first[0])))


def coactivation(expert_index: Choices, *, num_experts: int) -> list[list[int]]:
    """Return how many tokens choose both experts of each pair, a pair both ways round."""
    counts = [[0] * num_experts for _ in range(num_experts)]
    for chosen in expert_index:
        for one, other in itertools.permutations(chosen, 2):
            counts[one][other] += 1
    return counts


def coactivation_shares(counts: Choices, tokens: Sequence[int]) -> list[list[float]]:
    """Return the rows divided by the tokens of their expert."""
    return [
        [count / n if n else NONE for count in row] for row, n in zip(counts, tokens, strict=True)
    ]


def vocabulary_specialisation(
    counts: Counts, *, least: int = 0, weighted: bool = False
) -> list[float]:
    """Return by expert the mean part of the tokens of the keys that choose it most."""
    above = [Fraction(0)] * len(counts[0])
    below = [0] * len(counts[0])
    for key in counts:
        n = tokens_of(key)
        if n == 0 or n < least:
            continue
        chosen = [sum(ranks) for ranks in key]
        best = chosen.index(max(chosen))
        weight = n if weighted else 1
        above[best] += weight * Fraction(chosen[best], n)
        below[best] += weight
    return [float(a / b) if b else NONE for a, b in zip(above, below, strict=True)]


def repetition(expert_index: Choices, row: Sequence[int]) -> list[int]:
    """Return neighbours in a row, those with the same first choice, those with a common expert."""
    found = [0, 0, 0]
    for t in range(len(row) - 1):
        if row[t] == row[t + 1]:
            one, other = expert_index[t], expert_index[t + 1]
            found[0] += 1
            found[1] += one[0] == other[0]
            found[2] += any(expert in other for expert in one)
    return found


def repetition_by_chance(k: int, num_experts: int) -> list[float]:
    """Return the chances of the same first choice and of a common expert."""
    apart = Fraction(math.comb(num_experts - k, k), math.comb(num_experts, k))
    return [float(Fraction(1, num_experts)), float(1 - apart)]


def load_statistics(loads: Sequence[int]) -> dict[str, float]:
    """Return what is told of the experts' loads."""
    size, total = len(loads), sum(loads)
    mean = Fraction(total, size)
    variance = sum(((load - mean) ** 2 for load in loads), Fraction(0)) / size
    entropy = -math.fsum(load / total * math.log(load / total) for load in loads if load)
    differences = sum(abs(one - other) for one in loads for other in loads)
    return {
        "cv": math.sqrt(variance / mean**2),
        "max_over_mean": float(max(loads) / mean),
        "min_over_mean": float(min(loads) / mean),
        "entropy": entropy / math.log(size) if size > 1 else 1.0,
        "effective_experts": math.exp(entropy),
        "gini": float(Fraction(differences, size**2) / (2 * mean)),
        "dead_fraction": sum(load == 0 for load in loads) / size,
    }


def margin_thresholds() -> list[Fraction]:
    """Return the float32 nearest to 2^(c/8 - 24), found in whole numbers: no root is taken."""
    found = []
    for c in range(255):
        octave, eighth = divmod(c, 8)
        # A significand m of 24 bits is nearest to 2^(23 + eighth/8): (2m - 1)^8 is below its
        # eighth power, (2m + 1)^8 above.
        low, high = 2**23, 2**24
        while low < high:
            middle = (low + high) // 2
            if (2 * middle + 1) ** 8 < 2 ** (8 * 24 + eighth):
                low = middle + 1
            else:
                high = middle
        found.append(low * Fraction(2) ** (octave - 24 - 23))
    return found


def margin_codes(margins: Sequence[float]) -> list[int]:
    """Return how many thresholds each margin reaches."""
    thresholds = margin_thresholds()
    return [sum(one <= Fraction(margin) for one in thresholds) for margin in margins]


def near_tie_share(histogram: Sequence[int], *, tolerance: float = 2.0**-7) -> float:
    """Return the part of margins below the tolerance, a threshold: of codes that end there."""
    thresholds = margin_thresholds()
    below = sum(
        number
        for code, number in enumerate(histogram)
        if code < 255 and thresholds[code] <= Fraction(tolerance)
    )
    return float(Fraction(below, sum(histogram)))


def _bits(shares: Sequence[Fraction]) -> float:
    return -math.fsum(float(share) * math.log2(share) for share in shares if share)


def table_divergence(first: Counts, second: Counts) -> float:
    """Return the mean Jensen-Shannon divergence of the ids that both tables have, in bits."""
    terms, weights = [], 0
    for one, other in zip(first, second, strict=True):
        p, q = _shares(one), _shares(other)
        if p is None or q is None:
            continue
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        weight = tokens_of(one) + tokens_of(other)
        terms.append(weight * (_bits(middle) - _bits(p) / 2 - _bits(q) / 2))
        weights += weight
    return math.fsum(terms) / weights if weights else math.nan


def overlap(first: Choices, second: Choices) -> list[list[int]]:
    """Return by pair of experts the sum over ids of the smaller count."""
    experts = range(len(first[0]))
    return [
        [sum(min(a[i], b[j]) for a, b in zip(first, second, strict=True)) for j in experts]
        for i in experts
    ]


def largest_overlaps(first: Choices, second: Choices) -> list[list[int]]:
    """Return every relabelling that adds up to most, of all there are; the unchanged one first."""
    table = overlap(first, second)
    totals: dict[int, list[list[int]]] = {}
    for order in itertools.permutations(range(len(table))):
        total = sum(table[i][j] for i, j in enumerate(order))
        totals.setdefault(total, []).append(list(order))
    return totals[max(totals)]


# ---- drops ---------------------------------------------------------------------------------------


def drop_counts(
    dropped: Sequence[Sequence[bool]], keys: Sequence[int], *, num_keys: int
) -> list[list[int]]:
    """Return tokens, and those whose first, second, any and every choice was dropped, by key."""
    counts = [[0] * 5 for _ in range(num_keys)]
    for token, key in zip(dropped, keys, strict=True):
        if key != -1:
            second = len(token) > 1 and token[1]
            for place, holds in enumerate((True, token[0], second, any(token), all(token))):
                counts[key][place] += bool(holds)
    return counts


def lost_gate_share(gate: Sequence[Sequence[float]], dropped: Sequence[Sequence[bool]]) -> float:
    """Return the gates of dropped choices over the gates of all."""
    lost = total = Fraction(0)
    for gates, drops in zip(gate, dropped, strict=True):
        for one, drop in zip(gates, drops, strict=True):
            total += Fraction(one)
            lost += Fraction(one) if drop else 0
    return float(lost / total)


def replay(
    expert_index: Sequence[Choices],
    *,
    num_experts: int,
    capacity: int,
    priority: str,
    gate: Sequence[Sequence[Sequence[float]]] | None = None,
) -> list[list[list[bool]]]:
    """Return which choices find no slot; an expert of -1 is no choice."""
    answer = []
    for number, group in enumerate(expert_index):
        tokens, ranks = range(len(group)), range(len(group[0]))
        if priority == "tokens":
            order = [(t, rank) for t in tokens for rank in ranks]
        else:
            queue = list(tokens)
            if priority == "gates" and gate is not None:
                first = [gate[number][t][0] for t in tokens]
                queue.sort(key=lambda t: (-first[t], t))
            order = [(t, rank) for rank in ranks for t in queue]
        taken = [0] * num_experts
        dropped = [[False] * len(ranks) for _ in tokens]
        for t, rank in order:
            expert = group[t][rank]
            if expert != -1:
                dropped[t][rank] = taken[expert] >= capacity
                taken[expert] += 1
        answer.append(dropped)
    return answer


# ---- predictors ----------------------------------------------------------------------------------


def _corrected_entropy(cells: Sequence[int]) -> float:
    total, occurring = sum(cells), [cell for cell in cells if cell]
    entropy = -math.fsum(cell / total * math.log(cell / total) for cell in occurring)
    return entropy + (len(occurring) - 1) / (2 * total)


def information(counts: Choices) -> list[float]:
    """Return the mutual information of key and first choice, and the choice's entropy, in nats."""
    choice = _corrected_entropy([sum(column) for column in zip(*counts, strict=True)])
    key = _corrected_entropy([sum(row) for row in counts])
    both = _corrected_entropy([cell for row in counts for cell in row])
    return [choice + key - both, choice]


def held_out_hits(train: Choices, test: Choices) -> list[int]:
    """Return tokens, hits of each key's most frequent expert, hits of the most frequent of all."""
    overall = [sum(column) for column in zip(*train, strict=True)]
    usual = overall.index(max(overall))
    tokens = hits = baseline = 0
    for seen, asked in zip(train, test, strict=True):
        guess = seen.index(max(seen)) if sum(seen) else usual
        tokens += sum(asked)
        hits += asked[guess]
        baseline += asked[usual]
    return [tokens, hits, baseline]


def hits_by_fold(by_fold: Sequence[Choices]) -> list[list[int]]:
    """Return the hits of each fold, guessed from all the others."""
    found = []
    for number, fold in enumerate(by_fold):
        others = [other for place, other in enumerate(by_fold) if place != number]
        train = [
            [sum(other[key][expert] for other in others) for expert in range(len(fold[0]))]
            for key in range(len(fold))
        ]
        found.append(held_out_hits(train, fold))
    return found


def gain_of(tokens: int, hits: int, baseline: int) -> float:
    """Return the part of the baseline's misses that are hits with the key."""
    return float(Fraction(hits - baseline, tokens - baseline))


def explained_by_tokens(
    slice_tokens: Sequence[int], token_counts: Counts, slice_counts: Key
) -> list[float]:
    """Return the shift of a slice, what its ids leave unexplained, and that one's part."""
    own, whole = _shares(slice_counts), _shares(together(token_counts))
    assert own is not None
    assert whole is not None
    expected, total = [Fraction(0)] * len(own), sum(slice_tokens)
    for weight, key in zip(slice_tokens, token_counts, strict=True):
        if weight:
            shares = _shares(key)
            assert shares is not None
            expected = [
                sum_ + Fraction(weight, total) * share
                for sum_, share in zip(expected, shares, strict=True)
            ]
    shift = sum((abs(a - b) for a, b in zip(own, whole, strict=True)), Fraction(0)) / 2
    left = sum((abs(a - b) for a, b in zip(own, expected, strict=True)), Fraction(0)) / 2
    return [float(shift), float(left), float(left / shift) if shift else NONE]


# ---- documents and intervals ---------------------------------------------------------------------


def _words(text: str) -> list[int]:
    digest = hashlib.sha256(text.encode()).digest()
    return [sum(digest[4 * word + byte] * 256**byte for byte in range(4)) for word in range(8)]


def document_fold(document: str, *, folds: int = 8) -> int:
    """Return the fold of a document, which follows from its name."""
    return _words(document)[0] % folds


def poisson_thresholds() -> list[int]:
    """Return floor(2^32 P(Poisson(1) <= m)), m = 0 ... 11, in 50 digits."""
    with localcontext() as context:
        context.prec = 50
        terms = [Decimal(-1).exp() / math.factorial(m) for m in range(12)]
        return [math.floor(2**32 * sum(terms[: m + 1])) for m in range(12)]


def document_weights(document: str, *, replicates: int = 100, seed: int = 0) -> list[int]:
    """Return how often a document counts in each replicate."""
    words: list[int] = []
    number = 0
    while len(words) < replicates:
        words += _words(f"{seed} {number} {document}")
        number += 1
    thresholds = poisson_thresholds()
    return [sum(word >= one for one in thresholds) for word in words[:replicates]]


def _bisected(reaches: object, high: float) -> float:
    assert callable(reaches)
    low = 0.0
    while low < (middle := (low + high) / 2) < high:
        if reaches(middle):
            high = middle
        else:
            low = middle
    return high


def normal_quantile(level: float) -> float:
    """Return z: a normal number is within z of its mean at this level."""
    outside = float(1 - Fraction(level))
    return _bisected(lambda z: math.erfc(z / math.sqrt(2)) <= outside, 40.0)


def _angle(tangent: Decimal) -> Decimal:
    """Return the arctangent: halved ten times, then by its series."""
    for _ in range(10):
        tangent /= 1 + (1 + tangent * tangent).sqrt()
    power, total = tangent, Decimal(0)
    for term in range(12):
        total += power / (2 * term + 1) * (-1) ** term
        power *= tangent * tangent
    return total * 2**10


def _within(t: Decimal, degrees: int) -> Decimal:
    """Return P(|T| <= t) of Student's distribution (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    sine = t / (degrees + t * t).sqrt()
    cosine = (degrees / (degrees + t * t)).sqrt()
    if degrees % 2 == 0:
        total = term = Decimal(1)
        for i in range(2, degrees - 1, 2):
            term *= cosine * cosine * (i - 1) / i
            total += term
        return sine * total
    total = term = cosine if degrees > 1 else Decimal(0)
    for i in range(3, degrees - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    half_turn = 4 * _angle(Decimal(1))
    return 2 / half_turn * (_angle(t / Decimal(degrees).sqrt()) + sine * total)


def student_quantile(level: float, degrees: int) -> float:
    """Return t: a number of Student's distribution is within t of 0 at this level."""
    with localcontext() as context:
        context.prec = 40
        return _bisected(lambda t: _within(Decimal(t), degrees) >= Decimal(level), 1e9)


def _mean(values: Sequence[float]) -> Fraction:
    return sum(map(Fraction, values), Fraction(0)) / len(values)


def _squares(values: Sequence[float]) -> Fraction:
    return sum(((Fraction(one) - _mean(values)) ** 2 for one in values), Fraction(0))


def bootstrap_interval(
    estimate: float, replicates: Sequence[float], *, level: float = 0.95
) -> list[float]:
    """Return the estimate with the normal quantile of the replicates' deviation each side."""
    half = normal_quantile(level) * math.sqrt(_squares(replicates) / (len(replicates) - 1))
    return [estimate - half, estimate + half]


def jackknife_interval(
    estimate: float, left_out: Sequence[float], *, level: float = 0.95
) -> list[float]:
    """Return the estimate with Student's quantile of the jackknife's error each side."""
    folds = len(left_out)
    half = student_quantile(level, folds - 1) * math.sqrt(
        Fraction(folds - 1, folds) * _squares(left_out)
    )
    return [estimate - half, estimate + half]


def held_out_gain(by_fold: Sequence[Choices], *, level: float = 0.95) -> list[float]:
    """Return accuracy, baseline, gain and the gain's interval by leaving out one fold.

    A fold that is left out is neither guessed nor guessed from.
    """
    rows = hits_by_fold(by_fold)
    tokens, hits, baseline = (sum(column) for column in zip(*rows, strict=True))
    left_out = []
    for place in range(len(by_fold)):
        others = [fold for i, fold in enumerate(by_fold) if i != place]
        left_out.append(
            gain_of(*(sum(column) for column in zip(*hits_by_fold(others), strict=True)))
        )
    gain = gain_of(tokens, hits, baseline)
    interval = jackknife_interval(gain, left_out, level=level)
    return [hits / tokens, baseline / tokens, gain, *interval]
