"""Mutants of SPEC.md "The model"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.exchanging import Exchanged
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect, Fields, Tree
from openmoe_reference import dialects, feed_forward, grouping, layers, model, moe
from openmoe_reference.dtypes import DTYPES
from openmoe_spec.records import ForwardResult, LayerResult

EMBEDDING = "token_embedder/embedding"
HEAD = "decoder/logits_dense/kernel"


class Norms(ReferenceAdapter):
    """A model whose norms know which tensor they scale with."""

    def normed(self, name: str, x: ndarray, scale: ndarray, dtype: str) -> ndarray:
        raise NotImplementedError

    def forward(self, parameters: Tree, batch: Tree, **options: Any) -> ForwardResult:
        self.names = {id(value): name for name, value in parameters.items()}
        return super().forward(parameters, batch, **options)

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        def norm(x: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
            return self.normed(self.names[id(scale)], x, scale, dtype)

        return replace(super().rules(dialect), norm=norm)


class Steps(ReferenceAdapter):
    """A sparse layer with other steps: `class Wrong(Steps, capacity=wrong)`."""

    _steps: Mapping[str, Callable[..., Any]] = MappingProxyType({})

    def __init_subclass__(cls, **steps: Callable[..., Any]) -> None:
        super().__init_subclass__()
        cls._steps = steps

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        steps = replace(dialects.steps(), **self._steps)  # type: ignore[arg-type]
        return replace(super().rules(dialect), moe=partial(moe.moe_layer, steps=steps))


# ---- the whole -----------------------------------------------------------------------------


@mutant("MODEL-01")
class FinalNormIsMissing(Norms):
    """The residual stream is projected without a last norm."""

    def normed(self, name: str, x: ndarray, scale: ndarray, dtype: str) -> ndarray:
        if name == "decoder/decoder_norm/scale":
            return x.astype(DTYPES[dtype])
        return layers.rms_norm(x, scale, dtype=dtype)


@mutant("MODEL-01")
class HeadIsTied(ReferenceAdapter):
    """The output projection is the embedding transposed."""

    def forward(self, parameters: Tree, batch: Tree, **options: Any) -> ForwardResult:
        tied = {**parameters, HEAD: np.ascontiguousarray(parameters[EMBEDDING].T)}
        return super().forward(tied, batch, **options)


def _scaled(table: ndarray, ids: ndarray, **options: Any) -> ndarray:
    root = np.float32(np.sqrt(table.shape[1]))
    return layers.embed((table * root).astype(table.dtype), ids, **options)


@mutant("MODEL-01")
class EmbeddingIsScaled(Exchanged, embed=_scaled):
    """Embeddings are multiplied by sqrt(D), as in T5's relatives."""


@mutant("MODEL-01")
class SparseLayersAreExchanged(ReferenceAdapter):
    """Sparse layers take their weights from the last to the first."""

    def forward(
        self, parameters: Tree, batch: Tree, *, configuration: Fields, **options: Any
    ) -> ForwardResult:
        count, sparse = configuration["num_layers"], configuration["num_moe_layers"]
        places = self.sparse_layers(count, sparse)
        other = {f"layers_{a}": f"layers_{b}" for a, b in zip(places, places[::-1], strict=True)}
        turned = {
            "/".join(other.get(part, part) for part in name.split("/")): value
            for name, value in parameters.items()
        }
        return super().forward(turned, batch, configuration=configuration, **options)


def _unmasked(x: ndarray, kernel: ndarray, **options: Any) -> ndarray:
    return layers.output_logits(x, kernel, **options | {"mask": None})


@mutant("MODEL-01")
class LogitsAreNotMasked(Exchanged, output_logits=_unmasked):
    """The projection reads the last norm as it is, without the token mask."""


def _masked_embedding(table: ndarray, ids: ndarray, **options: Any) -> ndarray:
    x = layers.embed(table, ids, **options)
    return x * layers.token_mask(ids)[..., None].astype(x.dtype)


@mutant("MODEL-01")
class ResidualStreamIsMasked(Exchanged, embed=_masked_embedding):
    """The mask multiplies what is embedded, too, and not only what sublayers read."""


# ---- dense layers --------------------------------------------------------------------------


@mutant("MODEL-02")
class DenseLayersAreParallel(Norms):
    """The feed-forward of a dense layer reads what the attention reads, not what it added."""

    def normed(self, name: str, x: ndarray, scale: ndarray, dtype: str) -> ndarray:
        if name.endswith("pre_self_attention_layer_norm/scale"):
            self.before = x
        dense = name.replace("pre_mlp_layer_norm/scale", "mlp/wo/kernel")
        if dense != name and dense in self.names.values():
            x = self.before
        return layers.rms_norm(x, scale, dtype=dtype)


@mutant("MODEL-02")
class NormsStandBehind(Norms):
    """Sublayers read the residual stream as it is, and their outputs are normed."""

    def normed(self, name: str, x: ndarray, scale: ndarray, dtype: str) -> ndarray:
        self.scale = scale
        if name == "decoder/decoder_norm/scale":
            return layers.rms_norm(x, scale, dtype=dtype)
        return x.astype(DTYPES[dtype])

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        rules = super().rules(dialect)

        def attention(*arguments: Any, dtype: str, **options: Any) -> Any:
            output, keys, values = rules.attention(*arguments, dtype=dtype, **options)
            return layers.rms_norm(output, self.scale, dtype=dtype), keys, values

        def mlp(*arguments: Any, dtype: str, **options: Any) -> ndarray:
            output = rules.feed_forward(*arguments, dtype=dtype, **options)
            return layers.rms_norm(output, self.scale, dtype=dtype)

        return replace(rules, attention=attention, feed_forward=mlp)


@mutant("MODEL-02")
class OneNormADenseLayer(Norms):
    """The feed-forward is normed with the scale of the attention's norm."""

    def normed(self, name: str, x: ndarray, scale: ndarray, dtype: str) -> ndarray:
        if name.endswith("pre_self_attention_layer_norm/scale"):
            self.first = scale
        if name.endswith("pre_mlp_layer_norm/scale"):
            scale = self.first
        return layers.rms_norm(x, scale, dtype=dtype)


# ---- sparse layers -------------------------------------------------------------------------


@mutant("MODEL-03")
class ExtraFeedForwardIsParallel(Exchanged, sparse_block=model.parallel_block):
    """Experts and extra feed-forward read one normed input, as the paper's equation 4 has it."""


def _one_norm(x: ndarray, **part: model.Sublayer) -> tuple[ndarray, ndarray]:
    after = x + part["experts"](part["mlp_norm"](x))
    return after, after + part["extra_mlp"](part["mlp_norm"](after))


@mutant("MODEL-03")
class ExtraNormIsShared(Exchanged, sparse_block=_one_norm):
    """The extra feed-forward is normed with the scale of the experts' norm."""


def _experts_alone(x: ndarray, **part: model.Sublayer) -> tuple[ndarray, ndarray]:
    after = x + part["experts"](part["mlp_norm"](x))
    return after, after


@mutant("MODEL-03")
class ExtraFeedForwardIsMissing(Exchanged, sparse_block=_experts_alone):
    """A sparse layer ends with its experts."""


def _extra_first(x: ndarray, **part: model.Sublayer) -> tuple[ndarray, ndarray]:
    middle = x + part["extra_mlp"](part["extra_norm"](x))
    return middle, middle + part["experts"](part["mlp_norm"](middle))


@mutant("MODEL-03")
class ExtraFeedForwardIsFirst(Exchanged, sparse_block=_extra_first):
    """The extra feed-forward stands before the experts."""


def _renormalised(outputs: ndarray, token: ndarray, weight: ndarray, *, tokens: int) -> ndarray:
    total = np.zeros((len(token), tokens), weight.dtype)
    for place in np.argwhere(token >= 0):
        total[place[0], token[tuple(place)]] += weight[tuple(place)]
    share = weight / np.take_along_axis(
        np.where(total > 0, total, 1)[:, None], token.clip(0), axis=-1
    )
    return moe.combine(outputs, token, share, tokens=tokens)


@mutant("MODEL-03")
class GatesAreRenormalised(Steps, combine=_renormalised):
    """The gates of a token's kept choices are divided by their sum."""


# ---- feed-forwards -------------------------------------------------------------------------


def _halves_alone(inputs: ndarray, kernels: Tree, *, dtype: str, **_: Any) -> ndarray:
    used = {"wi": kernels["wi_0"], "wo": kernels["wo"]}
    return feed_forward.feed_forward(inputs, used, activations=("swiglu",), dtype=dtype)


@mutant("MODEL-04")
class FeedForwardIsSwiGLU(Exchanged, feed_forward=_halves_alone):
    """The textbook's: the two halves of x @ wi_0 alone, wi_1 is not used."""


def _first_half(inputs: ndarray, kernels: Tree, *, dtype: str, **_: Any) -> ndarray:
    half = {**kernels, "wi_0": kernels["wi_0"][..., : kernels["wi_1"].shape[-1]]}
    return feed_forward.feed_forward(inputs, half, activations=("swish", "linear"), dtype=dtype)


@mutant("MODEL-04")
class FeedForwardLosesHalfItsGate(Exchanged, feed_forward=_first_half):
    """silu of the first F columns times x @ wi_1, as a loader of [D, F] would have it."""


def _swapped(inputs: ndarray, kernels: Tree, **options: Any) -> ndarray:
    half = kernels["wi_1"].shape[-1]
    turned = {**kernels, "wi_0": np.roll(kernels["wi_0"], half, axis=-1)}
    return feed_forward.feed_forward(inputs, turned, **options)


@mutant("MODEL-04")
class GateHalvesAreSwapped(Exchanged, feed_forward=_swapped):
    """silu is applied to the first half of x @ wi_0."""


# ---- routing -------------------------------------------------------------------------------


def _capacity_with_k(tokens: int, *, k: int, capacity_factor: float, **options: Any) -> int:
    return grouping.expert_capacity(tokens, capacity_factor=k * capacity_factor, **options)


@mutant("MODEL-05")
class CapacityCountsK(Steps, capacity=_capacity_with_k):
    """Capacity is K times what it is."""


@mutant("MODEL-05")
class WholeBatchIsOneGroup(Steps, groups=grouping.one_group):
    """All tokens of the batch compete for one set of slots."""


def _rounded(x: ndarray, kernel: ndarray, **options: Any) -> ndarray:
    return moe.router_logits_of_rounded(x.astype(DTYPES["bfloat16"]), kernel, **options)


@mutant("MODEL-05")
class RouterIsBfloat16(Steps, router_logits=_rounded):
    """Router inputs and weights are rounded to bfloat16."""


@mutant("MODEL-05")
class AlwaysEvaluates(ReferenceAdapter):
    """A training pass has the evaluation's capacity."""

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        rules = super().rules(dialect)

        def evaluated(*arguments: Any, **options: Any) -> LayerResult:
            return rules.moe(*arguments, **options | {"training": False})

        return replace(rules, moe=evaluated)


@mutant("MODEL-05")
class RouterSeesPadding(ReferenceAdapter):
    """What sublayers read is not masked, only what the projection reads is."""

    def forward(self, parameters: Tree, batch: Tree, **options: Any) -> ForwardResult:
        self.mask = layers.token_mask(batch["decoder_input_tokens"])
        return super().forward(parameters, batch, **options)

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        def masked(x: ndarray, kernel: ndarray, **options: Any) -> ndarray:
            return layers.output_logits(x, kernel, **options | {"mask": self.mask})

        rules = super().rules(dialect)
        return replace(rules, token_mask=layers.every_token, output_logits=masked)


@mutant("MODEL-05")
class ReplicasAreIgnored(ReferenceAdapter):
    """Groups are made as if every expert had one replica."""

    def forward(
        self, parameters: Tree, batch: Tree, *, num_expert_replicas: int = 1, **options: Any
    ) -> ForwardResult:
        return super().forward(parameters, batch, **options)
