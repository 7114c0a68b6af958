"""Whole models none of whose choices is close: where no decision can be forced, none may flip.

Decoding and accumulated gradients show no decisions. They are compared on cases whose choices hang
on gaps that no float32 arithmetic closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.checks import Case
from openmoe_conformance.profile import Profile
from openmoe_conformance.reference_training_adapter import ReferenceTrainingAdapter
from openmoe_reference import model
from openmoe_spec.records import LayerResult

CLEAR = 1e-3
"""Gap in logits that counts as clear; a float32 model's logits err by less than 3e-5."""


class Oracle(ReferenceTrainingAdapter):
    """The reference, which notes the least gap that a choice of an expert or a token hung on."""

    def __init__(self) -> None:
        self.least_gap = np.inf

    @property
    def is_clear(self) -> bool:
        """Return whether every choice so far was clear."""
        return bool(self.least_gap > CLEAR)

    def rules(self, dialect: str | Mapping[str, str] | None = None) -> model.Rules:
        rules = super().rules(dialect)

        def listening(x: ndarray, weights: Mapping[str, ndarray], **options: Any) -> LayerResult:
            result = rules.moe(x, weights, **options)
            assert result.logits is not None
            # A masked row is exactly zero in any arithmetic: its tie is no near tie.
            self._note(result.logits[(result.logits != 0).any(axis=-1)], options["k"])
            return result

        return replace(rules, moe=listening)

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        drawn = options["noise"]
        self._note(logits if drawn is None else logits / options["temperature"] + drawn, 1)
        return super().sample(logits, **options)

    def _note(self, values: ndarray, chosen: int) -> None:
        ranked = -np.sort(-values, axis=-1)[:, : chosen + 1]
        self.least_gap = min(self.least_gap, -np.diff(ranked, axis=-1).max(initial=-np.inf))


def clear_cases(
    *worlds: Case, is_clear: Callable[[Case], bool]
) -> Callable[[Profile], Iterator[Case]]:
    """Return cases of the worlds in turn, as many as a profile has models, each clear.

    A case takes the first seed at which `is_clear` holds; seeds are sought once in a process.
    """

    @cache
    def found(models: int) -> tuple[Case, ...]:
        return tuple(
            _with_clear_seed(worlds[number % len(worlds)] | {"seed": 100 * number}, is_clear)
            for number in range(models)
        )

    return lambda profile: iter(found(profile.models))


def _with_clear_seed(case: Case, is_clear: Callable[[Case], bool]) -> Case:
    tried = (case | {"seed": case["seed"] + i} for i in range(1000))
    return next(one for one in tried if is_clear(one))
