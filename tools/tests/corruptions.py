"""Corruptions that converters make, planted: each with the cause and the place that must be named.

A corruption takes the tensors of a model and its configuration; it gives what a broken conversion
would have written. Sources: the catalogue of published conversion bugs, and the shapes of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters

Weights = Mapping[str, ndarray]

DISTINCT = Configuration(
    name="distinct",
    num_layers=6,
    num_moe_layers=3,
    embed_dim=24,
    num_heads=4,
    head_dim=8,
    mlp_dim=20,
    num_experts=5,
    vocabulary_size=97,
    max_length=64,
    expert_mlp_dim=14,
)
"""Every size is another: 24, 32, 20, 14, 40, 28, 5, 97."""

SQUARE = Configuration(
    name="square",
    num_layers=6,
    num_moe_layers=3,
    embed_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=32,
    num_experts=5,
    vocabulary_size=97,
    max_length=64,
)
"""Query, key, value, out, wi_1 and wo are square: no shape tells a transposition."""


def trained(model: Configuration, seed: int = 0) -> dict[str, ndarray]:
    """Return weights with the marks of training: columns of unequal size, norms that left 1."""
    draws = np.random.default_rng(seed)
    found = {}
    for one in parameters(model):
        spread = 0.1 * (1 + 0.5 * draws.standard_t(3, one.shape[-1:]))
        values = draws.standard_normal(one.shape) * spread
        found[one.name] = (values + one.name.endswith("scale")).astype(np.float32)
    return found


LAYER = "decoder/layers_"
EMBEDDING, HEAD = "token_embedder/embedding", "decoder/logits_dense/kernel"
QUERY, KEY, VALUE, OUT = (
    f"{LAYER}2/self_attention/{name}/kernel" for name in ("query", "key", "value", "out")
)
GATE, UP, DOWN = (f"{LAYER}1/mlp/expert/{name}/kernel" for name in ("wi_0", "wi_1", "wo"))
DENSE_GATE, DENSE_UP, DENSE_DOWN = (
    f"{LAYER}0/mlp/{name}/kernel" for name in ("wi_0", "wi_1", "wo")
)
EXTRA_GATE = f"{LAYER}3/extra_mlp/wi_0/kernel"
ROUTER = f"{LAYER}1/mlp/router/router_weights/w/kernel"
NORM, OTHER_NORM = (f"{LAYER}1/pre_{name}_layer_norm/scale" for name in ("mlp", "self_attention"))


@dataclass(frozen=True)
class Corruption:
    """One planted bug.

    make     what is done to the weights
    causes   what the diagnosis must call it, by the tensor that it must name
    where    text that must stand in the finding's place
    cast     the dtype that the target was declared to be rounded to
    """

    name: str
    make: Callable[[dict[str, ndarray], Configuration], Weights]
    causes: Mapping[str, str]
    where: str = ""
    cast: str | None = None


ALL: list[Corruption] = []


def planted(causes: Mapping[str, str], where: str = "", cast: str | None = None) -> Callable:
    """Register a corruption."""

    def register(make):
        ALL.append(Corruption(make.__name__, make, causes, where, cast))
        return make

    return register


def on(weights, name, change):
    return {**weights, name: np.ascontiguousarray(change(weights[name].copy()))}


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


def fresh(shape, seed=5):
    """Return values as the initialiser draws them: normal, cut at two deviations."""
    draws = np.random.default_rng(seed).standard_normal((4, *shape))
    kept = np.where(np.abs(draws) < 2, draws, np.nan)
    first = np.take_along_axis(kept, np.isfinite(kept).argmax(axis=0)[None], 0)[0]
    return (np.nan_to_num(first) * 0.05).astype(np.float32)


# ---- transposed, reshaped ------------------------------------------------------------------------


@planted({QUERY: "transposed"})
def transposed_query(w, _):
    return on(w, QUERY, np.transpose)


@planted({OUT: "transposed"})
def transposed_out(w, _):
    return on(w, OUT, np.transpose)


@planted({UP: "transposed"})
def transposed_experts(w, _):
    return on(w, UP, lambda x: x.swapaxes(1, 2))


@planted({HEAD: "transposed"})
def transposed_head(w, _):
    return on(w, HEAD, np.transpose)


@planted({HEAD: "reshaped"})
def reshaped_instead_of_transposed(w, _):
    return on(w, HEAD, lambda x: x.T.reshape(x.shape))


# ---- gates ---------------------------------------------------------------------------------------


@planted({GATE: "gate halves swapped"})
def gate_halves_swapped_in_experts(w, _):
    return on(w, GATE, lambda x: np.roll(x, x.shape[-1] // 2, -1))


@planted({DENSE_GATE: "gate halves swapped"})
def gate_halves_swapped_in_a_dense_layer(w, _):
    return on(w, DENSE_GATE, lambda x: np.roll(x, x.shape[-1] // 2, -1))


@planted({EXTRA_GATE: "gate halves interleaved"})
def gate_halves_interleaved(w, _):
    return on(w, EXTRA_GATE, lambda x: x.reshape(len(x), 2, -1).swapaxes(1, 2).reshape(x.shape))


@planted({GATE: "gate and up swapped", UP: "gate and up swapped"})
def gate_and_up_swapped(w, _):
    width = w[UP].shape[-1]
    gate = np.concatenate([w[UP], w[GATE][..., width:]], axis=-1)
    return {**w, GATE: gate, UP: np.ascontiguousarray(w[GATE][..., :width])}


@planted({DENSE_UP: "up and down swapped", DENSE_DOWN: "up and down swapped"})
def up_and_down_swapped(w, _):
    up, down = w[DENSE_UP], w[DENSE_DOWN]
    return {**w, DENSE_UP: np.ascontiguousarray(down.T), DENSE_DOWN: np.ascontiguousarray(up.T)}


# ---- experts -------------------------------------------------------------------------------------


@planted({GATE: "experts permuted"}, "experts 1, 3")
def experts_permuted(w, _):
    return on(w, GATE, lambda x: x[[0, 3, 2, 1, 4]])


@planted({GATE: "gate halves swapped"})
def experts_permuted_and_their_gates_swapped(w, _):
    return on(w, GATE, lambda x: np.roll(x[[0, 3, 2, 1, 4]], x.shape[-1] // 2, -1))


@planted({ROUTER: "experts permuted"})
def router_columns_permuted(w, _):
    return on(w, ROUTER, lambda x: x[:, [0, 3, 2, 1, 4]])


@planted({DOWN: "experts rolled"})
def experts_rolled(w, _):
    return on(w, DOWN, lambda x: np.roll(x, 1, 0))


@planted(
    {GATE: "experts rolled", UP: "experts rolled", DOWN: "experts rolled", ROUTER: "experts rolled"}
)
def experts_and_router_rolled(w, _):
    for name in (GATE, UP, DOWN):
        w = on(w, name, lambda x: np.roll(x, 2, 0))
    return on(w, ROUTER, lambda x: np.roll(x, 2, 1))


@planted({UP: "dropped"}, "experts 3")
def expert_zero(w, _):
    return on(w, UP, put(3, 0))


@planted({UP: "expert dropped"}, "experts 2")
def expert_left_out(w, _):
    return on(w, UP, lambda x: np.delete(x, 2, 0))


@planted({UP: "expert dropped"}, "experts 4")
def last_expert_left_out(w, _):
    return on(w, UP, lambda x: x[:-1])


@planted({UP: "expert duplicated"}, "experts 3")
def expert_duplicated(w, _):
    return on(w, UP, lambda x: put(3, x[2])(x))


@planted({UP: "left at initialisation"}, "experts 3")
def expert_left_at_initialisation(w, _):
    return on(w, UP, lambda x: put(3, fresh(x[3].shape))(x))


@planted(
    {GATE: "left at initialisation", UP: "left at initialisation", DOWN: "left at initialisation"}
)
def all_experts_left_at_initialisation(w, _):
    for name in (GATE, UP, DOWN):
        w = on(w, name, lambda x: fresh(x.shape))
    return w


@planted({GATE: "wrong layer"})
def experts_of_another_layer(w, _):
    return {**w, GATE: w[GATE.replace("layers_1", "layers_3")]}


@planted({DOWN: "wrong layer"}, "experts 4")
def one_expert_of_another_layer(w, _):
    return on(w, DOWN, put(4, w[DOWN.replace("layers_1", "layers_5")][4]))


# ---- heads ---------------------------------------------------------------------------------------


@planted({QUERY: "rotary interleaved", KEY: "rotary interleaved"})
def rotary_interleaved(w, model):
    def change(x):
        return x.reshape(len(x), model.num_heads, 2, -1).swapaxes(2, 3).reshape(x.shape)

    return on(on(w, QUERY, change), KEY, change)


@planted({KEY: "rotary halved"})
def rotary_halved_twice(w, model):
    def change(x):
        return x.reshape(len(x), model.num_heads, -1, 2).swapaxes(2, 3).reshape(x.shape)

    return on(w, KEY, change)


@planted({VALUE: "heads and dimensions exchanged"})
def heads_and_dimensions_exchanged(w, model):
    return on(
        w, VALUE, lambda x: x.reshape(len(x), model.num_heads, -1).swapaxes(1, 2).reshape(x.shape)
    )


@planted({OUT: "heads and dimensions exchanged"})
def heads_and_dimensions_exchanged_in_rows(w, model):
    return on(
        w, OUT, lambda x: x.reshape(model.num_heads, -1, x.shape[1]).swapaxes(0, 1).reshape(x.shape)
    )


@planted({QUERY: "heads and dimensions exchanged"})
def width_and_heads_exchanged(w, model):
    return on(
        w, QUERY, lambda x: x.reshape(len(x), model.num_heads, -1).swapaxes(0, 1).reshape(x.shape)
    )


@planted({VALUE: "heads permuted"})
def heads_permuted(w, model):
    def change(x):
        return x.reshape(len(x), model.num_heads, -1)[:, [1, 3, 0, 2]].reshape(x.shape)

    return on(w, VALUE, change)


@planted({QUERY: "query, key and value swapped", KEY: "query, key and value swapped"})
def query_and_key_swapped(w, _):
    return {**w, QUERY: w[KEY], KEY: w[QUERY]}


@planted(dict.fromkeys((QUERY, KEY, VALUE), "query, key and value swapped"))
def query_key_value_rotated(w, _):
    return {**w, QUERY: w[KEY], KEY: w[VALUE], VALUE: w[QUERY]}


# ---- layers and names ----------------------------------------------------------------------------


@planted({f"{LAYER}0/self_attention/query/kernel": "layer offset"}, "layers 0, 2")
def layers_offset(w, _):
    shifted = dict(w)
    for layer in (0, 2):
        for name in w:
            if name.startswith(f"{LAYER}{layer}/"):
                shifted[name] = w[name.replace(f"{LAYER}{layer}/", f"{LAYER}{layer + 2}/")]
    return shifted


@planted(
    {
        f"{LAYER}3/mlp/expert/wo/kernel": "layer duplicated",
        f"{LAYER}3/pre_mlp_layer_norm/scale": "layer duplicated",
    },
    "layers 3",
)
def layer_duplicated(w, _):
    own = f"{LAYER}3/"
    return {n: w[n.replace(own, f"{LAYER}1/")] if n.startswith(own) else x for n, x in w.items()}


@planted(
    {f"{LAYER}2/mlp/wo/kernel": "layers swapped", f"{LAYER}4/mlp/wo/kernel": "layers swapped"},
    "layers 2, 4",
)
def layers_swapped(w, _):
    names = {2: 4, 4: 2}
    swapped = dict(w)
    for layer, other in names.items():
        for name in w:
            if name.startswith(f"{LAYER}{layer}/"):
                swapped[name] = w[name.replace(f"{LAYER}{layer}/", f"{LAYER}{other}/")]
    return swapped


@planted({NORM: "norms swapped", OTHER_NORM: "norms swapped"})
def norms_swapped(w, _):
    return {**w, NORM: w[OTHER_NORM], OTHER_NORM: w[NORM]}


@planted({EMBEDDING: "embedding and head swapped", HEAD: "embedding and head swapped"})
def embedding_and_head_swapped(w, _):
    turned = {EMBEDDING: w[HEAD].T, HEAD: w[EMBEDDING].T}
    return {**w, **{name: np.ascontiguousarray(x) for name, x in turned.items()}}


@planted({HEAD: "tied head"})
def head_left_out(w, _):
    return {name: x for name, x in w.items() if name != HEAD}


@planted({NORM: "missing"})
def norm_left_out(w, _):
    return {name: x for name, x in w.items() if name != NORM}


@planted({"decoder/layers_1/mlp/router/router_weights/w/bias": "unexpected"})
def tensor_added(w, _):
    return {**w, "decoder/layers_1/mlp/router/router_weights/w/bias": np.zeros(5, np.float32)}


@planted({EMBEDDING: "vocabulary"})
def rows_of_the_vocabulary_cut_off(w, _):
    return on(w, EMBEDDING, lambda x: x[:-3])


@planted({EMBEDDING: "rows rolled"})
def rows_of_the_vocabulary_shifted(w, _):
    return on(w, EMBEDDING, lambda x: np.roll(x, 3, 0))


# ---- values --------------------------------------------------------------------------------------


@planted({QUERY: "constant factor"})
def scale_folded_into_the_query(w, model):
    return on(w, QUERY, lambda x: x * np.float32(model.head_dim**-0.5))


@planted({EMBEDDING: "constant factor"})
def embedding_scaled(w, model):
    return on(w, EMBEDDING, lambda x: x * np.float32(model.embed_dim**0.5))


@planted({NORM: "constant term"})
def norm_minus_one(w, _):
    return on(w, NORM, lambda x: x - np.float32(1))


@planted(
    {DENSE_GATE: "norm folded in", f"{LAYER}0/pre_mlp_layer_norm/scale": "left at initialisation"}
)
def norm_folded_in(w, _):
    norm = f"{LAYER}0/pre_mlp_layer_norm/scale"
    return {**w, DENSE_GATE: w[DENSE_GATE] * w[norm][:, None], norm: np.ones_like(w[norm])}


@planted({QUERY: "rounded to bfloat16"})
def rounded_without_being_declared(w, _):
    return on(w, QUERY, lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32))


@planted({QUERY: "bfloat16 by truncation"})
def cut_off_and_widened(w, _):
    return on(w, QUERY, lambda x: (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


@planted({QUERY: "bfloat16 by truncation", GATE: "bfloat16 by truncation"}, cast="bfloat16")
def cut_off_instead_of_rounded(w, _):
    cut = {n: (x.view(np.uint32) >> 16).astype(np.uint16) for n, x in w.items()}
    return {name: x.view(ml_dtypes.bfloat16) for name, x in cut.items()}


@planted({UP: "rounded to float16"})
def through_float16(w, _):
    return on(w, UP, lambda x: x.astype(np.float16).astype(np.float32))


@planted({UP: "sparse corruption"}, "experts 2, rows 3, 7")
def a_few_values_changed(w, _):
    def change(x):
        x[2, 3, 4] += 1
        x[2, 7, 1] *= 2
        return x

    return on(w, UP, change)


@planted({DOWN: "flipped bits"}, "experts 2, row 3, column 4")
def one_bit_flipped(w, _):
    def change(x):
        x.view(np.uint32)[2, 3, 4] ^= 1 << 9
        return x

    return on(w, DOWN, change)


@planted({DENSE_UP: "stale shard"}, "rows 0-7")
def a_block_of_another_step(w, _):
    def change(x):
        x[:8] += fresh(x[:8].shape, 7) + np.float32(1)
        return x

    return on(w, DENSE_UP, change)


@planted({KEY: "stale"})
def a_tensor_of_another_step(w, _):
    return on(w, KEY, lambda x: x + 0.1 * fresh(x.shape, 8))


@planted({VALUE: "not finite"})
def not_a_number(w, _):
    return on(w, VALUE, put((3, 4), np.nan))


@planted({HEAD: "dropped"})
def a_tensor_never_written(w, _):
    return on(w, HEAD, np.zeros_like)
