"""Mutants of SPEC.md "Attention": mixing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.exchanging import Attention, Exchanged, composed
from openmoe_reference import attention, masks

# ---- logits and bias ---------------------------------------------------------------------------


@mutant("ATTN-07")
class LogitsAreDivided(Exchanged, attention=partial(attention.attention, scale="head_dim")):
    """Logits are divided by sqrt(N), as in any other Transformer."""


def _bias_of(value: float) -> Callable[..., ndarray]:
    def bias(reasons: tuple[ndarray, ...]) -> ndarray:
        return np.where(np.logical_and.reduce(reasons), 0.0, value)

    return bias


@np.errstate(invalid="ignore")
def _attention_of_infinity(*arguments: Any, **options: Any) -> tuple[ndarray, ndarray, ndarray]:
    return attention.attention(*arguments, **options)


@mutant("ATTN-08")
class KeysAreHiddenByInfinity(Exchanged, attention=_attention_of_infinity, bias=_bias_of(-np.inf)):
    """Hidden keys get minus infinity, so a query that sees none gives not-a-number."""


@mutant("ATTN-08")
class KeysAreHiddenByTheLeastFloat(Exchanged, bias=_bias_of(-3e38)):
    """Hidden keys get the least float32."""


@mutant("ATTN-08")
class KeysAreHiddenByOneMilliard(Exchanged, bias=_bias_of(-1e9)):
    """Hidden keys get -1e9."""


def _mix_replaced(
    queries: ndarray, keys: ndarray, values: ndarray, bias: ndarray | None
) -> ndarray:
    logits = np.einsum("bqhn,blhn->bhql", queries, keys)
    if bias is not None:
        logits = np.where(bias[:, None] < 0, np.float32(masks.MASKED), logits)
    return np.einsum("bhql,blhn->bqhn", _softmax(logits, axis=-1), values)


def _softmax(logits: ndarray, *, axis: int) -> ndarray:
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


@mutant("ATTN-08")
class LogitsAreReplaced(Exchanged, attention=composed(mix=_mix_replaced)):
    """The logit of a hidden key becomes -1e10 instead of growing smaller by it."""


@mutant("ATTN-09")
class TheBiasIsSmall(Exchanged, bias=_bias_of(-1e4)):
    """Hidden keys get -1e4, which leaves a blind query its preferences."""


def _zeros_for_the_blind(
    inputs: ndarray, kernels: Mapping[str, ndarray], bias: ndarray | None, **options: Any
) -> tuple[ndarray, ndarray, ndarray]:
    output, keys, values = attention.attention(inputs, kernels, bias, **options)
    if bias is not None:
        output = output * (bias == 0).any(axis=-1)[..., None].astype(output.dtype)
    return output, keys, values


@mutant("ATTN-09")
class BlindQueriesGiveZeros(Exchanged, attention=_zeros_for_the_blind):
    """A query that sees no key gives zeros, as kernels with a safe softmax do."""


def _past_bias(reasons: tuple[ndarray, ...]) -> ndarray:
    seen = np.logical_and.reduce(reasons)
    past = np.tri(seen.shape[1], seen.shape[2]) > 0
    blind = ~seen.any(axis=-1, keepdims=True)
    return np.where(seen, 0.0, np.where(blind & past, masks.MASKED, 2 * masks.MASKED))


@mutant("ATTN-09")
class BlindQueriesSeeThePast(Exchanged, bias=_past_bias):
    """A query that sees no key attends to all keys that do not stand after it."""


# ---- bfloat16 ----------------------------------------------------------------------------------


def _mix_in_float32(
    queries: ndarray, keys: ndarray, values: ndarray, bias: ndarray | None
) -> ndarray:
    q, k, v = (one.astype(np.float32) for one in (queries, keys, values))
    return attention.attend(q, k, v, bias).astype(queries.dtype)


@mutant("ATTN-10")
class LogitsAreFloat32(Exchanged, attention=composed(mix=_mix_in_float32)):
    """Under bfloat16 logits and softmax are float32."""


def _mix_in_bfloat16(
    queries: ndarray, keys: ndarray, values: ndarray, bias: ndarray | None
) -> ndarray:
    if queries.dtype != ml_dtypes.bfloat16:
        return attention.attend(queries, keys, values, bias)
    logits = np.einsum("bqhn,blhn->bhql", *(one.astype(np.float32) for one in (queries, keys)))
    logits = logits.astype(queries.dtype)
    if bias is not None:
        logits = logits + bias[:, None].astype(queries.dtype)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    sums = np.add.accumulate(weights, axis=-1, dtype=queries.dtype)[..., -1:]
    shares = (weights / sums).astype(np.float32)
    return np.einsum("bhql,blhn->bqhn", shares, values.astype(np.float32)).astype(queries.dtype)


@mutant("ATTN-10")
class SumsAreBfloat16(Exchanged, attention=composed(mix=_mix_in_bfloat16)):
    """The sum of a bfloat16 softmax is accumulated in bfloat16 and stands still at 256."""


# ---- heads -------------------------------------------------------------------------------------


@mutant("ATTN-11")
class ValuesAreRotated(Exchanged, attention=composed(turn_values=attention.rotate)):
    """Values are rotated like keys."""


@mutant("ATTN-11")
class KeysAreNotRotated(Exchanged, attention=composed(turn_keys=lambda heads, _: heads)):
    """Only queries are rotated: keys were taken from a cache that holds none rotated."""


def _mix_over_queries(
    queries: ndarray, keys: ndarray, values: ndarray, bias: ndarray | None
) -> ndarray:
    logits = np.einsum("bqhn,blhn->bhql", queries, keys)
    if bias is not None:
        logits = logits + bias[:, None].astype(logits.dtype)
    return np.einsum("bhql,blhn->bqhn", _softmax(logits, axis=-2), values)


@mutant("ATTN-11")
class TheSoftmaxIsOverQueries(Exchanged, attention=composed(mix=_mix_over_queries)):
    """Weights of a key add up to 1 over the queries."""


def _of_other_kernels(change: Callable[[str, ndarray, int], ndarray]) -> Attention:
    def run(
        inputs: ndarray, kernels: Mapping[str, ndarray], *arguments: Any, **options: Any
    ) -> tuple[ndarray, ndarray, ndarray]:
        heads = options["num_heads"]
        changed = {name: change(name, kernel, heads) for name, kernel in kernels.items()}
        return attention.attention(inputs, changed, *arguments, **options)

    return run


def _transposed_heads(name: str, kernel: ndarray, heads: int) -> ndarray:
    if name == "out":
        return kernel
    return kernel.reshape(len(kernel), -1, heads).swapaxes(1, 2).reshape(kernel.shape)


@mutant("ATTN-11")
class HeadsAreTransposed(Exchanged, attention=_of_other_kernels(_transposed_heads)):
    """Queries, keys and values are read as [N, H]: heads are interleaved."""


def _last_head_first(name: str, kernel: ndarray, heads: int) -> ndarray:
    if name == "out":
        return kernel
    return kernel.reshape(len(kernel), heads, -1)[:, ::-1].reshape(kernel.shape)


@mutant("ATTN-11")
class TheLastHeadIsFirst(Exchanged, attention=_of_other_kernels(_last_head_first)):
    """Heads come out in the reverse order."""


def _square_turned(name: str, kernel: ndarray, _: int) -> ndarray:
    square = name == "out" and kernel.shape[0] == kernel.shape[1]
    return np.ascontiguousarray(kernel.T) if square else kernel


@mutant("ATTN-11")
class ASquareOutputIsTransposed(Exchanged, attention=_of_other_kernels(_square_turned)):
    """Where H N = D the output kernel is used transposed: a loader that only checks shapes."""
