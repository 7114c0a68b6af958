"""Mutants of SPEC.md "Decoding": choosing a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import sampling

AMONG_LARGEST, AMONG_MASS = sampling.among_largest, sampling.among_mass
"""The reference's own, for mutants that put another in their place."""


class _Exchanged(ReferenceAdapter):
    """Sampling with names of the reference's module exchanged while it runs."""

    def exchanged(self) -> dict[str, Any]:
        raise NotImplementedError

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        with patch.multiple(sampling, **self.exchanged()):
            return super().sample(logits, **options)


# ---- greedy ------------------------------------------------------------------------------------


def _is_greedy(options: Mapping[str, Any]) -> bool:
    return bool(options.get("temperature", 1.0) <= sampling.LEAST_TEMPERATURE)


@mutant("DEC-08")
class LastOfEquals(ReferenceAdapter):
    """Of equal logits the highest id is taken."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        found = super().sample(logits, **options)
        if _is_greedy(options):
            return logits.shape[1] - 1 - logits[:, ::-1].argmax(axis=-1)
        return found


@mutant("DEC-08")
class OnlyZeroIsGreedy(_Exchanged):
    """A temperature of 1e-4 samples."""

    def exchanged(self) -> dict[str, Any]:
        return {"LEAST_TEMPERATURE": 0.0}

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        noise = options.get("noise")
        return super().sample(
            logits, **options | {"noise": np.zeros_like(logits) if noise is None else noise}
        )


@mutant("DEC-08")
class GreedyUpToAThousandth(_Exchanged):
    """The limit is 1e-3."""

    def exchanged(self) -> dict[str, Any]:
        return {"LEAST_TEMPERATURE": 1e-3}


@mutant("DEC-08")
class GreedyHearsNoise(ReferenceAdapter):
    """Noise is added at a temperature of 0 too."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        noise = options.get("noise")
        if _is_greedy(options) and noise is not None:
            return super().sample(logits + noise, **options)
        return super().sample(logits, **options)


# ---- noise and cuts ----------------------------------------------------------------------------


@mutant("DEC-11")
class NoiseIsIgnored(ReferenceAdapter):
    """The largest logit wins at any temperature."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        noise = options.get("noise")
        silent = {} if noise is None else {"noise": np.zeros_like(noise)}
        return super().sample(logits, **options | silent)


@mutant("DEC-11")
class TemperatureMultiplies(ReferenceAdapter):
    """Logits are multiplied by the temperature."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        if _is_greedy(options):
            return super().sample(logits, **options)
        inverse = 1 / options.get("temperature", 1.0)
        return super().sample(logits, **options | {"temperature": inverse})


@mutant("DEC-11")
class NoiseIsDividedToo(ReferenceAdapter):
    """The sum of logit and noise is divided by the temperature."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        noise = options.get("noise")
        if _is_greedy(options) or noise is None:
            return super().sample(logits, **options)
        divided = noise / np.float32(options.get("temperature", 1.0))
        return super().sample(logits, **options | {"noise": divided})


@mutant("DEC-11")
class EveryStepHearsTheFirstNoise(ReferenceAdapter):
    """Generation draws with the noise of its first step again and again."""

    def generate(self, *arguments: Any, noise: ndarray | None = None, **options: Any) -> ndarray:
        first = None if noise is None else np.repeat(noise[:, :1], noise.shape[1], axis=1)
        return super().generate(*arguments, noise=first, **options)


@mutant("DEC-12")
class ExactlyK(_Exchanged):
    """Of equals of the k-th largest those with the lowest ids stay, K in all."""

    def exchanged(self) -> dict[str, Any]:
        def among_largest(logits: ndarray, count: int) -> ndarray:
            best = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
            cut = np.full_like(logits, sampling.HIDDEN)
            np.put_along_axis(cut, best, np.take_along_axis(logits, best, axis=-1), axis=-1)
            return cut

        return {"among_largest": among_largest}


@mutant("DEC-12")
class OneMoreThanK(_Exchanged):
    """The K + 1 largest stay."""

    def exchanged(self) -> dict[str, Any]:
        def among_largest(logits: ndarray, count: int) -> ndarray:
            return AMONG_LARGEST(logits, min(count + 1, logits.shape[1]))

        return {"among_largest": among_largest}


@mutant("DEC-12")
class NoiseBeforeTheCut(ReferenceAdapter):
    """top_k cuts what the noise has been added to already."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        found = super().sample(logits, **options)
        if options.get("top_k", 0) and not _is_greedy(options):
            return super().sample(logits, **options | {"top_k": 0})
        return found


@mutant("DEC-13")
class MassMustBeExceeded(_Exchanged):
    """The mass must be more than top_p."""

    def exchanged(self) -> dict[str, Any]:
        def among_mass(logits: ndarray, mass: float) -> ndarray:
            return AMONG_MASS(logits, float(np.nextafter(np.float32(mass), np.float32(2))))

        return {"among_mass": among_mass}


@mutant("DEC-13")
class LastOneIsLeftOut(_Exchanged):
    """The token that reaches the mass is hidden, unless it is the first."""

    def exchanged(self) -> dict[str, Any]:
        def among_mass(logits: ndarray, mass: float) -> ndarray:
            p = np.exp(logits - logits.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            ordered = -np.sort(-p, axis=-1)
            count = np.maximum((ordered.cumsum(axis=-1) <= mass).sum(axis=-1), 1)
            least = np.take_along_axis(ordered, count[:, None] - 1, axis=-1)
            return np.where(p >= least, logits, logits.dtype.type(sampling.HIDDEN))

        return {"among_mass": among_mass}


@mutant("DEC-13")
class EqualsAreHidden(_Exchanged):
    """Of equals of the least probable token only those that are needed stay."""

    def exchanged(self) -> dict[str, Any]:
        def among_mass(logits: ndarray, mass: float) -> ndarray:
            p = np.exp(logits - logits.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            order = np.argsort(-p, axis=-1, kind="stable")
            before = np.take_along_axis(p, order, axis=-1).cumsum(axis=-1)
            before = np.pad(before, ((0, 0), (1, 0)))[:, :-1]
            stays = np.empty(p.shape, bool)
            np.put_along_axis(stays, order, before < mass, axis=-1)
            return np.where(stays, logits, logits.dtype.type(sampling.HIDDEN))

        return {"among_mass": among_mass}


@mutant("DEC-13")
class MassBeforeTheTemperature(ReferenceAdapter):
    """top_p cuts by the probabilities at temperature 1."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        found, mass = super().sample(logits, **options), options.get("top_p", 0.0)
        if _is_greedy(options) or not mass:
            return found
        temperature = np.float32(options.get("temperature", 1.0))
        hidden = AMONG_MASS(logits, mass) == sampling.HIDDEN
        total = np.where(hidden, np.float32(sampling.HIDDEN), logits / temperature)
        return (total + options["noise"]).argmax(axis=-1)


@mutant("DEC-13")
class MassIsIgnored(ReferenceAdapter):
    """top_p is checked and forgotten."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        super().sample(logits, **options)
        return super().sample(logits, **options | {"top_p": 0.0})


# ---- what must be rejected ---------------------------------------------------------------------


@mutant("DEC-10")
class NotANumberIsATokenToo(ReferenceAdapter):
    """Logits that are not finite go into the choice as they are."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        if np.isfinite(logits).all():
            return super().sample(logits, **options)
        return logits.argmax(axis=-1)


@mutant("DEC-10")
class OptionsAreClipped(ReferenceAdapter):
    """Options outside their ranges are moved to their nearest ends."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        legal = {"temperature": (0.0, 100.0), "top_k": (0, logits.shape[1]), "top_p": (0.0, 1.0)}
        for name, (least, most) in legal.items():
            if name in options:
                options[name] = min(max(options[name], least), most)
        return super().sample(logits, **options)


@mutant("DEC-10")
class BothCutsAreMade(ReferenceAdapter):
    """With both cuts top_p wins in silence."""

    def sample(self, logits: ndarray, **options: Any) -> ndarray:
        if options.get("top_k") and options.get("top_p"):
            options["top_k"] = 0
        return super().sample(logits, **options)
