"""Routing that was recorded elsewhere: read exactly as it was recorded, or refused with its place."""

from __future__ import annotations

import base64
import json
import math

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from openmoe_conformance.outcome import UsageError
from openmoe_reference import audit_measures, routing
from openmoe_tools.audit import exporting, folder, importing
from openmoe_tools.audit.counting.layout import FIXED_POINT, SQUARES_POINT, Sizes
from openmoe_tools.audit.counting.routed import ORDER, SELECTION
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.importing import laying
from openmoe_tools.audit.importing.recordings import Options
from openmoe_tools.audit.trace import reading, writing

N, L, E, K = 50, 3, 8, 2
LENGTHS = [20, 1, 29]


def joined(imported):
    """Return all tokens as one, whose parts come in whole rows."""
    found, last = None, -1
    for one in imported.routed():
        assert one.row[0] > last
        last = int(one.row[-1])
        found = reading.joined(found, one)
    return found


def drawn_logits(seed=0, experts=E):
    return np.random.default_rng(seed).normal(size=(L, N, experts)).astype(np.float32)


def chosen(logits, k=K):
    """Return the choices [N, L, K] of logits without ties, their probabilities, and all of these."""
    probability = np.exp(logits.astype(np.float64))
    probability /= probability.sum(axis=-1, keepdims=True)
    order = np.argsort(-logits, axis=-1)[..., :k]
    return (
        order.transpose(1, 0, 2),
        np.take_along_axis(probability, order, axis=-1).transpose(1, 0, 2),
        probability,
    )


def drawn_experts(seed=0, experts=E, k=K):
    return chosen(drawn_logits(seed, experts), k)[0]


def refused(form, paths, options=None):
    """Return the line with which an import is refused, before anything is made of it."""
    paths = paths if isinstance(paths, list) else [paths]
    with pytest.raises(UsageError) as found:
        importing.open_import(form, paths, options)
    assert "\n" not in str(found.value)
    return str(found.value)


# ---- router logits ---------------------------------------------------------------------------------


def logits_files(path, logits):
    """Write logits in each of the forms; return the files."""
    layers = {f"layer_{m}": one for m, one in enumerate(logits)}
    np.savez(path / "layers.npz", **layers)
    np.savez(path / "whole.npz", router_logits=logits)
    np.save(path / "whole.npy", logits)
    save_file(layers, path / "layers.safetensors")
    save_file({"router_logits": logits}, path / "whole.safetensors")
    return sorted(path.iterdir())


def test_choices_gates_margins_and_sums_follow_from_logits(tmp_path):
    logits = drawn_logits()
    expert, gate, probability = chosen(logits)
    ordered = -np.sort(-logits, axis=-1)
    files = logits_files(tmp_path, logits)
    assert len(files) == 5
    for path in files:
        found = importing.open_import("router_logits", [path], Options(choices=K))
        assert (found.layers, found.experts, found.choices, found.tokens) == ((0, 1, 2), E, K, N)
        assert found.recorded == ("margins", "gates", "probabilities")
        routed = joined(found)
        assert np.array_equal(routed.expert, expert)
        np.testing.assert_allclose(routed.gate, gate, rtol=1e-6)
        for place, margin in (
            (SELECTION, ordered[..., K - 1] - ordered[..., K]),
            (ORDER, ordered[..., 0] - ordered[..., 1]),
        ):
            assert np.array_equal(routed.margin[place], audit_measures.margin_codes(margin).T)
        entropy = -(probability * np.log(probability)).sum(axis=-1) / math.log(E)
        assert np.array_equal(routed.entropy, np.floor(entropy * 64).astype(np.uint8).T)
        assert routed.dropped is routed.place is None
        sums = [one.sums for one in found.parts()]
        np.testing.assert_allclose(sums[0][0] / 2**FIXED_POINT, probability.sum(axis=1), rtol=1e-7)
        assert sums[0][1][:, 0].tolist() == [N] * L
        squares = np.log(np.exp(logits.astype(np.float64)).sum(axis=-1)) ** 2
        np.testing.assert_allclose(
            sums[0][1][:, 1] / 2**SQUARES_POINT, squares.sum(axis=1), rtol=1e-3
        )


def test_ties_go_to_the_lower_expert_and_halves_are_exact(tmp_path):
    logits = np.zeros((1, 2, E), np.float32)
    logits[0, 1, 6] = 0.5
    np.save(tmp_path / "a.npy", logits.astype(np.float16))
    save_file({"layer_0": logits[0].astype(ml_dtypes.bfloat16)}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        routed = joined(
            importing.open_import("router_logits", [tmp_path / name], Options(choices=3))
        )
        assert routed.expert[:, 0].tolist() == [[0, 1, 2], [6, 0, 1]]
        assert routed.margin[SELECTION].max() == 0


def test_every_expert_may_be_chosen(tmp_path):
    np.save(tmp_path / "a.npy", drawn_logits())
    found = importing.open_import("router_logits", [tmp_path / "a.npy"], Options(choices=E))
    assert "margins" not in found.recorded
    assert joined(found).margin is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(tmp_path, value):
    logits = drawn_logits()
    logits[1, 17, 3] = value
    for path in logits_files(tmp_path, logits):
        words = refused("router_logits", path, Options(choices=K))
        assert f"{path}: token 17, layer 1: holds NaN or infinity" in words


def test_logits_of_other_forms_are_refused(tmp_path):
    logits, options = drawn_logits(), Options(choices=K)

    def stored(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    assert "give --choices" in refused("router_logits", stored(router_logits=logits))
    assert "has layer_2 and no layer_1" in refused(
        "router_logits", stored(layer_0=logits[0], layer_2=logits[2]), options
    )
    assert "layer 1 is [50, 7], layer 0 [50, 8]" in refused(
        "router_logits", stored(layer_0=logits[0], layer_1=logits[1][:, :7]), options
    )
    assert "is [50, 8], not [layers" in refused(
        "router_logits", stored(router_logits=logits[0]), options
    )
    assert "not [tokens, experts]" in refused("router_logits", stored(layer_0=logits), options)
    assert "with some of both" in refused("router_logits", stored(layer_0=logits[0][:0]), options)
    assert "none is named router_logits" in refused(
        "router_logits", stored(a=logits, b=logits), options
    )
    assert "not numbers" in refused("router_logits", stored(layer_0=logits[0].astype(str)), options)
    assert "--choices 9: must be 1 to 8" in refused(
        "router_logits", stored(router_logits=logits), Options(choices=9)
    )
    assert "--experts 9: " in refused(
        "router_logits", stored(router_logits=logits), Options(choices=K, experts=9)
    )
    assert "--layers 4: " in refused(
        "router_logits", stored(router_logits=logits), Options(choices=K, layers=4)
    )
    np.savez(tmp_path / "b.npz", router_logits=logits[:2])
    words = refused("router_logits", [stored(router_logits=logits), tmp_path / "b.npz"], options)
    assert "b.npz: tells of [2, 2] layers and choices" in words


# ---- routed experts --------------------------------------------------------------------------------


def engine(path, expert, **more):
    """Write what an engine returns as JSON: base64 of int32."""
    content = base64.b64encode(np.ascontiguousarray(expert, "<i4").tobytes()).decode()
    path.write_text(json.dumps({"routed_experts": content, "shape": list(expert.shape)} | more))
    return path


def test_experts_of_requests_come_as_they_are(tmp_path):
    expert = drawn_experts()
    np.save(tmp_path / "a.npy", expert.astype(np.int32))
    np.savez(tmp_path / "b.npz", routed_experts=expert.astype(np.uint8), text=np.zeros(3))
    engine(tmp_path / "c.json", expert)
    engine(tmp_path / "d.json", expert, shape=None)
    (tmp_path / "e.json").write_text(json.dumps({"routed_experts": expert.tolist()}, indent=1))
    told = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "f.json").write_text(json.dumps({"meta_info": told}))
    for path in sorted(tmp_path.iterdir()):
        options = Options(experts=E, layers=L, choices=K)
        found = importing.open_import("routed_experts", [path], options)
        routed = joined(found)
        assert np.array_equal(routed.expert, expert), path
        assert found.recorded == ("positions", "documents")
        assert routed.position.tolist() == list(range(N))
        assert (found.length, found.vocabulary, found.documents) == (N, 1, ("imported/0",))
        assert routed.gate is routed.margin is routed.dropped is routed.entropy is None


def test_each_request_is_a_document(tmp_path):
    expert = drawn_experts()
    with (tmp_path / "a.jsonl").open("w") as file:
        for part in np.split(expert, np.cumsum(LENGTHS)[:-1]):
            file.write(json.dumps({"routed_experts": part.tolist()}) + "\n\n")
    engine(tmp_path / "b.json", expert[:5])
    paths = [tmp_path / "a.jsonl", tmp_path / "b.json"]
    found = importing.open_import("routed_experts", paths, Options(experts=E, slice="chat"))
    assert found.documents == ("chat/0", "chat/1", "chat/2", "chat/3")
    assert (found.slices, found.document_slices) == (("chat",), (0, 0, 0, 0))
    routed = joined(found)
    assert np.array_equal(routed.expert, np.concatenate([expert, expert[:5]]))
    assert routed.row.tolist() == routed.document.tolist()
    assert routed.position.tolist() == [i for n in (*LENGTHS, 5) for i in range(n)]
    assert set(found.files) == set(map(str, paths))


@pytest.mark.parametrize("value", [-1, 8, 255, 65535])
def test_what_recorders_leave_is_no_expert(tmp_path, value):
    expert = drawn_experts().astype(np.int64)
    expert[31, 2, 1] = value
    np.save(tmp_path / "a.npy", expert)
    words = refused("routed_experts", tmp_path / "a.npy", Options(experts=E))
    assert f"a.npy: token 31, layer 2: choice 1 is {value}, and there are 8 experts" in words


def test_expert_255_of_256_is_one(tmp_path):
    expert = drawn_experts()
    expert[31, 2, 1] = 255
    np.save(tmp_path / "a.npy", expert)
    found = importing.open_import("routed_experts", [tmp_path / "a.npy"], Options(experts=256))
    assert joined(found).expert[31, 2, 1] == 255
    expert[31, 2, 0] = 255  # a slot that was not filled has it in all places
    np.save(tmp_path / "a.npy", expert)
    words = refused("routed_experts", tmp_path / "a.npy", Options(experts=256))
    assert "token 31, layer 2: expert 255 is named twice" in words


def test_more_than_256_experts_are_kept(tmp_path):
    expert = drawn_experts(3, 512, 4)
    assert expert.max() > 256
    np.save(tmp_path / "a.npy", expert.astype(np.int16))
    found = importing.open_import("routed_experts", [tmp_path / "a.npy"], Options(experts=512))
    assert np.array_equal(joined(found).expert, expert)
    assert joined(found).expert.dtype == np.uint16


def test_experts_of_other_forms_are_refused(tmp_path):
    expert, options = drawn_experts(), Options(experts=E)

    def told(**value):
        (tmp_path / "a.json").write_text(json.dumps(value))
        return tmp_path / "a.json"

    def array(values):
        np.save(tmp_path / "a.npy", values)
        return tmp_path / "a.npy"

    def words(path, options=options):
        return refused("routed_experts", path, options)

    assert "give --experts" in words(array(expert), Options())
    assert "not integers [tokens, layers, choices]" in words(array(expert[0]))
    assert "not integers [tokens, layers, choices]" in words(array(expert.astype(float)))
    assert "has no token" in words(array(expert[:0]))
    assert "has no layer" in words(array(expert[:, :0]))
    assert "--choices 3: " in words(array(expert), Options(experts=E, choices=3))
    assert "has no routed_experts" in words(told(experts=[]))
    assert "is no base64" in words(told(routed_experts="?", shape=[1, 1, 1]))
    assert "has no shape" in words(told(routed_experts="AAAA"))
    assert "has no shape" in words(told(routed_experts="AAAA", shape=[1, "x", 1]))
    assert "3 bytes of int32 are not of shape [1, 1, 1]" in words(
        told(routed_experts="AAAA", shape=[1, 1, 1])
    )
    assert "dtype 'float8' is none of" in words(told(routed_experts="AAAA", dtype="float8"))
    assert "dtype [] is none of" in words(told(routed_experts="AAAA", dtype=[]))
    assert "is no array of numbers" in words(told(routed_experts=[[[1, 2]], [[1]]]))
    assert "is no array of numbers" in words(told(routed_experts=[[[1 << 70]]]))
    assert "not integers" in words(told(routed_experts=[[["a", "b"]]]))
    (tmp_path / "b.json").write_text("[1, 2]")
    assert "is no JSON object" in words(tmp_path / "b.json")
    (tmp_path / "b.json").write_text('{"routed_experts": ')
    assert "b.json: cannot be read" in words(tmp_path / "b.json")
    (tmp_path / "b.json").write_text(json.dumps({"routed_experts": [[[0, 1]]]}) + "\n{")
    assert "b.json, line 2: is no JSON" in words(tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes(b'{"\xff": 1}')
    assert "b.json: cannot be read" in words(tmp_path / "b.json")


def test_files_of_strangers_are_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", routed_experts=np.array([Trap()], object))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "b.npy").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 40)
    for path in sorted(tmp_path.iterdir()):
        assert f"{path}: cannot be read" in refused("routed_experts", path, Options(experts=E))
    (tmp_path / "c.pt").write_bytes(b"")
    assert "c.pt: is none of" in refused("router_logits", tmp_path / "c.pt", Options(choices=K))


# ---- the port's dump -------------------------------------------------------------------------------


def dump(path, logits, capacity, **changes):
    """Write what the port's layer dumps for calls [calls, N, E] of a layer; return what was dropped."""
    dropped = []
    with path.open("w") as file:
        for one in logits:
            probability = routing.softmax(one[None])
            made = routing.decide(probability, k=K, capacity=capacity)
            score = np.zeros((*one.shape, capacity), np.float32)
            mask = np.zeros(score.shape, bool)
            tokens, ranks = np.nonzero(made.kept[0])
            places = (tokens, made.expert_index[0, tokens, ranks], made.position[0, tokens, ranks])
            score[places] = made.gate[0, tokens, ranks]
            mask[places] = True
            told = {
                "gate_output": one.tolist(),
                "used_capacity": mask.sum(axis=(0, 2)).tolist(),
                "dispatch_mask": mask.tolist(),
                "combine_score": score.tolist(),
            }
            told = {name: value for name, value in (told | changes).items() if value is not None}
            file.write(json.dumps(told) + "\n")
            dropped.append(~made.kept[0])
    return np.concatenate(dropped)


def test_the_ports_dump_is_read_with_its_drops(tmp_path):
    logits = np.random.default_rng(2).normal(size=(L, 2, 25, E)).astype(np.float32)
    paths = [tmp_path / f"layer_{m}.json" for m in range(L)]
    dropped = np.stack(
        [dump(path, one, 5) for path, one in zip(paths, logits, strict=True)], axis=1
    )
    assert 0 < dropped.sum() < dropped.size
    assert dropped.all(axis=2).any()  # tokens without any slot are known by gate_output
    found = importing.open_import("port", paths, Options(choices=K))
    assert (found.rules, found.experts, found.tokens) == (("torch_port",), E, N)
    assert found.recorded == ("drops", "margins", "gates", "probabilities")
    routed = joined(found)
    expert, gate, _ = chosen(logits.reshape(L, N, E))
    assert np.array_equal(routed.expert, expert)
    np.testing.assert_allclose(routed.gate, gate, rtol=1e-5)
    assert np.array_equal(routed.dropped, dropped[None])


def test_probabilities_in_place_of_logits_give_the_same_choices(tmp_path):
    logits = drawn_logits()[:1]
    probability = routing.softmax(logits)
    dropped = dump(tmp_path / "a.json", logits, 6, gate_output=probability[0].tolist())
    found = importing.open_import("port", [tmp_path / "a.json"], Options())
    routed = joined(found)
    expert, gate, _ = chosen(logits)
    assert np.array_equal(routed.expert, expert)
    assert np.array_equal(routed.dropped[0, :, 0], dropped)
    np.testing.assert_allclose(routed.gate, gate, rtol=1e-5)
    assert "probabilities" not in found.recorded  # sums of logits are not known
    ordered = -np.sort(-logits[0], axis=-1)
    codes = audit_measures.margin_codes(ordered[:, 1] - ordered[:, 2])
    assert np.abs(routed.margin[SELECTION, :, 0].astype(int) - codes).max() <= 1


def test_slots_tell_the_choices_where_nothing_was_dropped(tmp_path):
    logits = drawn_logits()[:1]
    dump(tmp_path / "a.json", logits, N, gate_output=None)
    found = importing.open_import("port", [tmp_path / "a.json"], Options())
    assert found.recorded == ("drops", "gates")
    routed = joined(found)
    expert, gate, _ = chosen(logits)
    assert np.array_equal(routed.expert, expert)
    np.testing.assert_allclose(routed.gate, gate, rtol=1e-5)
    assert not routed.dropped.any()


def test_slots_do_not_tell_the_choices_of_dropped_tokens(tmp_path):
    logits = drawn_logits()[:1]
    dropped = dump(tmp_path / "a.json", logits, 6, gate_output=None)
    token = int(np.flatnonzero(dropped.any(axis=1))[0])
    words = refused("port", tmp_path / "a.json")
    assert f"token {token}, layer 0: has {2 - dropped[token].sum()} slots for 2 choices" in words
    assert "the dump does not tell the choices of dropped tokens; gate_output [N, E] does" in words


def test_a_near_tie_is_as_the_port_ordered_it(tmp_path):
    logits = np.full((1, 1, E), -3, np.float32)
    logits[0, 0, 2] = 1
    logits[0, 0, [5, 6]] = np.float32(0.5)
    logits[0, 0, 6] -= np.float32(4e-7)
    other = logits.copy()
    other[0, 0, [5, 6]] = logits[0, 0, [6, 5]]
    dump(tmp_path / "a.json", other, 4, gate_output=logits[0].tolist())
    routed = joined(importing.open_import("port", [tmp_path / "a.json"]))
    assert routed.expert[0, 0].tolist() == [2, 6]
    assert not routed.dropped.any()


def test_dumps_of_other_forms_are_refused(tmp_path):
    logits = drawn_logits()[:1]
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    dump(path, logits, 6, dispatch_mask=None)
    assert "has no dispatch_mask" in refused("port", path)
    dump(path, logits, 6, combine_score=logits[0].tolist())
    assert "are not [N, E, C]; the port's kernel writes others" in refused("port", path)
    dump(path, logits, 6, gate_output=np.roll(logits[0], 1, axis=1).tolist())
    assert "which is none of its 2 choices by gate_output" in refused("port", path)
    broken = logits.copy()
    broken[0, 9, 1] = np.nan
    dump(path, logits, 6, gate_output=broken[0].tolist())
    assert "token 9, layer 0: holds NaN" in refused("port", path)
    dump(path, logits, 6)
    dump(other, np.concatenate([logits, logits]), 6)
    assert "a.json: has fewer calls than the other layers" in refused("port", [path, other])
    dump(other, logits[:, :20], 6)
    assert "is of [20, 2] choices of 8 experts" in refused("port", [path, other])
    path.write_text("")
    assert "has no token" in refused("port", path)
    mask = np.ones((1, 2, 2), bool)
    path.write_text(
        json.dumps({"dispatch_mask": mask.tolist(), "combine_score": (mask * 0.5).tolist()})
    )
    assert "token 0, layer 0: has two slots of one expert" in refused("port", path)


# ---- plain columns, and traces ---------------------------------------------------------------------


def columns(**changes):
    rng = np.random.default_rng(4)
    told = {
        "expert": drawn_experts().astype(np.int16),
        "token": rng.integers(100, size=N),
        "document": np.repeat([7, 3, 5], LENGTHS),
        "position": np.concatenate([np.arange(n) for n in LENGTHS]),
        "slice": np.repeat(["law", "code", "law"], LENGTHS),
        "dropped_t5x": rng.random((N, L, K)) < 0.2,
        "gate": rng.random((N, L, K)).astype(np.float16),
        "margin": rng.integers(256, size=(2, N, L)).astype(np.uint8),
    }
    return {name: value for name, value in (told | changes).items() if value is not None}


def stored(path, **changes):
    np.savez(path / "a.npz", **columns(**changes))
    return path / "a.npz"


def test_plain_columns_come_as_they_are(tmp_path):
    told = columns()
    found = importing.open_import("npz", [stored(tmp_path)], Options(experts=E, slice="x"))
    assert found.recorded == ("tokens", "positions", "documents", "drops", "margins", "gates")
    assert (found.slices, found.documents) == (("law", "code"), ("x/7", "x/3", "x/5"))
    assert (found.document_slices, found.rules) == ((0, 1, 0), ("t5x",))
    assert (found.vocabulary, found.length) == (int(told["token"].max()) + 1, 29)
    routed = joined(found)
    for name in ("expert", "token", "position", "gate", "margin"):
        assert np.array_equal(getattr(routed, name), told[name]), name
    assert np.array_equal(routed.dropped[0], told["dropped_t5x"])
    assert [found.slices[one] for one in routed.slice] == told["slice"].tolist()
    assert [routed.documents[one] for one in routed.document] == [
        f"x/{i}" for i in told["document"]
    ]
    assert routed.row.tolist() == np.repeat([0, 1, 2], LENGTHS).tolist()
    given = importing.open_import("npz", [stored(tmp_path)], Options(experts=E, vocabulary=500))
    assert given.vocabulary == 500


def test_what_is_not_known_is_not_made_up(tmp_path):
    unknown = dict.fromkeys(
        ("token", "document", "position", "slice", "dropped_t5x", "gate", "margin")
    )
    path = stored(tmp_path, **unknown)
    found = importing.open_import("npz", [path], Options(experts=E))
    assert (found.recorded, found.rules, found.length, found.vocabulary) == ((), (), 1, 1)
    routed = joined(found)
    assert routed.row.tolist() == list(range(N))  # no neighbours
    assert not routed.position.any()
    assert not routed.token.any()
    assert found.documents == ("imported/0",)
    # Positions alone tell rows, and not which documents they are of.
    position = columns()["position"]
    found = importing.open_import(
        "npz", [stored(tmp_path, **unknown | {"position": position})], Options(experts=E)
    )
    assert found.recorded == ("positions",)
    assert joined(found).row.tolist() == np.repeat([0, 1, 2], LENGTHS).tolist()
    # A row begins where it is said to.
    row = np.repeat([4, 9], [30, 20])
    found = importing.open_import(
        "npz", [stored(tmp_path, **unknown | {"row": row})], Options(experts=E)
    )
    assert joined(found).row.tolist() == np.repeat([0, 1], [30, 20]).tolist()
    assert joined(found).position.tolist() == [*range(30), *range(20)]


def test_plain_columns_of_other_forms_are_refused(tmp_path):
    options, told = Options(experts=E), columns()
    cases = {
        "has no array `expert`": {"expert": None},
        "token is [3], not [50]": {"token": np.arange(3)},
        "token must be whole numbers": {"token": np.ones(N)},
        "position must be whole numbers, none below 0": {"position": told["position"] - 1},
        "document must be numbers or texts": {"document": np.ones(N)},
        "dropped_t5x is int64 [50, 3, 2], not bool": {"dropped_t5x": np.zeros((N, L, K), int)},
        "dropped_t5x is bool [50, 3, 1]": {"dropped_t5x": told["dropped_t5x"][..., :1]},
        "'a__b' is no name of a capacity rule": {"dropped_a__b": told["dropped_t5x"]},
        "gate is [50, 3], not [50, 3, 2]": {"gate": told["gate"][..., 0]},
        "gates must be probabilities": {"gate": np.full((N, L, K), np.nan)},
        "margin is int64, not codes": {"margin": np.zeros((2, N, L), int)},
        "margin is [1, 50, 3], not [2, 50, 3]": {"margin": told["margin"][:1]},
        "position 4294967324 is too large": {"position": told["position"] + (1 << 32)},
    }
    for words, changes in cases.items():
        assert words in refused("npz", stored(tmp_path, **changes), options), words
    assert "give --experts" in refused("npz", stored(tmp_path))
    assert "cannot be" in refused("npz", stored(tmp_path), Options(experts=1))
    assert "--vocabulary 5: id " in refused(
        "npz", stored(tmp_path), Options(experts=E, vocabulary=5)
    )


def test_parquet_of_plain_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    told = columns()
    flat = {f"l{m}_e{r}": told["expert"][:, m, r] for m in range(L) for r in range(K)}
    gates = {f"l{m}_g{r}": told["gate"][:, m, r] for m in range(L) for r in range(K)}
    bits = (told["dropped_t5x"].reshape(N, -1) << np.arange(L * K)).sum(axis=1)
    names = {name: told[name] for name in ("token", "document", "position")}
    table = flat | gates | names | {"slice": told["slice"].tolist(), "dropped_t5x": bits}
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(table), path)
    options = Options(experts=E)
    routed = joined(importing.open_import("parquet", [path], options))
    expected = joined(importing.open_import("npz", [stored(tmp_path, margin=None)], options))
    for name in reading.FIELDS:
        assert np.array_equal(getattr(routed, name), getattr(expected, name)), name
    parquet.write_table(pa.table(table | {"token": [None, *told["token"][1:].tolist()]}), path)
    assert "column token has gaps" in refused("parquet", path, options)
    parquet.write_table(pa.table(table | {"dropped_t5x": bits - 100}), path)
    assert "not bits of whole numbers" in refused("parquet", path, options)
    del table["l1_e0"]
    parquet.write_table(pa.table(table), path)
    assert "has no column l1_e0" in refused("parquet", path, options)
    parquet.write_table(pa.table(names), path)
    assert "has no columns l0_e0" in refused("parquet", path, options)
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    assert "a.parquet: is no complete Parquet file" in refused("parquet", path, options)


def test_a_trace_comes_back_with_what_its_run_said(tmp_path):
    pytest.importorskip("pyarrow")
    source = importing.open_import("npz", [stored(tmp_path)], Options(experts=E))
    manifest = {
        "model": {
            "digest": "a" * 64,
            "layers": [2, 5, 8],
            "experts": E,
            "choices": K,
            "vocabulary_size": 100,
        },
        "tokenizer": None,
        "corpus": {"digest": "c" * 64, "slices": [{"name": one} for one in source.slices]},
        "recipe": {"length": source.length, "rules": [{"name": "t5x"}]},
        "recorded": ["positions", "documents", "drops", "gates"],
    }
    for more, recorded in (
        ([], ("positions", "documents", "drops")),
        (["gates", "order"], ("positions", "documents", "drops", "gates")),
    ):
        path = tmp_path / f"audit {len(more)}"
        with writing.TraceWriter(path / "trace", manifest, more=more) as writer:
            for one in source.routed():
                writer.add(one)
        for given in (path, path / "trace"):
            found = importing.open_import("parquet", [given])
            assert (found.layers, found.recorded) == ((2, 5, 8), recorded)
            assert found.manifest["model"]["digest"] == "a" * 64
            assert (found.documents, found.tokens) == (source.documents, N)
            ours, theirs = joined(found), joined(source)
            for name in ("row", "position", "token", "slice", "document", "expert", "dropped"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
            assert (ours.gate is None) == (ours.margin is None) == (not more)
    assert "one trace at a time" in refused("parquet", [path, path])
    assert "give none" in refused("parquet", [path], Options(experts=E))
    (path / "trace" / "part-00000.parquet").unlink()
    assert "holds no trace" in refused("parquet", [path])


# ---- ids and documents beside the files ------------------------------------------------------------


@pytest.fixture
def experts(tmp_path):
    np.save(tmp_path / "experts.npy", drawn_experts())
    return tmp_path / "experts.npy"


def kept(path, value):
    """Write a value as its file's name says."""
    if path.suffix == ".json":
        path.write_text(json.dumps(value if isinstance(value, list | dict) else value.tolist()))
    elif path.suffix == ".npz":
        np.savez(path, tokens=value, other=np.zeros(2))
    else:
        np.save(path, value)
    return path


@pytest.mark.parametrize("suffix", ["npy", "npz", "json"])
def test_ids_and_documents_are_put_beside_the_experts(tmp_path, experts, suffix):
    ids = np.random.default_rng(5).integers(60_000, size=N)
    tokens = kept(tmp_path / f"tokens.{suffix}", ids)
    lengths = kept(tmp_path / "lengths.json", LENGTHS)
    options = Options(experts=E, tokens=tokens, documents=lengths, slice="law")
    found = importing.open_import("routed_experts", [experts], options)
    assert found.recorded == ("tokens", "positions", "documents")
    assert (found.documents, found.vocabulary) == (("law/0", "law/1", "law/2"), ids.max() + 1)
    routed = joined(found)
    assert np.array_equal(routed.token, ids)
    assert routed.position.tolist() == [i for n in LENGTHS for i in range(n)]
    assert routed.document.tolist() == np.repeat([0, 1, 2], LENGTHS).tolist()
    assert set(found.files) == {str(one) for one in (experts, tokens, lengths)}
    assert (
        found.digest
        != importing.open_import("routed_experts", [experts], Options(experts=E)).digest
    )


def test_documents_may_have_names_and_slices(tmp_path, experts):
    told = [
        {"tokens": 20, "name": "first", "slice": "law"},
        {"tokens": 1, "slice": "code"},
        {"tokens": 29, "slice": "law"},
    ]
    path = kept(tmp_path / "documents.json", told)
    options = Options(experts=E, documents=path)
    found = importing.open_import("routed_experts", [experts], options)
    assert (found.documents, found.slices) == (("first", "code/1", "law/2"), ("law", "code"))
    assert joined(found).slice.tolist() == np.repeat([0, 1, 0], LENGTHS).tolist()
    kept(path, [told[0], told[1] | {"name": "first"}, told[2]])
    assert "names 'first' twice" in refused("routed_experts", experts, options)


def test_ids_and_documents_that_do_not_fit_are_refused(tmp_path, experts):
    def of_tokens(value, name="tokens.npy"):
        path = kept(tmp_path / name, value)
        return refused("routed_experts", experts, Options(experts=E, tokens=path))

    assert "has 51 ids, and the routing has 50 tokens" in of_tokens(np.arange(N + 1))
    assert "has 49 ids, and the routing has 50 tokens" in of_tokens(np.arange(N - 1))
    assert "id -1 is below 0" in of_tokens(np.arange(N) - 1)
    assert "not whole numbers [N]" in of_tokens(np.ones(N))
    assert "not whole numbers [N]" in of_tokens([[1, 2]], "tokens.json")
    assert "token 4294967296 is too large" in of_tokens(np.full(N, 1 << 32))
    assert "is no array of numbers" in of_tokens([[1], [1, 2]], "tokens.json")

    def of_documents(value, name="documents.json"):
        path = kept(tmp_path / name, value)
        return refused("routed_experts", experts, Options(experts=E, documents=path))

    assert "ends 30 tokens before the end of" in of_documents([20])
    assert "document 1 has 31 tokens, and" in of_documents([20, 31])
    assert "names 4 tokens more" in of_documents([50, 4])
    assert "0 is no document" in of_documents([50, 0])
    assert "-1 is no document" in of_documents(np.array([-1]), "documents.npy")
    assert "is no list of lengths" in of_documents({"tokens": 50})
    assert "is no document" in of_documents([{"tokens": 50, "name": 3}])
    assert "is no document" in of_documents([True] * N)


def test_requests_that_cannot_be_are_one_line(tmp_path, experts):
    assert "--format csv: is none of port, router_logits" in refused("csv", experts)
    assert "FILES: none are given" in refused("port", [])
    assert "nowhere.npy: does not exist" in refused("port", tmp_path / "nowhere.npy")
    gone = Options(experts=E, tokens=tmp_path / "gone.npy")
    assert "gone.npy: does not exist" in refused("routed_experts", experts, gone)


def test_long_recordings_come_in_parts_of_whole_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(laying, "TOKENS", 25)
    logits = drawn_logits()
    np.save(tmp_path / "a.npy", logits)
    lengths = kept(tmp_path / "lengths.json", LENGTHS)
    options = Options(choices=K, documents=lengths)
    parts = list(importing.open_import("router_logits", [tmp_path / "a.npy"], options).parts())
    assert [len(one.routed.row) for one in parts] == [21, 29]
    assert [one.sums is None for one in parts] == [False, True]  # the sums are of the whole file
    lengths.write_text(json.dumps([50]))
    parts = list(importing.open_import("router_logits", [tmp_path / "a.npy"], options).parts())
    assert [len(one.routed.row) for one in parts] == [50]


def test_what_is_imported_can_be_counted(tmp_path):
    options = Options(experts=E)
    found = importing.open_import("npz", [stored(tmp_path)], options)
    tables = Tables(
        Sizes(
            found.vocabulary,
            found.length,
            len(found.slices),
            len(found.layers),
            found.experts,
            found.choices,
            found.rules,
        )
    )
    for one in found.routed():
        tables.add(one)
    expert = columns()["expert"]
    load = np.stack([np.bincount(expert[:, m].reshape(-1), minlength=E) for m in range(L)])
    assert np.array_equal(exporting.load_table(tables), load)


# ---- loads for others ------------------------------------------------------------------------------


@pytest.fixture
def audited(tmp_path):
    """An audit's folder with the loads of one slice, and these."""
    tables = Tables(Sizes(10, 4, 1, L, E, K))
    counts = np.random.default_rng(6).integers(1000, size=(8, 1, L, E, K))
    tables.arrays["slice"][...] = counts
    path = tmp_path / "audit"
    path.mkdir()
    manifest = {"schema": folder.SCHEMA, "model": {"layers": [2, 5, 8]}}
    folder.write(path, manifest=manifest, tables=tables)
    return path, counts.sum(axis=(0, 1, 4))


def test_loads_are_written_as_balancers_read_them(tmp_path, audited, capsys):
    path, load = audited
    for suffix in ("npy", "csv", "json"):
        output = tmp_path / f"load.{suffix}"
        assert exporting.export(exporting.Request(path, output)) == 0
        assert "3 layers, 8 experts" in capsys.readouterr().out
    found = np.load(tmp_path / "load.npy")
    assert np.array_equal(found, load)
    assert (found.dtype, found.shape) == (np.int64, (L, E))
    lines = (tmp_path / "load.csv").read_text().splitlines()
    assert lines[0] == "layer," + ",".join(f"expert_{e}" for e in range(E))
    assert [line.partition(",")[0] for line in lines[1:]] == ["2", "5", "8"]
    assert np.array_equal([line.split(",")[1:] for line in lines[1:]], load.astype(str))
    told = json.loads((tmp_path / "load.json").read_text())
    assert (told["layers"], told["experts"], told["weight"]) == ([2, 5, 8], E, load.tolist())


def test_exports_that_cannot_be_are_refused(tmp_path, audited):
    path, _ = audited
    for folder_, output, words in (
        (path, tmp_path / "load.pt", r"must end in \.npy, \.csv, \.json"),
        (tmp_path / "nowhere", tmp_path / "load.npy", "is no folder of an audit"),
        (path, tmp_path / "nowhere" / "load.npy", "its folder does not exist"),
    ):
        with pytest.raises(UsageError, match=words):
            exporting.export(exporting.Request(folder_, output))
    folder.write(
        path,
        manifest={"schema": folder.SCHEMA, "model": {"layers": [2, 5, 8]}},
        tables=Tables(Sizes(10, 4, 1, L, E, K)),
    )
    with pytest.raises(UsageError, match="has counted no token"):
        exporting.export(exporting.Request(path, tmp_path / "load.npy"))
    assert not (tmp_path / "load.npy").exists()
