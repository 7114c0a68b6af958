"""`openmoe audit import`, `report`, `export`: recorded routing becomes an audit, and says what it lacks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_audit_run import arguments, audited, texts  # noqa: F401 - fixtures

from openmoe_tools.audit import folder
from openmoe_tools.audit.measures import report as measuring

SCHEMA = json.loads(
    Path(folder.__file__).with_name("audit.schema.json").read_text(encoding="utf-8")
)
N, L, K, E = 600, 2, 2, 8


def routed(seed=0, experts=E):
    """Return [N, L, K] experts, each once a token."""
    return (
        np.random.default_rng(seed)
        .permuted(np.tile(np.arange(experts), (N * L, 1)), axis=1)[:, :K]
        .reshape(N, L, K)
    )


def imported(run, tmp_path, *more, name="out"):
    found = run("audit", "import", *more, "--out", tmp_path / name)
    assert found.code == 0, found
    return folder.read(tmp_path / name)


def test_a_trace_gives_the_choices_of_its_audit(audited, run, tmp_path, valid):  # noqa: F811
    one = audited("--trace")
    other = imported(run, tmp_path, one.path, "--format", "parquet")
    assert valid(other.manifest, SCHEMA)
    for name in ("token", "position", "slice", "slice_token", "drop", "coactivation", "documents"):
        assert np.array_equal(one.tables.arrays[name], other.tables.arrays[name]), name
    assert other.manifest["model"]["digest"] == one.manifest["model"]["digest"]
    assert other.manifest["source"] == "import:parquet"


@pytest.mark.parametrize("experts", [8, 300])
def test_arrays_of_serving_engines(run, tmp_path, experts):
    np.save(tmp_path / "routed.npy", routed(experts=experts).astype(np.int32))
    ids = np.random.default_rng(1).integers(1, 50, N)
    np.save(tmp_path / "ids.npy", ids)
    documents = json.dumps([{"tokens": 50, "slice": f"s{i % 3}"} for i in range(12)])
    (tmp_path / "documents.json").write_text(documents, encoding="utf-8")
    found = imported(
        run, tmp_path, tmp_path / "routed.npy", "--format", "routed_experts", "--experts", experts,
        "--tokens", tmp_path / "ids.npy", "--documents", tmp_path / "documents.json", "--trace",
    )  # fmt: skip
    assert found.tables.sizes.experts == experts
    assert found.tables.arrays["slice_token"].sum() == N
    assert "drops" not in found.manifest["recorded"]
    made = measuring.make(found)
    lines = {one["id"]: one["answer"] for one in made["verdict"]["lines"]}
    assert lines["drop_towards_the_end"] == "not recorded"
    result = run("audit", "report", tmp_path / "out")
    assert result.code == 0, result
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    counted = run("audit", "query", tmp_path / "out", "select count(*) n from trace")
    assert counted.code == 0, counted
    assert str(N) in counted.stdout


def test_router_logits(run, tmp_path):
    logits = np.random.default_rng(0).normal(size=(L, N, E)).astype(np.float32)
    np.savez(tmp_path / "logits.npz", router_logits=logits)
    options = ("--format", "router_logits", "--choices", K)
    found = imported(run, tmp_path, tmp_path / "logits.npz", *options)
    best = np.argsort(-logits, axis=-1, kind="stable")[..., :K]
    counted = found.tables.arrays["coactivation"]
    for layer in range(L):
        wanted = np.zeros((E, E), np.int64)
        for one, other in best[layer]:
            wanted[one, other] += 1
            wanted[other, one] += 1
        assert np.array_equal(counted[layer], wanted)
    assert {"margins", "gates", "probabilities"} <= set(found.manifest["recorded"])


def test_what_is_wrong_is_one_line(run, tmp_path, complains):
    wrong = routed().astype(np.int32)
    wrong[17, 1, 0] = 255
    np.save(tmp_path / "sentinel.npy", wrong)
    out, form = tmp_path / "out", ("--format", "routed_experts", "--experts", E)
    complains(
        "audit", "import", tmp_path / "sentinel.npy", *form, "--out", out, words=["255", "17"]
    )
    np.save(tmp_path / "none.npy", np.zeros((0, L, K), np.int32))
    complains("audit", "import", tmp_path / "none.npy", *form, "--out", out, words=["none.npy"])
    logits = np.zeros((L, N, E), np.float32)
    logits[1, 3, 2] = np.nan
    np.savez(tmp_path / "logits.npz", router_logits=logits)
    more = ("--format", "router_logits", "--choices", K, "--out", out)
    complains("audit", "import", tmp_path / "logits.npz", *more, words=["logits.npz"])
    complains("audit", "import", tmp_path / "x.npy", *form, "--out", out, words=["does not exist"])
    np.save(tmp_path / "good.npy", routed().astype(np.int32))
    path = tmp_path / "good.npy"
    complains("audit", "import", path, "--format", "gguf", "--out", out, words=["--format gguf"])
    assert not (out / folder.MANIFEST).exists()
    imported(run, tmp_path, path, *form)
    complains("audit", "import", path, *form, "--out", out, words=["holds an audit already"])


def test_loads_are_exported(audited, run, tmp_path, complains):  # noqa: F811
    found = audited()
    for name in ("load.npy", "load.csv", "load.json"):
        assert run("audit", "export", found.path, tmp_path / name).code == 0
    loads = np.load(tmp_path / "load.npy")
    sizes = found.tables.sizes
    assert loads.shape == (sizes.layers, sizes.experts)
    assert loads.sum() == sizes.choices * sizes.layers * found.manifest["totals"]["tokens"]
    complains("audit", "export", found.path, tmp_path / "load.xyz", words=["load.xyz"])


def test_a_report_of_no_audit_is_refused(tmp_path, complains):
    complains("audit", "report", tmp_path / "none", words=["no folder of an audit"])
    (tmp_path / "audit.json").write_text("{}", encoding="utf-8")
    complains("audit", "report", tmp_path, words=["no manifest of an audit"])
    (tmp_path / "audit.json").write_text('{"schema": "openmoe-audit/1"}', encoding="utf-8")
    complains("audit", "summary", tmp_path, words=["tables.npz"])
