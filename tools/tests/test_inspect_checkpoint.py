"""`openmoe inspect` of checkpoints: what they are, what their shapes say, and what is odd in them."""

from __future__ import annotations

import json
import math
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from openmoe_reference.initialisation import initialise
from openmoe_spec import layouts, places
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.parameters import parameters
from openmoe_tools.checkpoints.containers.opening import of, open_checkpoint
from openmoe_tools.checkpoints.containers.regions import apply
from openmoe_tools.checkpoints.containers.stored import Memory
from openmoe_tools.checkpoints.contents import describing, statistics
from openmoe_tools.checkpoints.contents.anomalies import anomalies, looks_fresh
from openmoe_tools.checkpoints.contents.inferring import infer

SCHEMA = json.loads(
    Path(describing.__file__).with_name("contents.schema.json").read_text(encoding="utf-8")
)
FIELDS = {
    "num_layers": 4,
    "num_moe_layers": 2,
    "embed_dim": 112,
    "num_heads": 4,
    "head_dim": 24,
    "mlp_dim": 128,
    "num_experts": 4,
    "vocabulary_size": 300,
}
MODEL = Configuration(name="small", **FIELDS)
EMBEDDING, HEAD = "token_embedder/embedding", "decoder/logits_dense/kernel"
NORM = "decoder/layers_0/pre_mlp_layer_norm/scale"
EXPERT = "decoder/layers_1/mlp/expert/wi_1/kernel"


def fresh(seed=0):
    return initialise(MODEL, np.random.default_rng(seed))


def trained(seed=0):
    """Return weights that were drawn, grown unevenly and moved, as training does."""
    generator = np.random.default_rng(seed)
    moved = {}
    for name, value in fresh(seed).items():
        step = generator.standard_t(4, value.shape) * 0.3 * (value.std() or 0.5)
        moved[name] = (value * generator.uniform(0.8, 1.3) + step).astype(np.float32)
    return moved


def stored(tensors, layout):
    """Return tensors as a layout stores them."""
    made = {}
    placed = places.place(layouts.layout(layout), {n: one.shape for n, one in tensors.items()})
    for name, one in placed.items():
        for part in one.parts:
            value = tensors[name] if part.matrix is None else tensors[name][part.matrix]
            made[part.theirs] = np.ascontiguousarray(apply(part.operations, value))
    shapes = {name: value.shape for name, value in made.items()}
    assert shapes == places.stored_shapes(placed)
    return made


@pytest.fixture(scope="module")
def make():
    """What writes checkpoints of every kind."""
    for name in ("tensorstore", "msgpack"):
        pytest.importorskip(name)
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("checkpoint_files.py"))))


@pytest.fixture
def report(run, tmp_path, valid):
    """Return the JSON report of `openmoe inspect` with some arguments, and what it prints."""

    def call(*arguments):
        path = tmp_path / "contents.json"
        found = run("inspect", *arguments, "--json", path)
        assert found.code == 0, found.stderr
        made = json.loads(path.read_text(encoding="utf-8"))
        assert valid(made, SCHEMA)
        return made, found.stdout

    return call


@pytest.fixture
def folder(tmp_path):
    """Return a folder with trained weights by the names of PARAM-01."""
    path = tmp_path / "model"
    path.mkdir()
    save_file(trained(), path / "model.safetensors")
    return path


def told(tensors):
    """Return what is odd about tensors in memory, by cause."""
    found = {}
    checkpoint = of(Memory(tensors))
    for one in anomalies(statistics.summaries(checkpoint, jobs=2), [MODEL.head_dim]):
        found.setdefault(one.cause, []).append(one.text)
    return found


# ---- what a path is ----------------------------------------------------------------------------


def test_a_file_and_a_folder_of_tensors_are_a_checkpoint(report, folder):
    made, text = report(folder)
    assert (made["container"], made["layout"]["name"], made["step"]) == ("safetensors", "t5x", None)
    assert made["configuration"] is None
    assert made["published"] is None
    assert made["unknown"] == made["lacking"] == made["problems"] == []
    elements = sum(one.size for one in parameters(MODEL))
    wanted = {"parameters": elements, "bytes": 4 * elements, "dtypes": {"float32": 49}}
    assert made["model"] == wanted | {"tensors": 49}
    assert [one["name"] for one in made["tensors"]] == [one.name for one in parameters(MODEL)]
    assert "stored as" not in text
    of_file, _ = report(folder / "model.safetensors")
    assert of_file["tensors"] == made["tensors"]
    assert of_file["files"] == made["files"]
    assert made["files"]["bytes"] == (folder / "model.safetensors").stat().st_size


def test_a_configuration_beside_weights_is_mentioned_and_by_itself_is_inspected(
    report, run, folder
):
    (folder / "config.json").write_text(json.dumps(FIELDS), encoding="utf-8")
    made, text = report(folder)
    assert made["configuration"] == {"path": str(folder / "config.json"), "agrees": True}
    assert f"openmoe inspect {folder / 'config.json'}" in text
    assert "as the code counts" in run("inspect", folder / "config.json").stdout
    (folder / "model.safetensors").unlink()
    assert "as the code counts" in run("inspect", folder).stdout


def test_a_configuration_of_another_model_is_a_problem(report, folder):
    other = FIELDS | {"embed_dim": 96, "num_moe_layers": 4}
    (folder / "config.json").write_text(json.dumps(other), encoding="utf-8")
    made, text = report(folder)
    assert made["configuration"]["agrees"] is False
    assert any("[300, 96]" in one and "[300, 112]" in one for one in made["problems"])
    assert any("does not have" in one and "mlp/wi_0" in one for one in made["problems"])
    assert "Problems" in text
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert any("is no JSON" in one for one in report(folder)[0]["problems"])


@pytest.mark.parametrize("layout", ["port", "per_expert", "split"])
def test_every_layout_is_told_by_its_names(report, tmp_path, layout):
    tensors = {name: one.astype(ml_dtypes.bfloat16) for name, one in trained().items()}
    save_file(stored(tensors, layout), tmp_path / "model.safetensors")
    made, text = report(tmp_path / "model.safetensors", "--statistics")
    assert made["layout"]["name"] == layout
    assert (made["shape"]["sparse_layers"], made["shape"]["num_experts"]) == ([1, 3], 4)
    assert made["model"]["dtypes"] == {"bfloat16": 49}
    assert made["anomalies"] == []
    for one in made["tensors"]:
        assert one["bytes"] == 2 * tensors[one["name"]].size
        assert one["statistics"]["minimum"] == float(tensors[one["name"]].min())
    if layout != "split":
        assert "model.layers.i.input_layernorm.weight" in text
    if layout == "per_expert":
        expert = next(one for one in made["tensors"] if one["name"] == EXPERT)
        assert len(expert["stored"]) == 4
        assert "model.layers.i.mlp.experts.{e}.up_proj.weight" in text


@pytest.mark.parametrize("kind", ["t5x", "orbax"])
def test_steps_of_the_training_codes_containers(report, make, tmp_path, kind):
    tensors = make.model()
    write = make.t5x if kind == "t5x" else make.orbax
    name = "checkpoint_3" if kind == "t5x" else "3/parameters"
    path = write(tmp_path / "steps" / name, tensors)
    if kind == "orbax":
        make.orbax(tmp_path / "steps/3/optimizer", {"v": np.zeros((4, 3), np.float32)})
    made, text = report(tmp_path / "steps", "--statistics")
    assert (made["container"], made["step"], made["path"]) == (kind, 3, str(path))
    state = {"t5x": {"tensors": 1, "bytes": 4}, "orbax": {"tensors": 1, "bytes": 48}}
    assert made["optimizer_state"] == state[kind]
    assert made["model"]["tensors"] == len(tensors)
    assert made["files"]["number"] == len([one for one in path.rglob("*") if one.is_file()])
    for one in made["tensors"]:
        assert one["statistics"]["mean"] == pytest.approx(float(tensors[one["name"]].mean()), 1e-4)
    assert "step" in text


def test_stacked_layers_are_told_apart(make):
    tensors = make.model()
    for name in ("blocks", "scanned_2", "scanned_3"):
        found = statistics.summaries(of(Memory(make.arranged(tensors, name))), jobs=1)
        assert {one: made.total.maximum for one, made in found.items()} == {
            one: float(value.max()) for one, value in tensors.items()
        }


def test_shards_are_listed_by_tensor(report, make, tmp_path):
    make.safetensors(tmp_path / "model", make.model(), shards=3)
    made, text = report(tmp_path / "model", "--all")
    assert made["files"]["number"] == 3
    assert "model-00002-of-00003.safetensors" in text
    assert sum(len(one["places"]) for one in made["tensors"]) == made["model"]["tensors"]
    assert report(tmp_path / "model/model.safetensors.index.json")[0]["model"] == made["model"]


# ---- what the shapes say -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_recognised_by_shapes_alone(name):
    shapes = {one.name: one.shape for one in parameters(PUBLISHED[name])}
    assert infer(shapes).published == name
    expert = next(one for one in shapes if one.endswith("mlp/expert/wo/kernel"))
    del shapes[HEAD], shapes[expert]
    found = infer(shapes)
    assert found.published == name
    assert not found.problems
    assert found.shapes.keys() - shapes.keys() == {HEAD, expert}
    trimmed = shapes | {EMBEDDING: (256_300, PUBLISHED[name].embed_dim)}
    assert infer(trimmed).published is None


def test_grouped_heads_and_other_widths_are_inferred():
    model = Configuration(name="x", **FIELDS | {"num_kv_heads": 2, "expert_mlp_dim": 72})
    found = infer({one.name: one.shape for one in parameters(model)})
    wanted = {"query_width": 96, "key_value_width": 48, "expert_mlp_dim": 72, "gate_width": 256}
    assert wanted.items() <= found.sizes.items()
    assert dict(found.shapes) == {one.name: one.shape for one in parameters(model)}


def test_a_part_of_a_model_tells_what_is_lacking():
    shapes = {one.name: one.shape for one in parameters(MODEL) if "layers_2/" not in one.name}
    found = infer({name: one for name, one in shapes.items() if "layers_3/mlp" not in name})
    assert (found.num_layers, found.sparse_layers) == (4, (1, 3))
    assert "decoder/layers_2/mlp/wi_0/kernel" in found.shapes
    assert found.shapes.keys() == {one.name for one in parameters(MODEL)}
    far = infer({"decoder/layers_99999999/pre_mlp_layer_norm/scale": (3,)})
    assert "99,999,999" in far.problems[0]
    assert infer({}).num_layers == 0


def test_unknown_lacking_and_inconsistent_tensors_are_listed(report, tmp_path):
    tensors = trained()
    del tensors[HEAD], tensors["decoder/layers_3/extra_mlp/wo/kernel"]
    tensors["colour\x1b[31m"] = np.zeros((2, 3), np.int32)
    tensors[NORM] = np.ones(7, np.float32)
    tensors["decoder/decoder_norm/scale"] = np.ones(112, np.int32)
    save_file(tensors, tmp_path / "a.safetensors")
    made, text = report(tmp_path / "a.safetensors")
    assert [one["name"] for one in made["unknown"]] == ["colour\\x1b[31m"]
    assert made["lacking"] == ["decoder/layers_3/extra_mlp/wo/kernel", HEAD]
    assert made["shape"]["output_head"] is False
    assert any(NORM in one and "[7]" in one and "[112]" in one for one in made["problems"])
    assert any("is int32" in one for one in made["problems"])
    assert "\x1b" not in text
    for words in ("of no OpenMoE model", "Lacking", "PARAM-01", "layers_3/extra_mlp/wo"):
        assert words in text


# ---- statistics --------------------------------------------------------------------------------


def test_statistics_are_numpys(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 4096)
    monkeypatch.setattr(statistics, "_PIECE", 100)
    tensors = trained()
    tensors[EXPERT][2, :3, :3] = 0
    tensors[HEAD][:2, 0] = np.nan, -np.inf
    found = statistics.summaries(of(Memory(stored(tensors, "port"))), jobs=3)
    assert found.keys() == tensors.keys()
    for name, one in found.items():
        wide = tensors[name].astype(np.float64)
        finite = wide[np.isfinite(wide)]
        told_of = one.total.as_dict()
        assert told_of["minimum"] == finite.min()
        assert told_of["maximum"] == finite.max()
        assert told_of["largest"] == np.abs(finite).max()
        assert told_of["mean"] == pytest.approx(finite.mean(), rel=1e-12, abs=1e-15)
        assert told_of["deviation"] == pytest.approx(finite.std(), rel=1e-12)
        assert told_of["zeros"] == np.count_nonzero(wide == 0)
        assert (told_of["nan"], told_of["infinite"]) == ((1, 1) if name == HEAD else (0, 0))
    each = found[EXPERT].experts
    assert [one.mean for one in each] == pytest.approx(tensors[EXPERT].mean(axis=(1, 2)), rel=1e-3)
    assert [one.zeros for one in each] == [0, 0, 9, 0]


def test_chunks_too_large_to_be_decoded_at_once_are_streamed(make, monkeypatch, tmp_path):
    tensors = make.model()
    path = make.t5x(tmp_path / "checkpoint_1", tensors, chunks=tuple, small=0)
    opened = open_checkpoint(path)
    wanted = statistics.summaries(opened, jobs=1)
    monkeypatch.setattr(statistics, "LARGEST_BLOCK", 1)
    monkeypatch.setattr(opened.reader, "read", None)
    found = statistics.summaries(opened, jobs=1)
    assert {name: one.digests for name, one in found.items()} == {
        name: one.digests for name, one in wanted.items()
    }
    assert found[EMBEDDING].total.minimum == float(tensors[EMBEDDING].min())


def test_values_that_are_all_not_finite_have_no_numbers():
    found = statistics.Moments()
    found.add(np.full(5, np.nan, np.float32))
    assert found.as_dict()["mean"] is None
    assert (found.nan, found.finite, found.constant) == (5, 0, None)
    assert math.isnan(statistics.Moments.of(found.as_dict(), 5).deviation)


def test_a_trained_model_has_nothing_odd():
    for seed in range(20):
        assert told(trained(seed)) == {}


def test_a_fresh_model_is_told_as_such():
    for seed in range(5):
        found = told(fresh(seed))
        assert found.keys() == {"fresh", "untrained norm"}
        # Routers have 448 elements: too few to tell.
        assert "15 of 16 kinds" in found["fresh"][0]
        assert "exactly 1 throughout" in found["untrained norm"][0]


def test_the_bound_and_the_deviation_both_count():
    tensor = next(one for one in parameters(MODEL) if one.name.endswith("layers_0/mlp/wi_0/kernel"))
    values = fresh()[tensor.name].ravel()
    one_far = values.copy()
    one_far[0] = 3 * values.std()
    for changed, wanted in ((values, True), (one_far, False), (values * 1.05, False)):
        found = statistics.Moments()
        found.add(changed)
        assert looks_fresh(found, tensor) is wanted
    small = statistics.Moments()
    small.add(values[:500])
    assert not looks_fresh(small, tensor)


def test_one_kind_of_kernels_that_was_never_trained_is_found():
    tensors = trained()
    tensors |= {name: one for name, one in fresh(7).items() if "extra_mlp/wi_0" in name}
    (text,) = told(tensors)["fresh"]
    assert text.startswith("1 of 16 kinds")
    assert "decoder/layers_{1,3}/extra_mlp/wi_0/kernel" in text.replace(", ", ",")


def test_an_expert_that_was_never_trained_is_found():
    tensors, untrained = trained(), fresh(5)
    for name in tensors:
        if "layers_3/mlp/expert/" in name:
            tensors[name][2] = untrained[name][2]
    found = told(tensors)
    assert found.keys() == {"fresh experts"}
    assert "layers_3/mlp/expert: expert 2 looks as freshly" in found["fresh experts"][0]


def _set(name, index, value):
    def change(tensors):
        tensors[name][index] = value

    return change


def _copy(name, target, source):
    def change(tensors):
        tensors[name][target] = tensors[name][source]

    return change


@pytest.mark.parametrize(
    ("cause", "change", "words"),
    [
        ("not finite", _set(HEAD, (3, 4), np.nan), [HEAD, "1 NaN of 33,600 values"]),
        ("not finite", _set(EXPERT, (2, 0, 0), np.inf), ["1 infinite", "in experts 2"]),
        ("all zero", _set(HEAD, ..., 0), [HEAD, "all zero"]),
        ("constant", _set(NORM, ..., 0.5), [NORM, "0.5 throughout"]),
        ("untrained norm", _set(NORM, ..., 1), [NORM, "exactly 1 throughout"]),
        ("constant expert", _set(EXPERT, 1, 0), [EXPERT, "expert 1 is all zero"]),
        ("constant expert", _set(EXPERT, slice(0, 2), 3), ["experts 0-1 are of one value"]),
        ("equal experts", _copy(EXPERT, 3, 1), [EXPERT, "experts 1, 3 are equal"]),
        ("untrained rows", _set(EMBEDDING, slice(290, 300), 0), ["10 rows (290-299) are all zero"]),
        ("untrained rows", _set(EMBEDDING, 5, 0.25), ["row 5 is of one value throughout"]),
        ("equal experts", _copy(EXPERT, [2, 3], [0, 1]), ["experts 0, 2; 1, 3 are equal"]),
        ("equal rows", _copy(EMBEDDING, [7, 9], [3, 4]), ["4 rows are equal", "2 groups", "3, 7"]),
        ("equal rows", _copy(EMBEDDING, slice(8, 11), 4), ["4 rows (4, 8-10) are equal"]),
    ],
)
def test_each_anomaly_is_found_and_nothing_else(cause, change, words):
    tensors = trained()
    change(tensors)
    found = told(tensors)
    assert found.keys() == {cause}
    assert all(word in found[cause][0] for word in words), found
    assert len(found[cause]) == 1


def test_odd_values_stand_in_the_report(report, folder):
    tensors = trained()
    tensors[EXPERT][0] = 0
    tensors[HEAD][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    made, text = report(folder, "--statistics", "--jobs", 1)
    assert {one["cause"] for one in made["anomalies"]} == {"constant expert", "not finite"}
    for words in ("Odd values", "expert 0 is all zero", "1 NaN"):
        assert words in text
    assert report(folder)[0]["anomalies"] is None


# ---- what it refuses ---------------------------------------------------------------------------


def test_a_wrong_input_is_one_line(complains, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    complains("inspect", tmp_path / "empty", words=["holds no config.json and no checkpoint"])
    (tmp_path / "empty/mine.safetensors").write_bytes(b"\x08")
    complains("inspect", tmp_path / "empty", words=["name mine.safetensors itself"])
    complains("inspect", tmp_path / "empty/mine.safetensors", words=["is no whole safetensors"])
    (tmp_path / "empty/config.json").write_text("{}", encoding="utf-8")
    complains("inspect", tmp_path / "empty", words=["empty/config.json", "mine.safetensors itself"])
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-5])
    complains("inspect", tmp_path / "cut.safetensors", words=["cut.safetensors", "no whole"])


def test_options_of_the_other_kind_are_refused(complains, folder):
    complains("inspect", folder, "--batch", 3, words=["is a checkpoint", "--batch"])
    complains("inspect", folder, "--dialect", "paper", words=["is a checkpoint", "--dialect"])
    complains("inspect", "base", "--statistics", words=["--statistics", "base"])
    complains("inspect", folder, "--json", folder / "model.safetensors", words=["written over"])


def test_a_checkpoint_of_which_a_part_is_not_there_is_incomplete(complains, make, tmp_path):
    make.safetensors(tmp_path / "model", make.model(), shards=3)
    (tmp_path / "model/model-00002-of-00003.safetensors").unlink()
    complains("inspect", tmp_path / "model", words=["model-00002-of-00003"], code=2)
    make.orbax(tmp_path / "7.orbax-checkpoint-tmp-0", make.model())
    complains("inspect", tmp_path / "7.orbax-checkpoint-tmp-0", words=["half-written"], code=2)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_that_are_no_text_are_printed(report, run, folder):
    odd = folder.parent / os.fsdecode(b"m\xff\x1b[31m")
    folder.rename(odd)
    made, text = report(odd)
    assert made["source"].endswith("m\\udcff\\x1b[31m")
    assert "m\\udcff\\x1b[31m" in text
    (odd / "model.safetensors").write_bytes(b"x")
    found = run("inspect", odd)
    assert (found.code, len(found.stderr.splitlines())) == (3, 1)
