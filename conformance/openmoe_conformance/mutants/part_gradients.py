"""Mutants of SPEC.md "Layers" and "Attention": gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Tree
from openmoe_reference import attention, layers, masks

Gradients = dict[str, ndarray]


class _PartGradients(ReferenceAdapter):
    """Gradients of one part changed."""

    part: str

    def change(
        self,
        found: Gradients,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        **options: Any,
    ) -> Gradients:
        raise NotImplementedError

    def part_gradients(
        self, part: str, inputs: ndarray, parameters: Tree, cotangent: ndarray, **options: Any
    ) -> Gradients:
        found = super().part_gradients(part, inputs, parameters, cotangent, **options)
        if part != self.part:
            return found
        return found | self.change(found, inputs, parameters, cotangent, **options)


@mutant("LAYER-09")
class TheMeanCarriesNoGradient(_PartGradients):
    """The root mean square of a norm is held constant."""

    part = "rms_norm"

    def change(
        self,
        found: Gradients,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        **options: Any,
    ) -> Gradients:
        mean_square = np.square(inputs.astype(np.float64)).mean(axis=-1, keepdims=True)
        inverse = 1 / np.sqrt(mean_square + layers.EPSILON)
        return {"inputs": cotangent * parameters["scale"] * inverse}


@mutant("LAYER-09")
class TheStartTokenIsNotTrained(_PartGradients):
    """The embedding of id 0 gets no gradient, as a padding index has it."""

    part = "embed"

    def change(
        self,
        found: Gradients,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        **options: Any,
    ) -> Gradients:
        return {"table": found["table"] * (np.arange(len(found["table"])) > 0)[:, None]}


@mutant("LAYER-09")
class TheLastOccurrenceCounts(_PartGradients):
    """Gradients of a repeated id overwrite one another."""

    part = "embed"

    def change(
        self,
        found: Gradients,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        **options: Any,
    ) -> Gradients:
        table = np.zeros_like(found["table"])
        table[inputs] = cotangent
        return {"table": table}


def _query_gradient(
    inputs: ndarray,
    kernels: Tree,
    cotangent: ndarray,
    *,
    mask: ndarray | None,
    num_heads: int,
    inner: bool = True,
    undo: bool = True,
) -> ndarray:
    """Return the gradient of the query kernel without the softmax's inner term or the way back."""
    rows, length, _ = inputs.shape
    x, places = inputs.astype(np.float64), np.arange(length)
    joined = {name: x @ kernels[name] for name in ("query", "key", "value")}
    joined["cotangent"] = cotangent @ kernels["out"].astype(np.float64).T
    heads = {name: one.reshape(rows, length, num_heads, -1) for name, one in joined.items()}
    q, k = (attention.rotate(heads[name], places) for name in ("query", "key"))
    logits = np.einsum("bqhn,blhn->bhql", q, k)
    if mask is not None:
        logits = logits + 2.0**29 * masks.finite_bias((mask,))[:, None]
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    d_p = np.einsum("bqhn,blhn->bhql", heads["cotangent"], heads["value"])
    d_logits = p * (d_p - inner * (p * d_p).sum(axis=-1, keepdims=True))
    d_q = np.einsum("bhql,blhn->bqhn", d_logits, k)
    if undo:
        signs = np.repeat([1.0, -1.0], d_q.shape[-1] // 2)
        d_q = signs * attention.rotate(signs * d_q, places)
    return np.einsum("bld,blf->df", x, d_q.reshape(rows, length, -1))


@mutant("ATTN-13")
class TheSoftmaxLacksItsInnerTerm(_PartGradients):
    """The sum of a softmax is held constant: p x d instead of p x (d - sum p d)."""

    part = "attention"

    def change(
        self,
        found: Gradients,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        **options: Any,
    ) -> Gradients:
        return {"query": _query_gradient(inputs, parameters, cotangent, inner=False, **options)}


@mutant("ATTN-13")
class RotationIsNotUndone(_PartGradients):
    """Gradients of queries are not turned back."""

    part = "attention"

    def change(
        self,
        found: Gradients,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        **options: Any,
    ) -> Gradients:
        return {"query": _query_gradient(inputs, parameters, cotangent, undo=False, **options)}


@mutant("ATTN-13")
class BlindQueriesCarryNoGradient(ReferenceAdapter):
    """Nothing is sent back through a query that sees no key."""

    def part_gradients(
        self, part: str, inputs: ndarray, parameters: Tree, cotangent: ndarray, **options: Any
    ) -> Gradients:
        mask = options.get("mask")
        if mask is not None:
            cotangent = cotangent * mask.any(axis=-1)[..., None].astype(cotangent.dtype)
        return super().part_gradients(part, inputs, parameters, cotangent, **options)
