"""`openmoe inspect`: right numbers for every kind of configuration, one line for every mistake."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from openmoe_reference import optimizer
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.parameters import parameters
from openmoe_tools import inspecting

SCHEMA = json.loads(
    Path(inspecting.__file__).with_name("inspect.schema.json").read_text(encoding="utf-8")
)
SMALL = {
    "num_layers": 4,
    "num_moe_layers": 2,
    "embed_dim": 24,
    "num_heads": 3,
    "head_dim": 16,
    "mlp_dim": 40,
    "expert_mlp_dim": 200,
    "num_experts": 4,
    "vocabulary_size": 150,
    "max_length": 64,
}
PORT = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "moe_layer_interval": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "num_experts": 4,
    "router_topk": 2,
    "router_capacity_factor_train": 1.25,
    "router_capacity_factor_eval": 0.5,
    "router_min_capacity": 2,
    "max_position_embeddings": 64,
    "vocab_size": 150,
    "hidden_act": "swiglu",
    "rope_theta": 10000.0,
}


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def report(run, tmp_path):
    """Return the JSON report of `openmoe inspect` with some arguments."""

    def call(*arguments):
        found = run("inspect", *arguments, "--json", tmp_path / "report.json")
        assert found.code == 0, found.stderr
        return json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))

    return call


# ---- what it says ------------------------------------------------------------------------------


def test_the_published_sizes_stand_beside_the_papers(report):
    assert report("8b")["counts"] == {
        "code": {
            "total": 11_855_046_656,
            "activated_with_vocabulary": 2_751_834_112 + 2 * 256_384 * 2048,
            "activated": 2_751_834_112,
        },
        "paper": {
            "total": 8_779_835_392,
            "activated_with_vocabulary": 2_214_963_200 + 256_384 * 2048,
            "activated": 2_214_963_200,
        },
        "printed": {
            "total": "8.7B",
            "activated_with_vocabulary": "2.6B",
            "activated": "2.1B",
        },
    }


@pytest.mark.parametrize("dialect", ["t5x", "torch_port", "paper"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_report_obeys_the_schema(report, valid, name, dialect):
    assert valid(report(name, "--dialect", dialect), SCHEMA)


def test_the_schema_refuses_another_report(report, valid):
    made = report("base")
    assert not valid(made | {"extra": 1}, SCHEMA)
    assert not valid(made | {"dialect": "t5"}, SCHEMA)
    assert not valid({**made, "memory": [{**made["memory"][0], "both": 1.5}]}, SCHEMA)
    del made["counts"]["code"]["total"]
    assert not valid(made, SCHEMA)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        # pass, B x L, groups, tokens of one, capacity: the numbers of GROUP-10 and GROUP-11
        ("base", [(128, 2048, 64, 4096, 320), (1, 2048, 16, 128, 16), (1, 1, 16, 1, 4)]),
        ("34b", [(64, 2048, 32, 4096, 160), (1, 2048, 32, 64, 4), (1, 1, 32, 1, 4)]),
    ],
)
def test_groups_and_capacities_of_the_training_runs(report, name, passes):
    found = report(name)["passes"]
    assert [row["pass"] for row in found] == ["training", "evaluation", "decoding step"]
    names = ("groups", "tokens_per_group", "capacity")
    assert [(*row["batch"], *(row[one] for one in names)) for row in found] == passes
    assert found[0]["most_kept"] == 0.625  # GROUP-07
    assert found[2]["most_kept"] == 1.0


def test_batch_length_and_replicas_are_taken(report):
    train, evaluation, step = report(*("34b", "--batch", 64, "--length", 2048, "--replicas", 2))[
        "passes"
    ]
    assert train["tokens_per_group"] == evaluation["tokens_per_group"] == 2048
    assert (step["batch"], step["padded"], step["replicas"]) == ([64, 1], [64, 1], 2)
    odd = report("base", "--batch", 3, "--length", 5)["passes"][0]
    assert (odd["batch"], odd["padded"]) == ([3, 5], [3, 16])


def test_a_dialect_changes_fields_tensors_and_capacities(report):
    paper = report("base", "--dialect", "paper")
    shapes = {one["name"]: one["shape"] for one in paper["parameters"]}
    assert shapes["decoder/layers_0/mlp/wi_0/kernel"] == [768, 3072]  # one gate, and F = 3072
    assert paper["counts"] == report("base")["counts"]
    port = report("base", "--dialect", "torch_port", "--length", 100)
    assert port["configuration"]["z_loss_factor"] == 0.01
    evaluation = port["passes"][1]
    # The whole call is one group, and K counts: 2 x 2.0 x 100 / 16 = 25, made even.
    assert (evaluation["groups"], evaluation["capacity"]) == (1, 26)


def test_memory_is_that_of_the_tensors_and_their_state(report, tmp_path):
    made = report(write(tmp_path / "small.json", SMALL))
    model = Configuration(name="small", **SMALL)
    tensors = parameters(model)
    state = sum(
        slot.nbytes
        for one in tensors
        for slot in optimizer.initial_state(
            one.shape, optimizer.factoring(one.shape, one.axes)
        ).values()
    )
    elements = sum(one.size for one in tensors)
    assert made["memory"] == [
        {
            "dtype": name,
            "weights": width * elements,
            "optimizer_state": state,
            "both": width * elements + state,
        }
        for name, width in (("float32", 4), ("bfloat16", 2))
    ]
    assert made["configuration"] == asdict(model)
    assert made["counts"]["printed"]["total"] is None


def test_the_ports_configuration_is_read_from_file_and_folder(report, tmp_path):
    (tmp_path / "model").mkdir()
    path = write(tmp_path / "model/config.json", PORT)
    of_folder = report(tmp_path / "model")
    fields = of_folder["configuration"]
    wanted = {"name": "model", "mlp_dim": 40, "num_moe_layers": 2, "eval_capacity_factor": 0.5}
    assert wanted.items() <= fields.items()
    assert of_folder["sparse_layers"] == [1, 3]
    of_file = report(path)["configuration"]
    assert of_file == fields | {"name": "config"}


def test_equal_layers_share_a_line_unless_all_are_asked_for(run):
    folded = run("inspect", "base").stdout
    line = next(line for line in folded.splitlines() if "mlp/expert/wi_0" in line)
    assert line.split()[:6] == [
        *("decoder/layers_i/mlp/expert/wi_0/kernel", "[16,", "768,", "4096]", "3", "150,994,944")
    ]
    assert "799,663,104" in folded
    whole = run("inspect", "base", "--all").stdout
    for tensor in parameters(PUBLISHED["base"]):
        assert f"\n{tensor.name} " in whole
        assert (f"\n{tensor.name} " in folded) == ("layers_" not in tensor.name)
    for words in ("layers, from 0: 3, 7, 11", "650M", "142M", "320", "62.5 %"):
        assert words in folded


# ---- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bse"], ["bse", "base, 8b, 34b"]),
        (["no/where.json"], ["no/where.json", "a JSON file"]),
        (["base", "--dialect", "pytorch"], ["--dialect", "t5x, torch_port, paper"]),
        (["base", "--length", 2049], ["--length 2049", "2048"]),
        (["base", "--batch", 10**9], ["--batch", "2,048,000,000,000"]),
        (["base", "--batch", 0], ["batch"]),
        (["base", "--json", "no/where.json"], ["no/where.json", "folder"]),
        ([], ["config", "--help"]),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(complains, arguments, words):
    complains("inspect", *arguments, words=words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is no JSON", "line 1"]),
        ("[" * 100_000, ["is no JSON"]),
        ("[1]", ["must be a JSON object", "list"]),
        ({**SMALL, "embed_dims": 3}, ["embed_dims", "did you mean embed_dim?"]),
        ({**SMALL, "colour": 3}, ["colour", "chapter 3"]),
        ({"num_layers": 4, "mlp_dim": 3}, ["lacks num_moe_layers, embed_dim"]),
        ({**SMALL, "num_experts": 0}, ["num_experts", "got 0", "[CFG-02]"]),
        ({**SMALL, "head_dim": 15}, ["head_dim", "even", "[CFG-05]"]),
        ({**SMALL, "num_layers": 10**6, "num_moe_layers": 1}, ["1,000,000 layers"]),
        ({**PORT, "vocab_size": "150"}, ["vocab_size", "whole number", "[CFG-02]"]),
        ({**PORT, "moe_layer_interval": 3}, ["moe_layer_interval", "must divide", "(4)"]),
        ({**PORT, "moe_layer_interval": 0}, ["moe_layer_interval", "1 or more"]),
        ({**PORT, "hidden_act": "silu"}, ["hidden_act", '"swiglu"', '"silu"']),
        ({**PORT, "embed_dim": 24}, ["embed_dim", "the one or the other"]),
        ({"hidden_size": 24, "moe_layer_interval": 2}, ["lacks num_hidden_layers"]),
    ],
    ids=str,
)
def test_a_wrong_file_is_one_line_that_names_it(complains, tmp_path, content, words):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    complains("inspect", path, words=["mine.json", *words])


def test_a_folder_without_a_configuration_is_one_line(complains, tmp_path):
    complains("inspect", tmp_path, words=[tmp_path.name, "holds no config.json"])


def test_what_is_no_text_is_no_json(complains, tmp_path):
    (tmp_path / "mine.json").write_bytes(b"\xff\xfe\x00")
    complains("inspect", tmp_path / "mine.json", words=["mine.json", "is no JSON"])
