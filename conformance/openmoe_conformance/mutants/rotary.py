"""Mutants of SPEC.md "Attention": rotary positions."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.exchanging import composed
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect
from openmoe_reference import attention, model


class _Tables(ReferenceAdapter):
    """Tables of other angles."""

    def angles(self, positions: ndarray, head_dim: int) -> ndarray:
        raise NotImplementedError

    def rotary_tables(self, positions: ndarray, *, head_dim: int) -> tuple[ndarray, ndarray]:
        super().rotary_tables(positions, head_dim=head_dim)
        angles = self.angles(positions, head_dim).astype(np.float32)
        return np.sin(angles), np.cos(angles)


def _inverse_timescale(head_dim: int) -> ndarray:
    return 10_000.0 ** (-np.arange(0, head_dim, 2) / head_dim)


@mutant("ATTN-04")
class AnglesStandInPairs(_Tables):
    """Equal angles stand beside one another: a0, a0, a1, a1, ..."""

    def angles(self, positions: ndarray, head_dim: int) -> ndarray:
        return np.repeat(positions[:, None] * _inverse_timescale(head_dim), 2, axis=-1)


@mutant("ATTN-04")
class TheExponentIsHalved(_Tables):
    """Angles are position / 10000^(j / N)."""

    def angles(self, positions: ndarray, head_dim: int) -> ndarray:
        return np.tile(positions[:, None] * _inverse_timescale(head_dim) ** 0.5, 2)


@mutant("ATTN-04")
class PositionsBeginAtOne(_Tables):
    """The first token stands at position 1."""

    def angles(self, positions: ndarray, head_dim: int) -> ndarray:
        return np.tile((positions[:, None] + 1) * _inverse_timescale(head_dim), 2)


@mutant("ATTN-04")
class AnglesAreBfloat16(_Tables):
    """Positions and timescales are multiplied in bfloat16."""

    def angles(self, positions: ndarray, head_dim: int) -> ndarray:
        factors = (positions[:, None], _inverse_timescale(head_dim))
        return np.tile(np.multiply(*(one.astype(ml_dtypes.bfloat16) for one in factors)), 2)


class _Turned(ReferenceAdapter):
    """Heads turned otherwise, alone and in attention."""

    def rotate(self, heads: ndarray, positions: ndarray) -> ndarray:
        raise NotImplementedError

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        return replace(super().rules(dialect), attention=composed(turn=self.rotate))


@mutant("ATTN-05")
class NeighboursAreThePairs(_Turned):
    """Elements 2 j and 2 j + 1 are the pairs."""

    def rotate(self, heads: ndarray, positions: ndarray) -> ndarray:
        order = np.arange(heads.shape[-1]).reshape(-1, 2).T.ravel()  # 0, 2, ..., 1, 3, ...
        turned = attention.rotate(np.ascontiguousarray(heads[..., order]), positions)
        return turned[..., np.argsort(order)]


@mutant("ATTN-05")
class HeadsTurnBackwards(_Turned):
    """[x2, -x1] is multiplied with the sine."""

    def rotate(self, heads: ndarray, positions: ndarray) -> ndarray:
        signs = np.repeat([1, -1], heads.shape[-1] // 2).astype(heads.dtype)
        return signs * attention.rotate(signs * heads, positions)


@mutant("ATTN-05")
class TablesStayFloat32(_Turned):
    """bfloat16 heads are multiplied with float32 tables."""

    def rotate(self, heads: ndarray, positions: ndarray) -> ndarray:
        return attention.rotate(heads.astype(np.float32), positions).astype(heads.dtype)
