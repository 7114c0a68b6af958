"""Checks of SPEC.md "Attention": rotary positions."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers, strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.strategies import normal
from openmoe_conformance.subject import Subject
from openmoe_reference import attention


def _angles(positions: ndarray, head_dim: int) -> ndarray:
    """Return position / 10000^(2 j / N) in float64."""
    j = np.arange(head_dim // 2)
    return positions[..., None] / 10_000.0 ** (2 * j / head_dim)


def turned(heads: ndarray, positions: ndarray) -> ndarray:
    """Return heads [..., L, H, N] turned in float64, as complex numbers of the pairs (j, j + N/2)."""
    first, second = np.split(heads.astype(np.float64), 2, axis=-1)
    pairs = (first + 1j * second) * np.exp(1j * _angles(positions, heads.shape[-1]))[:, None]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def _tables(_: Profile) -> Iterator[Case]:
    for head_dim in (2, 4, 8, 64):
        yield {"positions": np.arange(64, dtype=np.int32), "head_dim": head_dim, "bound": 1e-5}
        far = np.arange(64, 2048, 31, dtype=np.int32)
        yield {"positions": far, "head_dim": head_dim, "bound": 3e-4}


@check("ATTN-04", "rotary_tables", cases=_tables)
def tables_hold_each_angle_twice(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Sine and cosine of position / 10000^(2 j / N), side by side; far angles lose float32 bits."""
    angles = np.tile(_angles(case["positions"], case["head_dim"]), 2)
    answer = subject.call("rotary_tables", case["positions"], head_dim=case["head_dim"])
    got, wanted = answers.array("rotary_tables", answer), np.stack([np.sin(angles), np.cos(angles)])
    close("sine, cosine", got, wanted, evidence, relative=0, absolute=case["bound"])
    evidence.examples += 1


@st.composite
def _heads(draw: st.DrawFn) -> Case:
    """Draw heads [B, L, H, N], N above 2 among them, and where they stand."""
    shape = draw(st.sampled_from(((1, 5, 1, 2), (2, 4, 3, 4), (1, 6, 2, 8))))
    return {
        "heads": normal(draw(st.integers(0, 2**16)), *shape),
        "positions": draw(strategies.small_integers(shape[1:2], 0, 63)).astype(np.int32),
    }


@check("ATTN-05", "rotate", cases=_heads())
def halves_are_the_pairs(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Element j and element j + N/2 are turned counter-clockwise by the angle of their position."""
    heads, positions = case["heads"], case["positions"]
    got = subject.array("rotate", heads.shape, heads, positions)
    close("rotate", got, turned(heads, positions), evidence, relative=1e-5, absolute=1e-5)


def _cancelling(_: Profile) -> Iterator[Case]:
    # Where cos - sin, or cos + 8 sin, is near 0: what rounding leaves of the tables stands alone.
    positions = np.array([0, 47, 937, 1292, 1647, 2002], np.int32)
    heads = np.ones((1, 6, 1, 2), np.float32)
    heads[0, 1, 0, 1] = -8
    yield {"heads": heads, "positions": positions}


@check("ATTN-05", "rotate", "attention(dtype)", cases=_cancelling)
def tables_are_rounded(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With bfloat16 heads the tables are rounded first; products with powers of 2 stay exact."""
    heads = case["heads"].astype(ml_dtypes.bfloat16)
    sine, cosine = (
        table.astype(ml_dtypes.bfloat16).astype(np.float64)[:, 0]
        for table in attention.rotary_tables(case["positions"], 2)
    )
    wanted = case["heads"][0, :, 0, 0] * cosine - case["heads"][0, :, 0, 1] * sine
    got = subject.array("rotate", heads.shape, heads, case["positions"])[0, :, 0, 0]
    close("rotate(bfloat16)", got, wanted, evidence, relative=2.0**-7)
    evidence.examples += 1
