"""Small discriminating inputs: what an implementation answers to them tells its choices apart.

A probe asks one function of an adapter for one answer. Models are silent but for the part that is
asked about, so that one choice, or two that hang together, decides. The dialect is never named to the
implementation: what it does of itself is what is found out. Spec: DIAL-01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError, call, offers
from openmoe_conformance.compare import fields_of
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters as tree

Known = Mapping[str, str]
"""Choices found so far; a probe whose model needs one uses it."""


@dataclass(frozen=True)
class Probe:
    """One question: the function it calls, the points that its answer tells apart.

    ask    from an adapter and the choices known so far to numbers
    what   the input in words, for the evidence
    alone  the answer depends on no other choice
    faint  options differ by rounding alone: an answer near none of them tells nothing
    """

    function: str
    points: tuple[str, ...]
    what: str
    ask: Callable[[Any, Known], Any]
    alone: bool = False
    faint: bool = False


PROBES: list[Probe] = []
"""Every probe; earlier ones settle what later ones build on."""

_Ask = Callable[[Any, Known], Any]


def _probe(
    function: str, *points: str, what: str, alone: bool = False, faint: bool = False
) -> Callable[[_Ask], _Ask]:
    def register(ask: _Ask) -> _Ask:
        PROBES.append(Probe(function, points, what, ask, alone, faint))
        return ask

    return register


# ---- silent models -------------------------------------------------------------------------

WIDTH, HIDDEN, VOCABULARY = 8, 6, 13


def _fields(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "probe",
        "num_layers": 1,
        "num_moe_layers": 1,
        "embed_dim": WIDTH,
        "num_heads": 2,
        "head_dim": 4,
        "mlp_dim": HIDDEN,
        "num_experts": 4,
        "vocabulary_size": VOCABULARY,
        "eval_capacity_factor": 64.0,
        "max_length": 64,
    }
    return asdict(Configuration(**fields | changes))


def _model(
    fields: Mapping[str, Any], known: Known, *, loud: tuple[str, ...] = (), seed: int = 0
) -> dict[str, ndarray]:
    """Return weights of which only sublayers whose name contains a word of `loud` add anything."""
    generator = np.random.default_rng(seed)
    doubled = known.get("feed_forward", "cubic") == "cubic"
    made = {}
    for one in tree(Configuration(**fields), doubled_gate=doubled):
        drawn = generator.normal(size=one.shape).astype(np.float32)
        if one.name.endswith("scale"):
            drawn = np.ones(one.shape, np.float32)
        elif one.name.endswith(("out/kernel", "wo/kernel")):
            drawn *= any(f"/{word}" in one.name for word in loud)
        made[one.name] = drawn
    return made


def _batch(inputs: Any, targets: Any = None, attention_mask: Any = None) -> dict[str, ndarray]:
    ids = np.asarray(inputs, np.int32)
    seen = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int32)
    wanted = np.roll(np.maximum(ids, 1), -1, axis=1) if targets is None else targets
    return {
        "decoder_input_tokens": ids,
        "decoder_target_tokens": np.asarray(wanted, np.int32),
        "attention_mask": seen,
    }


def _logits(adapter: Any, weights: Any, batch: Any, fields: Any, **options: Any) -> ndarray:
    answer = _forward(adapter, weights, batch, fields, **options)
    found = fields_of(answer, ("logits",))["logits"]
    return np.asarray(answer if found is None else found)


def _forward(adapter: Any, weights: Any, batch: Any, fields: Any, **options: Any) -> Any:
    """Call `forward` with the batch's arrays; one that knows no attention mask gets none."""
    return call(adapter, "forward", weights, batch, configuration=fields, **options)


def _representable(values: Any) -> float:
    """Return the share of values that bfloat16 holds exactly."""
    wide = np.asarray(values).astype(np.float32)
    return float((wide == wide.astype(ml_dtypes.bfloat16).astype(np.float32)).mean())


_SOME = [[3, 7, 1, 9, 4, 11], [5, 2, 12, 6, 10, 8]]

# ---- feed-forward, attention ---------------------------------------------------------------


@_probe("feed_forward", "feed_forward", what="one token through kernels that it takes")
def _(adapter: Any, _: Known) -> Any:
    generator = np.random.default_rng(1)
    x, wide, narrow, out = (
        generator.normal(size=shape).astype(np.float32)
        for shape in ((2, 4), (4, 6), (4, 3), (3, 4))
    )
    return _first_that_fits(
        lambda first: call(adapter, "feed_forward", x, {"wi_0": first, "wi_1": narrow, "wo": out}),
        (wide, wide[:, :3]),
    )


@_probe("forward", "feed_forward", what="a dense feed-forward alone")
def _(adapter: Any, _: Known) -> Any:
    fields = _fields(num_layers=2, num_moe_layers=1)

    def run(choice: str) -> ndarray:
        weights = _model(fields, {"feed_forward": choice}, loud=("layers_0/mlp",))
        return _logits(adapter, weights, _batch(_SOME), fields)

    return _first_that_fits(run, ("cubic", "swiglu"))


def _first_that_fits(run: Callable[[Any], Any], candidates: tuple[Any, ...]) -> Any:
    """Return the first answer that is no error: kernels of another width are refused."""
    for candidate in candidates[:-1]:
        try:
            return run(candidate)
        except UnsupportedError:
            raise
        except Exception:  # noqa: BLE001, S112 - whatever a stranger raises on another width
            continue
    return run(candidates[-1])


def _attention_case() -> tuple[ndarray, dict[str, ndarray]]:
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=(1, 5, WIDTH)).astype(np.float32)
    kernels = {
        name: generator.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        for name in ("query", "key", "value", "out")
    }
    return inputs, kernels


@_probe("attention", "attention_scale", what="five tokens, all visible")
def _(adapter: Any, _: Known) -> Any:
    return call(adapter, "attention", *_attention_case(), None, num_heads=2)


@_probe("forward", "attention_scale", what="attention alone, all visible")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known, loud=("self_attention",))
    return _logits(adapter, weights, _batch(_SOME), fields)


@_probe("attention", "masked_keys", what="a query that may see no key")
def _(adapter: Any, _: Known) -> Any:
    mask = np.tril(np.ones((1, 5, 5), bool))
    mask[0, 2] = False
    return call(adapter, "attention", *_attention_case(), mask, num_heads=2)


@_probe(
    "forward",
    "attention_mask",
    "masked_keys",
    what="target ids of 0 and an attention mask that disagree",
)
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known, loud=("self_attention",))
    targets = [[7, 0, 9, 4, 11, 2], [0, 12, 6, 0, 8, 3]]
    mask = [[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1]]
    return _logits(adapter, weights, _batch(_SOME, targets, mask), fields)


@_probe("attention", "softmax", what="bfloat16, 48 tokens", faint=True)
def _(adapter: Any, _: Known) -> Any:
    kernels = _attention_case()[1]
    inputs = np.random.default_rng(6).normal(size=(1, 48, WIDTH)).astype(ml_dtypes.bfloat16)
    small = {name: kernel / 2 for name, kernel in kernels.items()}
    return call(adapter, "attention", inputs, small, None, num_heads=2, dtype="bfloat16")


# ---- what ids and masks do -----------------------------------------------------------------


@_probe("token_mask", "token_mask", what="ids 0 5 0 0 7")
def _(adapter: Any, _: Known) -> Any:
    return call(adapter, "token_mask", np.array([[0, 5, 0, 0, 7]], np.int32))


@_probe("forward", "token_mask", what="ids 0 5 0 0 7 3 through embedding, norm and head")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    return _logits(adapter, _model(fields, known), _batch([[0, 5, 0, 0, 7, 3]]), fields)


# ---- experts -------------------------------------------------------------------------------


@_probe("expert_capacity", "capacity", what="64 tokens, 8 experts, factor 2, K = 2")
def _(adapter: Any, _: Known) -> Any:
    options = {"num_experts": 8, "capacity_factor": 2.0, "k": 2}
    return call(adapter, "expert_capacity", 64, **options)


def _crowd() -> dict[str, Any]:
    return _fields(num_experts=8, eval_capacity_factor=2.0, min_expert_capacity=1)


@_probe("moe_layer", "groups", "capacity", what="64 equal tokens, 8 experts: the first dropped")
def _(adapter: Any, known: Known) -> Any:
    fields = _crowd()
    weights = _model(fields, known, loud=("mlp/expert",))
    path = "decoder/layers_0/mlp"
    layer = {name: weights[f"{path}/expert/{name}/kernel"] for name in ("wi_0", "wi_1", "wo")} | {
        "router": weights[f"{path}/router/router_weights/w/kernel"]
    }
    inputs = np.ones((1, 64, WIDTH), np.float32)
    answer = call(adapter, "moe_layer", inputs, layer, training=False, min_expert_capacity=1)
    found = fields_of(answer, ("output",))["output"]
    output = np.asarray(answer if found is None else found)
    return _first_other((np.abs(output) > 0).any(axis=-1))


@_probe("forward", "groups", "capacity", what="64 equal tokens, 8 experts: the first dropped")
def _(adapter: Any, known: Known) -> Any:
    fields = _crowd()
    weights = _model(fields, known, loud=("mlp/expert",))
    logits = _logits(adapter, weights, _batch(np.full((1, 64), 5)), fields)
    return _first_other(np.abs(logits - logits[:, :1]).max(axis=-1) < 1e-3 * np.abs(logits).max())


def _first_other(alike: ndarray) -> int:
    """Return the first place that is false; 64 when none is."""
    return int(np.append(alike.reshape(-1), False).argmin())


@_probe("forward", "extra_mlp", what="experts and the extra feed-forward")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known, loud=("mlp/expert", "extra_mlp"))
    return _logits(adapter, weights, _batch(_SOME), fields)


def _one_choice(
    known: Known, columns: tuple[float, ...]
) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return a model with K = 1 whose router logits are the first input times `columns`."""
    fields = _fields(num_selected_experts=1)
    weights = _model(fields, known, loud=("mlp/expert",), seed=3)
    weights["token_embedder/embedding"][:, 0] = 1
    kernel = np.zeros((WIDTH, 4), np.float32)
    kernel[0] = columns
    weights["decoder/layers_0/mlp/router/router_weights/w/kernel"] = kernel
    return fields, weights


@_probe("forward", "one_choice", what="K = 1, two logits 2^-26 apart: one float32 probability")
def _(adapter: Any, known: Known) -> Any:
    fields, weights = _one_choice(known, (0.0, 2.0**-26, -1.0, -1.0))
    return _logits(adapter, weights, _batch(_SOME), fields)


@_probe("route", "one_choice", what="K = 1, logits 0 and 2^-26")
def _(adapter: Any, _: Known) -> Any:
    kernel = np.array([[0.0, 2.0**-26, -1.0]], np.float32)
    answer = call(adapter, "route", np.ones((1, 1, 1), np.float32), kernel, k=1, capacity=1)
    return np.asarray(fields_of(answer, ("expert_index",))["expert_index"])


@_probe("forward", "router_kernel", what="bfloat16, K = 1, router weights 1 and 1.001")
def _(adapter: Any, known: Known) -> Any:
    fields, weights = _one_choice(known, (1.0, 1.001, -1.0, -1.0))
    return _logits(adapter, weights, _batch(_SOME), fields, dtype="bfloat16")


@_probe("moe_layer", "combine", what="bfloat16 inputs: share of outputs that bfloat16 holds")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known, loud=("mlp/expert",))
    path = "decoder/layers_0/mlp"
    layer = {name: weights[f"{path}/expert/{name}/kernel"] for name in ("wi_0", "wi_1", "wo")} | {
        "router": weights[f"{path}/router/router_weights/w/kernel"]
    }
    inputs = np.random.default_rng(4).normal(size=(1, 16, WIDTH)).astype(ml_dtypes.bfloat16)
    options = {"training": False, "eval_capacity_factor": 64.0, "expert_dtype": "bfloat16"}
    answer = call(adapter, "moe_layer", inputs, layer, **options)
    found = fields_of(answer, ("output",))["output"]
    return _representable(answer if found is None else found) > 0.9


@_probe("forward", "combine", what="bfloat16: share of the experts' trace that bfloat16 holds")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known, loud=("mlp/expert",))
    answer = _forward(adapter, weights, _batch(_SOME), fields, dtype="bfloat16")
    shown = fields_of(answer, ("activations",))["activations"] or {}
    if "decoder/layers_0/mlp" not in shown:
        raise UnsupportedError("forward() shows no activations")
    return _representable(shown["decoder/layers_0/mlp"]) > 0.9


@_probe("forward", "logits", what="bfloat16: share of logits that bfloat16 holds")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    logits = _logits(adapter, _model(fields, known), _batch(_SOME), fields, dtype="bfloat16")
    return _representable(logits) > 0.9


# ---- losses and training -------------------------------------------------------------------


@_probe("balance_loss", "balance", what="two groups that each crowd another expert")
def _(adapter: Any, _: Known) -> Any:
    probabilities = np.full((2, 4, 4), 0.1, np.float32)
    probabilities[0, :, 0] = probabilities[1, :, 3] = 0.7
    index = np.broadcast_to(np.array([0, 3], np.int32)[:, None, None], (2, 4, 1))
    return call(adapter, "balance_loss", probabilities, np.ascontiguousarray(index))


@_probe("forward", "balance", what="two kinds of tokens, each in groups of its own")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known)
    answer = _forward(adapter, weights, _batch([[3] * 16 + [4] * 16]), fields)
    shown = fields_of(answer, ("metrics",))["metrics"]
    if not shown:
        raise UnsupportedError("forward() shows no metrics")
    one = next(iter(shown.values())) if isinstance(shown, Mapping) else shown[0]
    return np.asarray(one["auxiliary_loss"])


@_probe("loss", "cross_entropy", what="total loss of two rows")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known)
    found = call(adapter, "loss", weights, _batch(_SOME), configuration=fields)
    return np.asarray(found["total"] if isinstance(found, Mapping) else found)


@_probe("part_gradients", "start_embedding", what="is the gradient of row 0 other than 0?")
def _(adapter: Any, _: Known) -> Any:
    ids, cotangent = np.array([[0, 2]], np.int32), np.ones((1, 2, 3), np.float32)
    found = call(adapter, "part_gradients", "embed", ids, {}, cotangent, size=4)
    return (np.asarray(found["table"])[[0, 2]] != 0).any(axis=-1)


@_probe(
    "model_gradients",
    "start_embedding",
    what="is the gradient of row 0 other than 0?",
    alone=True,
)
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    batch = _batch([[0, 7, 1, 9, 4, 11]])
    found = call(adapter, "model_gradients", _model(fields, known), batch, configuration=fields)
    return (np.asarray(found["token_embedder/embedding"])[[0, 7]] != 0).any(axis=-1)


@_probe("learning_rate", "warmup", what="step 100")
def _(adapter: Any, _: Known) -> Any:
    return call(adapter, "learning_rate", 100)


# ---- decoding ------------------------------------------------------------------------------


@_probe("cached_calls", "decode_position", what="left padding, position ids counted from the mask")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known, loud=("self_attention",))
    batch = _batch([[0, 0, 3, 7, 1, 9, 4]], attention_mask=[[0, 0, 1, 1, 1, 1, 1]])
    options = {"prefill": 4, "positions_from_mask": True}
    answer = call(adapter, "cached_calls", weights, batch, configuration=fields, **options)
    return np.asarray(fields_of(answer, ("logits",))["logits"])[:, 4:]


@_probe("decode", "decode_position", "prompt_end", what="two steps behind a prompt of three")
def _(adapter: Any, known: Known) -> Any:
    fields = _fields()
    weights = _model(fields, known, loud=("self_attention",))
    batch = _batch([[0, 3, 7, 1, 9, 4]]) | {
        "decoder_causal_attention": np.array([[1, 1, 1, 1, 0, 0]], np.int32)
    }
    answer = call(adapter, "decode", weights, batch, configuration=fields, steps=2)
    return np.asarray(fields_of(answer, ("logits",))["logits"])


def _crowded_prompt(known: Known) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return a model with one slot an expert: the prompt's last token is dropped unless fed alone."""
    fields = _fields(
        num_selected_experts=1, eval_capacity_factor=1e-3, min_expert_capacity=1, num_experts=2
    )
    weights = _model(fields, known, loud=("mlp/expert",))
    weights["decoder/layers_0/mlp/expert/wo/kernel"] *= 8
    return fields, weights


@_probe(
    "generate", "prompt_end", what="first new token behind a prompt whose last token is dropped"
)
def _(adapter: Any, known: Known) -> Any:
    fields, weights = _crowded_prompt(known)
    batch = _batch([[0, 7, 7, 7, 7, 7, 7, 7]]) | {
        "decoder_causal_attention": np.array([[1, 1, 1, 1, 1, 1, 0, 0]], np.int32)
    }
    return np.asarray(call(adapter, "generate", weights, batch, configuration=fields))[:, 0]


@_probe("greedy", "prompt_end", what="first new token behind a prompt whose last token is dropped")
def _(adapter: Any, known: Known) -> Any:
    if offers(adapter, "generate") is None:
        raise UnsupportedError("generate() tells")
    fields, weights = _crowded_prompt(known)
    ids = np.array([[7, 7, 7, 7, 7]], np.int32)
    return np.asarray(call(adapter, "greedy", weights, ids, configuration=fields, new_tokens=1))[
        :, 5
    ]
