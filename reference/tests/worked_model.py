"""Worked examples of whole models, answered by the naive form.

A tiny model has one or two layers of width 4 with weights in eighths. Its router decides with clear
margins, so that no rounding changes a decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import naive_model
import numpy as np
from naive_model import Model
from naive_parameters import tensors
from numpy import ndarray
from worked_example import Example, grid

from openmoe_spec.config import Configuration

LOGITS_BOUND = {"relative": 2e-5, "absolute": 2e-5}
CLEAR = 1e-3
"""Least distance of two router logits at the edge of a token's choices, and between them."""

Arrays = Mapping[str, ndarray]


def fields(**changes: Any) -> dict[str, Any]:
    """Return the configuration of a model of one sparse layer, with some fields changed."""
    return {
        "name": "tiny",
        "num_layers": 1,
        "num_moe_layers": 1,
        "embed_dim": 4,
        "num_heads": 2,
        "head_dim": 2,
        "mlp_dim": 3,
        "num_experts": 2,
        "num_selected_experts": 1,
        "vocabulary_size": 7,
        "max_length": 8,
    } | changes


def weights(configuration: Mapping[str, Any], seed: int, *, doubled_gate: bool = True) -> Any:
    """Return parameters in eighths; norms near 1, the router's wide apart."""
    made = {}
    listed = tensors(Configuration(**configuration), doubled_gate=doubled_gate)
    for i, (name, shape, _) in enumerate(listed):
        value = grid(100 * seed + i, *shape)
        if name.endswith("scale"):
            value = 1 + value / 4
        made[name] = value * 2 if "router" in name else value
    return made


def batch(inputs: Any, targets: Any, **more: Any) -> dict[str, ndarray]:
    """Return a batch of whole numbers by the training code's names."""
    named = {"input_tokens": inputs, "target_tokens": targets, **more}
    return {f"decoder_{name}": np.array(value, np.int32) for name, value in named.items()}


PADDED = batch([[0, 3, 5, 1], [0, 4, 0, 0]], [[3, 5, 1, 6], [4, 0, 0, 0]])
FULL = batch([[0, 3, 5, 1, 6, 2]], [[3, 5, 1, 6, 2, 4]])


def models() -> dict[str, Any]:
    """Return the models that several examples run, by the id of the case that lends them."""
    return {
        "model_of_one_layer": weights(fields(), 9),
        "model_of_two_layers": weights(fields(num_layers=2), 1),
        "model_of_two_sparse_layers": weights(fields(num_layers=2, num_moe_layers=2), 9),
        "model_of_five_ids": weights(fields(vocabulary_size=5), 9),
        "model_of_four_experts": weights(fields(num_experts=4), 22),
        "model_of_exact_sums": stream_model(attention=0, experts=0, extra=0)[1],
    }


def clear(passed: naive_model.Pass, k: int, margin: float = CLEAR) -> naive_model.Pass:
    """Return a pass whose router was never close to another choice."""
    for name, logits in passed.activations.items():
        if name.endswith("router_weights"):
            for row in logits.reshape(-1, logits.shape[-1]).tolist():
                best = sorted(row, reverse=True)[: k + 1]
                apart = [a - b for a, b in pairwise(best)]
                assert not any(row) or min(apart) >= margin, (name, row)
    return passed


def run(
    configuration: Mapping[str, Any], parameters: Arrays, given: Arrays, **options: Any
) -> naive_model.Pass:
    """Return the naive pass of a model, checked to be clear."""
    training = options.pop("training", False)
    model = Model(parameters, Configuration(**configuration), **options)
    passed = naive_model.forward(model, given, training=training)
    return clear(passed, configuration["num_selected_experts"])


def forward(
    name: str,
    clause: str,
    what: str,
    arguments: Mapping[str, Any],
    answer: Any = None,
    **bounds: float,
) -> Example:
    """Return an example of a forward pass; the answer is the naive logits unless it is given."""
    if answer is None:
        given = (arguments["configuration"], arguments["parameters"], arguments["batch"])
        answer = {"logits": run(*given, training=arguments.get("training", False)).logits}
    return Example(name, clause, what, "forward", dict(arguments), answer, bounds or LOGITS_BOUND)


# ---- the forward pass ------------------------------------------------------------------------


def passes() -> list[Example]:
    """Return forward passes in float32."""
    two, one = fields(num_layers=2), fields()
    of_two, of_one = weights(two, 1), weights(one, 9)
    silent = {
        name: value * 0
        if "layers_1" in name and name.endswith(("wo/kernel", "out/kernel"))
        else value
        for name, value in of_two.items()
    }
    whole = {"configuration": two, "parameters": of_two}
    single = {"configuration": one, "parameters": of_one}
    wild = PADDED | {"decoder_positions": np.array([[7, 0, 3, 3], [1, 0, 0, 5]], np.int32)}
    prefix = FULL | {"decoder_causal_attention": np.array([[1, 1, 1, 1, 0, 0]], np.int32)}
    deep = fields(num_layers=2, num_moe_layers=2)
    of_deep = weights(deep, 9)
    stream = {
        "decoder/layers_0": np.array(run(two, of_two, PADDED).activations["decoder/layers_0"])
    }
    return [
        forward(
            *("prefix_unasked", "ATTN-03", "a prefix is given and not asked for: causal"),
            single | {"batch": prefix},
        ),
        forward(
            *("positions_ignored", "ATTN-06", "decoder_positions are not looked at"),
            single | {"batch": wild},
        ),
        forward("padded_model", "MODEL-01", "two layers, padding", whole | {"batch": PADDED}),
        forward(
            *("stream", "MODEL-01", "the stream itself is not masked", whole | {"batch": PADDED}),
            {"activations": stream},
        ),
        forward(
            *("two_sparse_layers", "MODEL-01", "two sparse layers"),
            {"configuration": deep, "parameters": of_deep, "batch": FULL},
        ),
        forward(
            *("dense_layer", "MODEL-02", "the second layer adds nothing"),
            {"configuration": two, "parameters": silent, "batch": FULL},
        ),
        forward("sparse_layer", "MODEL-03", "one sparse layer", single | {"batch": FULL}),
        _feed_forward(),
    ]


def routings() -> list[Example]:
    """Return the decisions of a sparse layer."""
    four, two = fields(num_experts=4), fields(min_expert_capacity=1)
    masked = batch([[0, 5, 0, 0, 6]], [[5, 1, 1, 6, 2]])
    found = []
    for name, what, configuration, given, training, replicas in (
        ("masked_routing", "masked positions arrive as zeros", four, masked, False, 1),
        ("trained_routing", "capacity of training", two, FULL, True, 1),
        ("replicas", "two replicas: groups of half the size", two, FULL, False, 2),
    ):
        configuration["num_selected_experts"] = 2
        parameters = weights(configuration, 22 if configuration is four else 9)
        options = {"training": training, "replicas": replicas}
        routed = run(configuration, parameters, given, **options).decisions[0]
        assert routed.kept.all() != training
        shown = {field: getattr(routed, field) for field in ("expert_index", "position", "kept")}
        arguments = {"configuration": configuration, "parameters": parameters, "batch": given}
        arguments |= {"training": training, "num_expert_replicas": replicas}
        found.append(forward(name, "MODEL-05", what, arguments, {"decisions": {"0": shown}}))
    return found


def _feed_forward() -> Example:
    inputs = grid(50, 5, 4) * 2
    given = {"wi_0": grid(51, 4, 6), "wi_1": grid(52, 4, 3), "wo": grid(53, 3, 4)}
    lists = {name: value.tolist() for name, value in given.items()}
    wanted = [naive_model.layers.feed_forward(x, **lists) for x in inputs.tolist()]
    return Example(
        *("dense_feed_forward", "MODEL-04", "the product of three projections", "feed_forward"),
        {"inputs": inputs, "kernels": given},
        np.array(wanted),
        {"relative": 1e-5, "absolute": 1e-5},
    )


# ---- bfloat16 --------------------------------------------------------------------------------


def stream_model(*, attention: float, experts: float, extra: float) -> tuple[Any, Any]:
    """Return a model whose one token has a stream of 256 that sublayers add whole numbers to.

    Only the first of four elements is not 0, so a norm gives 2 there (or 0), and every number on
    the way is exact in bfloat16 but for the sums in the stream.
    """
    configuration = fields(num_heads=1)
    made = {
        name: np.full_like(value, name.endswith("scale"))
        for name, value in weights(configuration, 0).items()
    }
    layer = "decoder/layers_0"
    made["token_embedder/embedding"][:, 0] = 256
    made[f"{layer}/self_attention/value/kernel"][0, 0] = 0.5
    made[f"{layer}/self_attention/out/kernel"][0, 0] = attention
    for path, sum_, place in (
        (f"{layer}/mlp/expert", 2 * experts, (slice(None), 0)),  # gates of 1/2
        (f"{layer}/extra_mlp", extra, (0,)),
    ):
        # a = b = 2 x 16, silu(b) = b there; c = 1 / 32: the product is 32 times wo.
        made[f"{path}/wi_0/kernel"][(*place, 0)] = made[f"{path}/wi_0/kernel"][(*place, 3)] = 16
        made[f"{path}/wi_1/kernel"][(*place, 0)] = 1 / 64
        made[f"{path}/wo/kernel"][(*place, 0)] = sum_ / 32
    made["decoder/logits_dense/kernel"][0] = np.arange(7)
    return configuration, made


def in_bfloat16() -> list[Example]:
    """Return passes in bfloat16: exact ones that show where the stream is rounded, and one close."""
    one_token = batch([[3]], [[4]])
    found = []
    for name, what, sums in (
        (
            "narrow_stream",
            "256 + 1 of attention is 256",
            {"attention": 1, "experts": -256, "extra": 0},
        ),
        ("wide_stream", "256 + 1 of experts is 257", {"attention": 0, "experts": 1, "extra": -256}),
    ):
        configuration, parameters = stream_model(**sums)
        model = Model(parameters, Configuration(**configuration), "bfloat16")
        answer = {"logits": naive_model.forward(model, one_token).logits}
        arguments = {"configuration": configuration, "parameters": parameters, "batch": one_token}
        found.append(
            Example(*(name, "MODEL-06", what, "forward"), arguments | {"dtype": "bfloat16"}, answer)
        )
    configuration, parameters = fields(), weights(fields(), 9)
    passed = run(configuration, parameters, FULL)
    exact = clear(passed, 1, margin=0.1).logits  # which bfloat16 cannot bridge
    own = run(configuration, parameters, FULL, dtype="bfloat16").logits
    distance = float(np.abs(own - exact).max())
    arguments = {"configuration": configuration, "parameters": parameters, "batch": FULL}
    what = "at most twice as far from the exact logits as the naive form in bfloat16"
    return [
        *found,
        forward(
            *("twice_as_far", "MODEL-07", what, arguments | {"dtype": "bfloat16"}),
            {"logits": exact},
            absolute=2 * distance,
        ),
    ]


def examples() -> list[Example]:
    """Return the examples of forward passes, in the order of SPEC.md."""
    return [*passes(), *routings(), *in_bfloat16()]
