"""SQL that derives figures from a trace, with the numbers that the tables give.

Layers are numbers of sparse layers, 0, 1, ...; views and columns are those of `querying`. Whole numbers stay
whole until the last division, so that nothing depends on the order in which rows are added.
"""
# ruff: noqa: S608 - only whole numbers and checked names go into the text

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import index

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_reference.audit_measures import MARGIN_THRESHOLDS, NEAR_TIE
from openmoe_tools.audit.trace.columns import RULE


def _rule(rule: str) -> str:
    if not RULE.fullmatch(rule):
        raise UsageError(f"rule {rule!r}: is no name of a capacity rule")
    return rule


def slice_shares(layer: int) -> str:
    """Return SQL for each slice's share of each expert: figures 5 to 8."""
    return _shares("slice", layer)


def token_shares(layer: int, token: int) -> str:
    """Return SQL for the share of each expert in the choices of one id: figure 10."""
    return _shares("token", layer, f" AND token = {index(token)}")


def position_shares(layer: int) -> str:
    """Return SQL for each position's share of each expert: figure 9."""
    return _shares("position", layer)


def _shares(key: str, layer: int, condition: str = "") -> str:
    return f"""\
WITH counted AS (
  SELECT {key}, expert, count(*) AS chosen
  FROM choices WHERE layer = {index(layer)}{condition} GROUP BY ALL
)
SELECT {key}, expert, chosen, chosen / sum(chosen) OVER (PARTITION BY {key}) AS share
FROM counted ORDER BY {key}, expert"""


def token_spread(layer: int, least: int = 128) -> str:
    """Return SQL for the spread of each id with more than `least` tokens over the experts: figure 14."""
    return _spread("token", layer, least)


def position_spread(layer: int, least: int = 0) -> str:
    """Return SQL for the spread of each position over the experts: figure 13."""
    return _spread("position", layer, least)


def _spread(key: str, layer: int, least: int) -> str:
    # Experts without a choice add nothing to the sum of squares; their share counts in the mean, 1 / E.
    return f"""\
WITH counted AS (
  SELECT {key}, expert, count(*) AS chosen
  FROM choices WHERE layer = {index(layer)} GROUP BY ALL
), summed AS (
  SELECT {key}, sum(chosen)::BIGINT AS total, sum(chosen::HUGEINT * chosen) AS squares
  FROM counted GROUP BY ALL
)
SELECT {key}, total // choices AS tokens,
  sqrt(greatest(experts * squares - total::HUGEINT * total, 0)) / (experts * total) AS spread
FROM summed, sizes WHERE total // choices > {index(least)} ORDER BY tokens DESC, {key}"""


def load(layer: int) -> str:
    """Return SQL for the choices that each expert has, and by its place among a token's choices."""
    return f"""\
SELECT expert, rank, count(*) AS chosen
FROM choices WHERE layer = {index(layer)} GROUP BY ALL ORDER BY expert, rank"""


def drop_by_position(rule: str, layer: int) -> str:
    """Return SQL for tokens, and those without a slot for the first, second, any, every choice: figure 12."""
    return _drops("slice, position", rule, layer)


def drop_by_document(rule: str, layer: int) -> str:
    """Return SQL for the same by document; `documents` has the names."""
    return _drops("document", rule, layer)


def _drops(keys: str, rule: str, layer: int) -> str:
    dropped = f"dropped_{_rule(rule)}"
    return f"""\
SELECT {keys}, count(*) AS tokens,
  count(*) FILTER ({dropped}[1]) AS "first",
  count(*) FILTER ({dropped}[2]) AS "second",
  count(*) FILTER (list_bool_or({dropped})) AS "any",
  count(*) FILTER (list_bool_and({dropped})) AS "all"
FROM decisions WHERE layer = {index(layer)} GROUP BY ALL ORDER BY {keys}"""


def coactivation(layer: int) -> str:
    """Return SQL for how many tokens chose both of two experts."""
    return f"""\
WITH together AS (
  SELECT experts, count(*) AS tokens FROM decisions WHERE layer = {index(layer)} GROUP BY ALL
), first AS (
  SELECT experts, unnest(experts) AS expert, tokens FROM together
), pairs AS (
  SELECT expert, unnest(experts) AS other, tokens FROM first
)
SELECT expert, other, sum(tokens)::BIGINT AS tokens
FROM pairs WHERE expert <> other GROUP BY ALL ORDER BY expert, other"""


def top_tokens(layer: int, expert: int, number: int = 10) -> str:
    """Return SQL for the ids that an expert is chosen by most, among equals the lower: tables 9 and 15."""
    return f"""\
SELECT token, count(*) AS chosen
FROM choices WHERE layer = {index(layer)} AND expert = {index(expert)}
GROUP BY ALL ORDER BY chosen DESC, token LIMIT {index(number)}"""


def repetition(layer: int) -> str:
    """Return SQL for neighbours, those with the same first choice, and those with an expert in common."""
    return f"""\
WITH pairs AS (
  SELECT slice, experts,
    lag(experts) OVER (PARTITION BY "row" ORDER BY position) AS before
  FROM decisions WHERE layer = {index(layer)}
)
SELECT slice, count(*) AS pairs,
  count(*) FILTER (before[1] = experts[1]) AS "first",
  count(*) FILTER (list_has_any(before, experts)) AS meeting
FROM pairs WHERE before IS NOT NULL GROUP BY ALL ORDER BY slice"""


def transition(layer: int) -> str:
    """Return SQL for how often a first choice is followed by another, of neighbours in a row."""
    return f"""\
WITH pairs AS (
  SELECT expert, lead(expert) OVER (PARTITION BY "row" ORDER BY position) AS next
  FROM choices WHERE layer = {index(layer)} AND rank = 0
)
SELECT expert, next, count(*) AS pairs
FROM pairs WHERE next IS NOT NULL GROUP BY ALL ORDER BY expert, next"""


def cross_layer(layer: int, other: int | None = None) -> str:
    """Return SQL for how many tokens chose an expert in one layer and another in a second, in all ranks.

    other  None: the layer before; of the first, the one behind
    """
    second = (index(layer) - 1 if layer else 1) if other is None else index(other)
    above, below = sorted((index(layer), second))
    return f"""\
WITH together AS (
  SELECT a.experts AS above, b.experts AS below, count(*) AS tokens
  FROM (SELECT "row", position, experts FROM decisions WHERE layer = {above}) AS a
  JOIN (SELECT "row", position, experts FROM decisions WHERE layer = {below}) AS b
  USING ("row", position) GROUP BY ALL
), first AS (
  SELECT unnest(above) AS expert, below, tokens FROM together
), pairs AS (
  SELECT expert, unnest(below) AS other, tokens FROM first
)
SELECT expert, other, sum(tokens)::BIGINT AS tokens
FROM pairs GROUP BY ALL ORDER BY expert, other"""


def margins(layer: int) -> str:
    """Return SQL for tokens by the code of the margin between choices K and K + 1."""
    return f"""\
SELECT slice, margin AS code, count(*) AS tokens
FROM decisions WHERE layer = {index(layer)} GROUP BY ALL ORDER BY slice, code"""


_NEAR = int(np.searchsorted(MARGIN_THRESHOLDS, np.float32(NEAR_TIE), side="right"))
"""The first code that is no near tie."""


def near_ties(layer: int) -> str:
    """Return SQL for the part of tokens whose last choice is within 2^-7 of the next expert's logit."""
    return f"""\
SELECT slice, count(*) AS tokens, count(*) FILTER (margin < {_NEAR}) AS near,
  count(*) FILTER (margin < {_NEAR}) / count(*) AS share
FROM decisions WHERE layer = {index(layer)} GROUP BY ALL ORDER BY slice"""


QUERIES: Mapping[str, Callable[..., str]] = {
    one.__name__: one
    for one in (
        slice_shares,
        token_shares,
        position_shares,
        token_spread,
        position_spread,
        load,
        drop_by_position,
        drop_by_document,
        coactivation,
        top_tokens,
        repetition,
        transition,
        cross_layer,
        margins,
        near_ties,
    )
} | {"slice_radar": slice_shares}
"""SQL by name; each takes the layer, and some a rule, an expert, an id."""
