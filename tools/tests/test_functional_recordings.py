"""Models that cannot be run here: their recordings are compared with what the other model computes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import ROUTER_1, TINY, WEIGHTS

from openmoe_conformance.outcome import UsageError
from openmoe_tools.checkpoints.function import functional, probes, sides
from openmoe_tools.checkpoints.function.functional import compare
from openmoe_tools.checkpoints.function.probes import Probe
from openmoe_tools.checkpoints.function.sides import Recorded, Recording, Side


@pytest.fixture(scope="module")
def asked():
    return functional.prepare(Side(WEIGHTS), TINY)


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


def test_what_does_not_fit_the_model_is_refused(tmp_path):
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
