"""The functional tier: the same function holds, every planted change is named where it begins."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import ONE_CHOICE, ROUTER_1, TINY, WEIGHTS, changed, drawn, halves, narrowed

from openmoe_conformance.outcome import UsageError
from openmoe_tools.checkpoints.containers import opening
from openmoe_tools.checkpoints.containers.stored import Memory
from openmoe_tools.checkpoints.function import functional, sides
from openmoe_tools.checkpoints.function.functional import compare
from openmoe_tools.checkpoints.function.probes import Probe
from openmoe_tools.checkpoints.function.sides import Side


@pytest.fixture(scope="module")
def asked():
    return functional.prepare(Side(WEIGHTS), TINY)


# ---- the same function ---------------------------------------------------------------------------


def test_identical_weights_hold_and_everything_was_exercised(asked):
    stored = opening.of(Memory(WEIGHTS))
    b = Side({name: stored.read(name) for name in stored.tensors})
    found = compare(Side(WEIGHTS), b, TINY, asked, same_weights=True)
    assert found.verdict == "holds"
    assert found.findings == ()
    assert found.first is None
    assert found.modes == {"free": len(asked)}
    assert found.tokens == found.judged == sum(one.ids.size for one in asked)
    assert found.logits.maximum == found.logits.p99 == found.logits.kl_forward[1] == 0
    assert found.logits.top == {1: 1, 5: 1, 10: 1}
    assert 0 < found.logits_floor.maximum < found.logits_allowed < 1e-4
    assert [one.layer for one in found.routing] == [1, 3]
    assert all(one.equal == one.equal_kept == 1 for one in found.routing)
    names = [one.name for one in found.activations]
    assert names[:3] == [
        "token_embedder",
        "decoder/layers_0/self_attention",
        "decoder/layers_0/mlp",
    ]
    assert names.index(ROUTER_1) < names.index("decoder/layers_1/mlp")
    assert found.coverage.experts == {1: tuple(range(8)), 3: tuple(range(8))}
    assert found.coverage.overflowed > 0
    assert found.coverage.longest == (128, 128)


def test_the_result_is_json_and_the_same_again(asked):
    b = Side(changed("decoder/decoder_norm/scale", lambda x: x * 1.5))
    made = [compare(Side(WEIGHTS), b, TINY, asked).as_dict() for _ in range(2)]
    assert json.dumps(made[0], allow_nan=False) == json.dumps(made[1], allow_nan=False)
    assert made[0]["verdict"] == "differs"
    assert made[0]["coverage"]["lacking"] == []


def test_without_rows_they_are_drawn():
    assert compare(Side(WEIGHTS), Side(WEIGHTS), TINY).verdict == "holds"


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="production needs JAX")
def test_production_holds_within_the_measured_floor_and_shows_a_change(asked):
    found = compare(Side(WEIGHTS), Side(WEIGHTS, implementation="production"), TINY, asked)
    assert found.verdict == "holds", found.findings
    assert 0 < found.logits.maximum <= found.logits_allowed
    wrong = changed("decoder/layers_3/pre_mlp_layer_norm/scale", lambda x: x * 1.01)
    found = compare(Side(WEIGHTS), Side(wrong, implementation="production"), TINY, asked)
    assert found.first == "decoder/layers_3/mlp/router/router_weights"


def test_bfloat16_activations_hold_by_the_floor_of_that_arithmetic(asked):
    found = compare(Side(WEIGHTS), Side(WEIGHTS, dtype="bfloat16"), TINY, asked)
    assert found.verdict == "holds", found.findings
    assert (
        found.modes["forced"] > 0
    )  # some near-tie flipped, and nothing behind it was judged by it
    assert found.logits_free.maximum > 0
    assert sum(sum(one.margins.values()) for one in found.routing) > 0
    assert all(one.forbidden == 0 for one in found.routing)


# ---- planted changes -----------------------------------------------------------------------------


def interleaved(heads):
    """Permute each head's columns as a converter between pairs of rotary positions does."""
    order = np.arange(TINY.head_dim).reshape(2, -1).T.reshape(-1)
    return heads.reshape(len(heads), TINY.num_heads, -1)[..., order].reshape(heads.shape)


def zeroed(place):
    def change(tensor):
        tensor[place] = 0
        return tensor

    return change


PLANTED = {
    "an expert is zero": (
        "decoder/layers_1/mlp/expert/wo/kernel",
        zeroed(5),
        "decoder/layers_1/mlp",
    ),
    "a later one": ("decoder/layers_3/mlp/expert/wi_1/kernel", zeroed(0), "decoder/layers_3/mlp"),
    "gate halves": ("decoder/layers_0/mlp/wi_0/kernel", halves, "decoder/layers_0/mlp"),
    "of the extra": (
        "decoder/layers_1/extra_mlp/wi_0/kernel",
        halves,
        "decoder/layers_1/extra_mlp",
    ),
    "of the experts": (
        "decoder/layers_3/mlp/expert/wi_0/kernel",
        halves,
        "decoder/layers_3/mlp",
    ),
    "attention norm": (
        "decoder/layers_2/pre_self_attention_layer_norm/scale",
        lambda x: x * 1.01,
        "decoder/layers_2/self_attention",
    ),
    "router's norm": ("decoder/layers_1/pre_mlp_layer_norm/scale", lambda x: x * 1.001, ROUTER_1),
    "last norm": ("decoder/decoder_norm/scale", lambda x: x * 1.001, "decoder/decoder_norm"),
    "router rolled": (f"{ROUTER_1}/w/kernel", lambda x: np.roll(x, 1, axis=1), ROUTER_1),
    "an embedding": ("token_embedder/embedding", zeroed(159), "token_embedder"),
    "a head's column": ("decoder/logits_dense/kernel", zeroed((..., 159)), "logits"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_change_is_named_where_it_begins(asked, case):
    name, change, first = PLANTED[case]
    found = compare(Side(WEIGHTS), Side(changed(name, change)), TINY, asked)
    assert found.verdict == "differs"
    assert found.first == first
    assert found.findings[0] == f"the forward passes part first at {first}"


def test_a_rotary_permutation_shows_in_attention_and_nothing_before_it(asked):
    wrong = dict(WEIGHTS)
    for name in ("query", "key"):
        path = f"decoder/layers_2/self_attention/{name}/kernel"
        wrong[path] = interleaved(WEIGHTS[path])
    found = compare(Side(WEIGHTS), Side(wrong), TINY, asked)
    assert found.verdict == "differs"
    assert found.first == "decoder/layers_2/self_attention"
    assert all(not one.over for one in found.activations if "layers_1" in one.name)
    assert all(quarter is not None and quarter[0] > 0 for quarter in found.logits.quarters)


def test_a_router_that_chooses_wrongly_is_named_itself(asked, monkeypatch):
    run = sides.Model.run

    def other(self, ids, **options):
        found = run(self, ids, **options)
        if self.label == "B":
            found = replace(
                found, chosen={i: (x[..., ::-1], k) for i, (x, k) in found.chosen.items()}
            )
        return found

    monkeypatch.setattr(sides.Model, "run", other)
    found = compare(Side(WEIGHTS), Side(WEIGHTS), TINY, asked, same_weights=True)
    assert found.verdict == "differs"
    assert found.first == "decoder/layers_1/mlp/router"
    assert found.routing[0].equal == 0
    assert found.routing[0].forbidden > 0
    assert found.routing[1].equal == 1  # asked what it would choose behind A's decisions
    assert found.modes == {"forced": len(asked)}


# ---- casts and dialects --------------------------------------------------------------------------


def test_a_cast_holds_when_it_is_declared_and_differs_when_not(asked):
    b = Side(narrowed(WEIGHTS))
    declared = compare(Side(WEIGHTS), b, TINY, asked, cast="bfloat16")
    assert declared.verdict == "holds", declared.findings
    found = compare(Side(WEIGHTS), b, TINY, asked)
    assert found.verdict == "differs"
    assert found.first == "token_embedder"


def test_a_cast_of_some_tensors_excuses_those_alone(asked):
    table, head = "token_embedder/embedding", "decoder/logits_dense/kernel"
    of_head = WEIGHTS | {head: narrowed(WEIGHTS)[head]}
    assert (
        compare(Side(WEIGHTS), Side(of_head), TINY, asked, cast={head: "bfloat16"}).verdict
        == "holds"
    )
    found = compare(Side(WEIGHTS), Side(of_head), TINY, asked, cast={table: "float32"})
    assert (found.verdict, found.first) == ("differs", "logits")


def test_a_declared_cast_does_not_hide_a_change(asked):
    wrong = changed("decoder/layers_2/mlp/wi_0/kernel", halves)
    found = compare(Side(WEIGHTS), Side(narrowed(wrong)), TINY, asked, cast="bfloat16")
    assert (found.verdict, found.first) == ("differs", "decoder/layers_2/mlp")


def test_right_weights_in_another_dialect_differ(asked):
    b = Side(WEIGHTS, dialect="torch_port")
    found = compare(Side(WEIGHTS), b, TINY, asked, same_weights=True)
    assert found.verdict == "differs"
    assert found.first == "decoder/layers_1/mlp/router"
    assert found.findings[0].startswith("the weights are right and the forward differs")
    assert any("kept by one model and dropped by the other" in one for one in found.findings)
    assert found.routing[0].equal == 1
    assert found.routing[0].equal_kept < 1
    assert compare(b, b, TINY, asked).verdict == "holds"


def test_a_pass_that_is_refused_differs():
    wrong = changed("decoder/layers_2/mlp/wo/kernel", lambda x: x * np.inf)
    found = compare(Side(WEIGHTS), Side(wrong), TINY)
    assert found.verdict == "differs"
    assert found.findings[0].startswith("the forward pass of B is refused")
    json.dumps(found.as_dict(), allow_nan=False)


def test_an_unknown_arithmetic_or_implementation_is_refused(asked):
    with pytest.raises(UsageError, match="dtype of B"):
        compare(Side(WEIGHTS), Side(WEIGHTS, dtype="float16"), TINY, asked)
    with pytest.raises(UsageError, match="reference or production"):
        compare(Side(WEIGHTS), Side(WEIGHTS, implementation="other"), TINY, asked)


# ---- what was not exercised ----------------------------------------------------------------------


def test_an_expert_that_no_row_reaches_is_incomplete():
    weights = drawn(ONE_CHOICE)
    name = f"{ROUTER_1}/w/kernel"
    # Between two others it is never the best: its logit lies between theirs.
    weights[name][:, 3] = (weights[name][:, 0] + weights[name][:, 1]) / 2
    found = compare(Side(weights), Side(weights), ONE_CHOICE)
    assert found.verdict == "incomplete"
    assert found.findings == ("expert 3 of layer 1 was never reached",)
    wrong = weights | {"decoder/decoder_norm/scale": weights["decoder/decoder_norm/scale"] * 2}
    assert compare(Side(weights), Side(wrong), ONE_CHOICE).verdict == "differs"


def test_short_rows_alone_are_incomplete():
    asked = (Probe(np.arange(96, dtype=np.int32).reshape(6, 16) % 160, "short"),)
    found = compare(Side(WEIGHTS), Side(WEIGHTS), TINY, asked)
    assert found.verdict == "incomplete"
    assert "the longest row has 16 positions, the model takes 128" in found.findings
    assert any("part 4 of 4" in one for one in found.findings)
