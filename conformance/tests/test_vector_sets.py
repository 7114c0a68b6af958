"""Stored vectors: what is wrong with a file is named, the rest still runs, exit code 2."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from openmoe_conformance import runner, vector_sets
from openmoe_conformance.outcome import Outcome, UsageError, exit_code
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject


def run(folder: Path):
    options = runner.Options("", profile=PROFILES["standard"], vectors=folder, checks=False)
    results, planned = runner.run(options, Subject(ReferenceAdapter()))
    return results, exit_code(results, planned)


@pytest.fixture
def routing(tmp_path):
    """A copy of the routing chapter that may be broken."""
    shutil.copytree(vector_sets.built_in() / "routing", tmp_path / "routing")
    return tmp_path / "routing"


def edit(folder: Path, change) -> None:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    change(index)
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def faults(results):
    return [r for r in results if r.outcome is Outcome.ERROR]


def test_the_shipped_vectors_pass_for_the_reference():
    results, code = run(vector_sets.built_in())
    assert code == 0
    assert {r.outcome for r in results} == {Outcome.PASS}
    assert len(results) > 1000


def test_one_chapter_alone_is_a_set_too(routing):
    results, code = run(routing)
    assert code == 0
    assert all(r.item.startswith("vector:routing/") for r in results)


def test_a_truncated_file_is_named_and_the_rest_runs(routing):
    path = routing / "router_scatter.npz"
    path.write_bytes(path.read_bytes()[:-100])
    results, code = run(routing)
    assert code == 2
    assert all(
        "router_scatter.npz" in r.message and "case scatter" in r.message for r in faults(results)
    )
    assert len(faults(results)) == sum("/scatter_" in r.item for r in results) > 0
    assert sum(r.outcome is Outcome.PASS for r in results) > 400


def test_a_wrong_hash_is_named(routing):
    edit(routing, lambda i: i["files"]["router_masked.npz"].update(sha256="0" * 64))
    results, code = run(routing)
    assert code == 2
    assert all("router_masked.npz" in r.message and "sha256" in r.message for r in faults(results))


def test_a_missing_file_is_named(routing):
    (routing / "router_masked.npz").unlink()
    results, code = run(routing)
    assert code == 2
    assert "router_masked.npz, case masked_000" in faults(results)[0].message


def test_a_file_without_hash_is_refused(routing):
    edit(routing, lambda i: i["files"].clear())
    results, code = run(routing)
    assert code == 2
    assert {r.outcome for r in results} == {Outcome.ERROR}


def test_a_missing_array_is_named(routing):
    edit(routing, lambda i: i["cases"][0]["arrays"].remove("probs"))
    results, code = run(routing)
    assert code == 2
    assert {r.message for r in faults(results)} == {
        "routing/index.json, case masked_000: lacks array probs"
    }


def test_an_array_that_the_file_lacks_is_named(routing):
    edit(routing, lambda i: i["cases"][0]["arrays"].append("ghost"))
    results, code = run(routing)
    assert code == 2
    assert (
        "router_masked.npz, case masked_000: array ghost is missing" in faults(results)[0].message
    )


def test_an_unknown_clause_is_named(routing):
    edit(routing, lambda i: i["cases"][1]["comparisons"].update(decision="ROUTE-99"))
    results, code = run(routing)
    assert code == 2
    assert "case masked_002: names unknown clause 'ROUTE-99'" in faults(results)[0].message


@pytest.mark.parametrize("key", ["id", "kind", "config", "comparisons"])
def test_a_case_that_lacks_a_field_is_named(routing, key):
    edit(routing, lambda i: i["cases"][2].pop(key))
    results, code = run(routing)
    assert code == 2
    assert f"case number 2: lacks '{key}'" in faults(results)[0].message


@pytest.mark.parametrize(("field", "value"), [("kind", "router_unknown"), ("file", "../x.npz")])
def test_unknown_kinds_and_paths_that_leave_the_folder_are_refused(routing, field, value):
    edit(routing, lambda i: i["cases"][0].update({field: value}))
    results, code = run(routing)
    assert code == 2
    assert "case masked_000" in faults(results)[0].message


def test_a_missing_key_of_the_config_is_named(routing):
    edit(routing, lambda i: i["cases"][0]["config"].pop("num_experts"))
    results, code = run(routing)
    assert code == 2
    assert "case masked_000: its config lacks num_experts" in faults(results)[0].message


@pytest.fixture
def examples(tmp_path):
    """A copy of the worked examples that may be broken."""
    name = "worked_examples"
    shutil.copytree(vector_sets.built_in() / name, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(function="nosuch"), "there is no function 'nosuch'"),
        (lambda config: config["arguments"].update(names=1), "configuration has no argument names"),
        (lambda config: config["arguments"].clear(), "configuration needs the argument name"),
        (lambda config: config.pop("expected"), "must have either an expected answer or rejected"),
        (lambda config: config.update(rejected=True), "must have either an expected answer"),
    ],
)
def test_a_malformed_call_is_named_and_not_the_implementations_fault(examples, change, message):
    def damage(index):
        (case,) = [row for row in index["cases"] if row["id"] == "configuration_base"]
        change(case["config"])

    edit(examples, damage)
    results, code = run(examples)
    assert code == 2
    (fault,) = faults(results)
    assert "worked_examples/index.json, case configuration_base: " in fault.message
    assert message in fault.message


def test_a_repeated_id_is_refused(routing):
    edit(routing, lambda i: i["cases"].append(i["cases"][0]))
    results, code = run(routing)
    assert code == 2
    assert "stands twice" in faults(results)[0].message


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99}', '{"other": 1}', ""])
def test_an_index_that_cannot_be_read_is_an_error_of_its_set_alone(routing, text):
    other = routing.parent / "grouping"
    shutil.copytree(vector_sets.built_in() / "grouping", other)
    (routing / "index.json").write_text(text, encoding="utf-8")
    results, code = run(routing.parent)
    assert code == 2
    assert [r.item.split("/")[0] for r in faults(results)] == ["vector:routing"]
    assert sum(r.outcome is Outcome.PASS for r in results) > 400


def test_a_changed_expectation_fails_the_implementation(routing):
    path = routing / "router_scatter.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = next(name for name in arrays if name.endswith("/dispatch_indices"))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[0] += 1
    np.savez(path, **arrays)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(routing, lambda i: i["files"][path.name].update(sha256=digest))
    results, code = run(routing)
    assert code == 1
    assert [r.item.rpartition("/")[2] for r in results if r.outcome is Outcome.FAIL] == ["decision"]


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_what_is_no_set_of_vectors_is_bad_usage(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=folder):
        vector_sets.open_set(tmp_path / folder)


# ---- borrowed arrays -------------------------------------------------------------------------


@pytest.fixture
def decoding(tmp_path):
    """A copy of the decoding chapter, whose cases borrow the parameters of one model."""
    shutil.copytree(vector_sets.built_in() / "decoding", tmp_path / "decoding")
    return tmp_path / "decoding"


def test_a_case_has_the_arrays_that_it_borrows_unless_it_has_its_own(decoding):
    cases = {case.id: case for case in vector_sets.open_set(decoding)}
    borrower = cases["f_000"]
    lender = cases[borrower.lender.id]
    assert not lender.comparisons
    name = "params/decoder/decoder_norm/scale"
    assert name in borrower.names
    assert name not in borrower.arrays
    np.testing.assert_array_equal(borrower.load()[name], lender.load()[name])
    assert name not in borrower.own()


@pytest.mark.parametrize("lender", ["nobody", "f_001", "f_000"])
def test_what_cannot_be_borrowed_is_named(decoding, lender):
    edit(decoding, lambda i: i["cases"][0].update(borrows=lender))
    results, code = run(decoding)
    assert code == 2
    message = f"decoding/index.json, case f_000: cannot borrow from '{lender}'"
    assert {r.message for r in faults(results)} == {message}


def test_a_lender_whose_file_is_missing_is_named_by_every_borrower(decoding):
    (decoding / "tiny_model.npz").unlink()
    results, code = run(decoding)
    assert code == 2
    assert len(faults(results)) == len(results)
    assert {r.message for r in results} == {
        "tiny_model.npz, case tiny_A_params: cannot be read (No such file or directory)"
    }


def test_a_lender_whose_file_has_another_hash_is_refused(decoding):
    edit(decoding, lambda i: i["files"]["tiny_model.npz"].update(sha256="0" * 64))
    results, code = run(decoding)
    assert code == 2
    assert all("case tiny_A_params: its sha256 is not" in r.message for r in faults(results))


def test_a_comparison_without_its_arrays_is_named(decoding):
    edit(decoding, lambda i: i["cases"][0]["arrays"].remove("step_logits"))
    results, code = run(decoding)
    assert code == 2
    assert {r.message for r in faults(results)} == {
        "decoding/index.json, case f_000: lacks array step_logits"
    }
