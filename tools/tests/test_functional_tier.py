"""The functional tier: the same function holds, every planted change is named where it begins."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from openmoe_conformance.outcome import UsageError
from openmoe_reference.initialisation import initialise
from openmoe_spec.config import BASE, LARGE, PUBLISHED, Configuration
from openmoe_spec.parameters import sparse_layers
from openmoe_spec.records import Decision
from openmoe_tools.checkpoints.containers import opening
from openmoe_tools.checkpoints.containers.stored import Memory
from openmoe_tools.checkpoints.function import functional, probes, sides
from openmoe_tools.checkpoints.function.functional import compare
from openmoe_tools.checkpoints.function.probes import Probe
from openmoe_tools.checkpoints.function.sides import Recorded, Recording, Side

TINY = Configuration(
    name="tiny",
    num_layers=4,
    num_moe_layers=2,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_experts=8,
    vocabulary_size=160,
    max_length=128,
)
ONE_CHOICE = replace(TINY, num_layers=2, num_moe_layers=1, num_experts=4, num_selected_experts=1)
ROUTER_1 = "decoder/layers_1/mlp/router/router_weights"


def drawn(configuration, seed=0):
    weights = initialise(configuration, np.random.default_rng(seed))
    # Fresh routers hardly prefer anybody, and fresh queries and keys hardly see a position.
    spread = {"router_weights": 20, "query": 6, "key": 2}
    for name in weights:
        for part, factor in spread.items():
            if f"/{part}/" in name:
                weights[name] = weights[name] * np.float32(factor)
    return weights


WEIGHTS = drawn(TINY)


@pytest.fixture(scope="module")
def asked():
    return functional.prepare(Side(WEIGHTS), TINY)


def changed(name, change):
    """Return the weights with one tensor changed in place of a copy."""
    tensor = WEIGHTS[name].copy()
    return WEIGHTS | {name: np.asarray(change(tensor), np.float32)}


def narrowed(weights):
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}


def record(side, configuration, asked):
    """Return what a model of one's own would print."""
    model = sides.Model.of("B", side, configuration)
    made = []
    for ids in (one.ids for one in asked):
        found = model.run(ids)
        rows = [found.logits(row, slice(0, ids.shape[1])) for row in range(len(ids))]
        named = sides.with_hidden(found, configuration)
        states = [named[f"hidden_states[{i}]"] for i in range(configuration.num_layers + 1)]
        made.append(Recording(ids, np.stack(rows), np.stack(states)))
    return Recorded(tuple(made))


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


def halves(matrix):
    return np.roll(matrix, matrix.shape[-1] // 2, axis=-1)


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


# ---- recordings ----------------------------------------------------------------------------------


def test_recorded_logits_of_the_same_function_hold_from_a_file(asked, tmp_path):
    probes.write(tmp_path / "asked.npz", asked)
    with np.load(tmp_path / "asked.npz") as archive:
        arrays = dict(archive)
    assert [arrays[f"input_ids_{i}"].shape for i in range(len(asked))] == [
        one.ids.shape for one in asked
    ]
    for i, one in enumerate(record(Side(WEIGHTS), TINY, asked).recordings):
        arrays |= {f"logits_{i}": one.logits, f"hidden_states_{i}": one.hidden_states}
    np.savez(tmp_path / "answered.npz", **arrays)
    b = sides.read_recorded(tmp_path / "answered.npz")
    found = compare(Side(WEIGHTS), b, TINY)
    assert found.verdict == "holds", found.findings
    assert found.modes == {"recorded": len(asked)}
    assert [one.name for one in found.activations] == [f"hidden_states[{i}]" for i in range(5)]
    assert found.routing == ()


def test_recorded_logits_of_the_port_differ(asked):
    b = record(Side(WEIGHTS, dialect="torch_port"), TINY, asked)
    found = compare(Side(WEIGHTS), b, TINY, same_weights=True)
    assert (found.verdict, found.first) == ("differs", "hidden_states[2]")
    alone = Recorded(tuple(replace(one, hidden_states=None) for one in b.recordings))
    found = compare(Side(WEIGHTS), alone, TINY, same_weights=True)
    assert (found.verdict, found.first) == ("differs", "logits")
    assert compare(Side(WEIGHTS, dialect="torch_port"), alone, TINY).verdict == "holds"


def test_rows_that_end_in_padding_are_compared_up_to_it(asked):
    ids = asked[2].ids.copy()
    ids[1, 20:] = 0
    b = record(Side(WEIGHTS), TINY, (Probe(ids, "padded"),))
    b.recordings[0].logits[1, 20:] = 7  # a port may print anything there
    found = compare(Side(WEIGHTS), b, TINY)
    assert found.tokens == ids.size - (ids.shape[1] - 20)
    assert found.first is None
    assert found.verdict == "incomplete"  # a short row alone


def test_numbers_that_are_not_finite_differ_and_stay_json(asked):
    b = record(Side(WEIGHTS), TINY, asked)
    b.recordings[1].logits[0, 3, 5] = np.nan
    b.recordings[0].hidden_states[2, 0, 3, 5] = np.inf
    found = compare(Side(WEIGHTS), b, TINY)
    assert (found.verdict, found.first) == ("differs", "hidden_states[2]")
    assert f"the logits of 1 of {found.tokens} tokens are no finite numbers" in found.findings
    assert any("holds values that are not finite" in one for one in found.findings)
    assert np.isfinite(found.logits.maximum)
    made = found.as_dict()
    json.dumps(made, allow_nan=False)
    assert made["activations"][2]["relative_error"] is None


def test_a_pass_that_is_refused_differs():
    wrong = changed("decoder/layers_2/mlp/wo/kernel", lambda x: x * np.inf)
    found = compare(Side(WEIGHTS), Side(wrong), TINY)
    assert found.verdict == "differs"
    assert found.findings[0].startswith("the forward pass of B is refused")
    json.dumps(found.as_dict(), allow_nan=False)


def test_near_ties_excuse_a_recording_and_leave_it_incomplete(asked):
    """Two experts are equal, and the recorded model prefers the other one by a rounding error."""
    equal, other = dict(WEIGHTS), dict(WEIGHTS)
    kernel = WEIGHTS[f"{ROUTER_1}/w/kernel"].copy()
    kernel[:, 3] = kernel[:, 2]
    equal[f"{ROUTER_1}/w/kernel"] = kernel
    moved = kernel.copy()
    moved[:, 3] *= 1 + np.float32(2e-7)
    other[f"{ROUTER_1}/w/kernel"] = moved
    a = Side(equal)
    found = compare(a, record(Side(other), TINY, asked), TINY)
    assert found.verdict == "incomplete"
    assert 0 < found.judged < found.tokens
    assert found.first is None
    assert any("near-ties" in one for one in found.findings)
    forced = compare(a, Side(other), TINY, asked)
    assert forced.first is None
    assert forced.modes["forced"] > 0
    assert forced.judged == forced.tokens
    assert forced.logits_free.maximum > 100 * forced.logits_allowed


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "must hold input_ids"),
        ({"input_ids": np.zeros(3, np.int32)}, "must be integers"),
        ({"input_ids": np.zeros((1, 3), np.int32)}, "got nothing"),
        (
            {"input_ids": np.zeros((1, 3), np.int32), "logits": np.zeros((1, 2, 160), np.float32)},
            "must be floats",
        ),
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path, arrays, words):
    path = tmp_path / "recorded.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=words):
        sides.read_recorded(path)


def test_what_does_not_fit_the_model_is_refused(asked, tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("absent.npz", "array.npy", "cut.npz"):
        with pytest.raises(UsageError, match="is no archive"):
            sides.read_recorded(tmp_path / name)
    ids = np.zeros((1, 3), np.int32)
    for one, words in (
        (Recording(ids + 160, np.zeros((1, 3, 160))), "0..159"),
        (Recording(ids + np.int64(2**32), np.zeros((1, 3, 160))), "0..159"),
        (Recording(ids, np.zeros((1, 3, 161))), "160 columns"),
        (Recording(np.zeros((1, 129), np.int32), np.zeros((1, 129, 160))), "longer than 128"),
        (Recording(ids, np.zeros((1, 3, 160)), np.zeros((4, 1, 3, 16))), "hidden_states"),
    ):
        with pytest.raises(UsageError, match=words):
            compare(Side(WEIGHTS), Recorded((one,)), TINY)
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


def test_drawn_rows_go_on_until_experts_are_reached_or_the_budget_is_spent():
    layers = sparse_layers(TINY.num_layers, TINY.num_moe_layers)
    numbers, calls = iter(range(100)), []

    def decide(ids):
        calls.append(ids)
        one, groups = next(numbers), 8
        shape = (groups, ids.size // groups, 1)
        expert = np.full(shape, one // 2 % 8, np.int32)  # every second batch has nothing new
        decision = Decision(expert, expert * 0.5, expert * 0, expert >= 0, 4)
        return dict.fromkeys(layers, decision)

    given = probes.probes(TINY)
    made = probes.extend(given, decide, TINY, budget=10**6)
    assert len(calls) == 15  # the eighth expert comes with the fifteenth batch
    assert len(made) == 3 + 6
    assert made[:3] == given
    numbers, calls = iter(range(100)), []
    spent = sum(one.ids.size for one in given)
    assert len(probes.extend(given, decide, TINY, budget=spent + 3 * 256 + 255)) == 3 + 1
    assert len(calls) == 3 + 3


@pytest.mark.parametrize("configuration", [TINY, ONE_CHOICE, BASE, replace(TINY, max_length=9)])
def test_rows_begin_with_the_start_token_and_hold_it_nowhere_else(configuration):
    made, again = probes.probes(configuration), probes.probes(configuration)
    assert len(made) == 3
    for one, other in zip(made, again, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert one.ids.dtype == np.int32
        assert (one.ids[:, 0] == 0).all()
        assert (one.ids[:, 1:] > 0).all()
        assert one.ids.max() < configuration.vocabulary_size
    assert made[0].ids.shape == (1, min(configuration.max_length, 2048))
    coverage = probes.cover([(one.ids, {}) for one in made], configuration)
    assert all(used >= min(size, 63) for used, size in coverage.regions.values())


def test_released_sizes_have_umt5s_regions_and_large_models_no_long_row():
    for one in PUBLISHED.values():
        regions = probes.regions(one.vocabulary_size)
        assert regions["extra ids"] == (256_000, 256_300)
        assert regions["padding rows"] == (256_300, 256_384)
        assert sum(stop - start for start, stop in regions.values()) == 256_383
    made = probes.probes(LARGE)
    assert max(one.ids.shape[1] for one in made) == 64
    lacking = probes.cover([(one.ids, {}) for one in made], LARGE).lacking()
    assert "the longest row has 64 positions, the model takes 2048" in lacking
