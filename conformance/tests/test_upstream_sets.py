"""The upstream layouts: every case runs, what is wrong is named, an import runs like its source."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import upstream_folders

from openmoe_conformance import importing, runner, vector_sets
from openmoe_conformance.outcome import Outcome, UsageError, exit_code
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject


def run(folder: Path, implementation=None):
    options = runner.Options("", profile=PROFILES["standard"], vectors=folder, checks=False)
    results, planned = runner.run(options, Subject(implementation or ReferenceAdapter()))
    assert len(results) == planned
    return results, exit_code(results, planned)


def edit(folder: Path, change, file: str = "index.json") -> None:
    index = json.loads((folder / file).read_text(encoding="utf-8"))
    change(index)
    (folder / file).write_text(json.dumps(index), encoding="utf-8")


def exchange(path: Path, name: str, change) -> None:
    """Change one array of an npz file."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    arrays[name] = change(arrays[name])
    np.savez(path, **arrays)


def found(results, outcome: Outcome) -> list[str]:
    return [r.item.partition("/")[2] for r in results if r.outcome is outcome]


# ---- routers and layers ------------------------------------------------------------------------


@pytest.fixture
def upstream(tmp_path):
    """The shipped routers and layers written back in the layout they came in."""
    folder = tmp_path / "t5x"
    folder.mkdir()
    rows = []
    for chapter in ("routing", "moe"):
        source = vector_sets.built_in() / chapter
        for row in json.loads((source / "index.json").read_text(encoding="utf-8"))["cases"]:
            group = row["file"].removesuffix(".npz")
            rows.append(
                {"id": row["id"], "group": group, "file": row["file"]}
                | {"exercises": row["exercises"], "config": row["config"]}
                | {"arrays": {name: {} for name in row["arrays"]}}
            )
            if not (folder / row["file"]).exists():
                shutil.copy(source / row["file"], folder)
    (folder / "index.json").write_text(json.dumps({"cases": rows}), encoding="utf-8")
    return folder


def test_the_upstream_layout_runs_without_hashes_or_clauses(upstream):
    results, code = run(upstream)
    assert code == 0
    assert {r.outcome for r in results} == {Outcome.PASS}
    assert {r.clause for r in results} >= {"ROUTE-09", "ROUTE-22", "ROUTE-24", "MOE-07", "MOE-06"}


def test_later_chapters_and_recorded_failures_are_skipped_with_a_reason(upstream):
    def change(index):
        index["cases"] = index["cases"][:2]
        index["cases"][0]["error"] = "the original raised"
        index["cases"][1]["group"] = "token_streams"
        index["extra_files"] = {"checkpoints": [{"dir": "saved/checkpoint_3"}]}

    edit(upstream, change)
    results, code = run(upstream)
    assert code == 2
    assert {r.outcome for r in results} == {Outcome.SKIPPED}
    assert [r.message for r in results] == [
        "the original failed on it: the original raised",
        "token_streams vectors: not in this version",
        "checkpoints: not in this version",
    ]


def test_a_capacity_that_the_original_refused_is_skipped_with_its_reason(upstream):
    row = {"batch": 1, "seq": 1, "error": "AssertionError: capacity"}
    table = {"min_expert_capacity": 4, "rows": [row], "expert_replicas": []}
    (upstream / "capacity_table.json").write_text(json.dumps(table), encoding="utf-8")
    results, code = run(upstream)
    assert code == 0
    (skipped,) = [r for r in results if r.outcome is Outcome.SKIPPED]
    assert skipped.message == "the original failed on it: AssertionError: capacity"


def test_an_upstream_path_that_leaves_its_folder_is_refused(upstream):
    edit(upstream, lambda i: i["cases"][0].update(file="../router_masked.npz"))
    results, code = run(upstream)
    assert code == 2
    (message,) = [r.message for r in results if r.outcome is Outcome.ERROR]
    assert message == "t5x/index.json, case masked_000: file leaves its folder"


def test_an_import_writes_what_ships(upstream, tmp_path):
    counts = importing.import_set(upstream, tmp_path / "own")
    assert counts == {"routing": 65, "moe": 12}
    for chapter in counts:
        index = "index.json"
        ours = json.loads((vector_sets.built_in() / chapter / index).read_text(encoding="utf-8"))
        made = json.loads((tmp_path / "own" / chapter / index).read_text(encoding="utf-8"))
        assert made["cases"] == ours["cases"]
        assert made["files"] == ours["files"]
    results, code = run(tmp_path / "own")
    assert code == 0
    assert len(results) > 500


# ---- whole models of the training code ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "padded", "packed", "prefix", "prefix_packed"])
def test_a_model_of_the_training_code_runs_and_each_module_has_its_clause(tmp_path, kind):
    results, code = run(upstream_folders.t5x(tmp_path / "t5x", kind=kind))
    assert code == 0
    assert {r.outcome for r in results} == {Outcome.PASS}
    by_name = {r.item.rpartition("/")[2]: r.clause for r in results if "/pass/" in r.item}
    of_batch = {"padded": "ATTN-09", "packed": "ATTN-06", "prefix": "ATTN-03"}
    of_batch |= {"prefix_packed": "ATTN-02", "full": "ATTN-11"}
    assert by_name["forward_attention"] == of_batch[kind]
    assert by_name["forward_logits"] == "MODEL-01"
    assert by_name["forward_decisions"] == "MODEL-05"
    assert by_name["gradients"] == "MODEL-08"
    assert ("forward_masked" in by_name) == (kind == "padded")


class WithoutForcing:
    """Takes no decisions from elsewhere."""

    def forward(self, parameters, batch, *, configuration, training=False, dtype="float32"):
        options = {"configuration": configuration, "training": training, "dtype": dtype}
        return ReferenceAdapter().forward(parameters, batch, **options)


class SeesForced(ReferenceAdapter):
    """Records whether decisions were forced on it."""

    forced: tuple = ()

    def forward(self, parameters, batch, *, decisions=None, **options):
        self.forced = (*self.forced, decisions is not None)
        return super().forward(parameters, batch, decisions=decisions, **options)


def test_bfloat16_cases_force_the_stored_decisions_where_they_can(tmp_path):
    folder = upstream_folders.t5x(tmp_path / "t5x", dtype="bfloat16")
    results, code = run(folder)
    assert code == 0
    names = {r.item.rpartition("/")[2]: r.clause for r in results if "/pass/" in r.item}
    assert names["forward_logits"] == "MODEL-07"
    assert names["forward_dtypes"] == "MODEL-06"
    assert "forward_decisions" not in names
    seen = SeesForced()
    assert run(folder, seen)[1] == 0
    assert True in seen.forced
    results, code = run(folder, WithoutForcing())
    assert code == 0
    assert "pass/forward_logits" in found(results, Outcome.PASS)


class Counts(ReferenceAdapter):
    """Counts the calls that the kit itself makes."""

    def __init__(self):
        self.calls = Counter()

    def _count(self, name, *arguments, **options):
        self.calls[name] += 1
        return getattr(ReferenceAdapter(), name)(*arguments, **options)

    def forward(self, *arguments, **options):
        return self._count("forward", *arguments, **options)

    def loss(self, *arguments, **options):
        return self._count("loss", *arguments, **options)

    def decode(self, *arguments, **options):
        return self._count("decode", *arguments, **options)

    def model_gradients(self, *arguments, **options):
        return self._count("model_gradients", *arguments, **options)


def test_each_function_is_called_once_a_case_however_much_is_compared(tmp_path):
    counting = Counts()
    results, code = run(upstream_folders.t5x(tmp_path / "t5x"), counting)
    assert code == 0
    assert len(results) > 25
    assert counting.calls == {"forward": 2, "loss": 1, "decode": 1, "model_gradients": 1}


class Raises:
    calls = 0

    def forward(self, parameters, batch, **options):
        self.calls += 1
        raise RuntimeError("out of memory")


def test_a_call_that_raises_is_not_made_again_for_each_comparison(tmp_path):
    raising = Raises()
    results, code = run(upstream_folders.t5x(tmp_path / "t5x"), raising)
    assert code == 1
    errors = [r for r in results if r.outcome is Outcome.ERROR and "/pass/forward" in r.item]
    assert len(errors) > 10
    assert all("out of memory" in r.message for r in errors)
    assert raising.calls == 2


@pytest.mark.parametrize(
    ("array", "compared"),
    [
        ("pass/logits", "pass/forward_logits"),
        ("pass/acts/decoder/layers_0/mlp", "pass/forward_mlp"),
        ("pass/acts/decoder/layers_1/mlp", "pass/forward_experts"),
        ("pass/acts/decoder/layers_1/extra_mlp", "pass/forward_extra_mlp"),
        ("pass/acts/token_embedder", "pass/forward_embedder"),
        ("pass/sown/decoder/layers_1/mlp/expert_usage", "pass/forward_expert_usage"),
        ("pass/loss/aux_scaled", "pass/loss_auxiliary_loss"),
        ("pass/grads/decoder/decoder_norm/scale", "pass/gradients"),
        ("steps/step_logits", "steps/decode_logits"),
        ("steps/prefill_cache/decoder/layers_0/self_attention/cached_key", "steps/decode_prefill"),
        ("steps/final_cache/decoder/layers_3/self_attention/cached_value", "steps/decode_cache"),
        ("steps/final_cache/decoder/layers_2/self_attention/cache_index", "steps/decode_cache"),
        ("steps/prefill/initial_index", "steps/decode_prompt"),
        ("steps/predict_batch/sequences", "steps/generate"),
        ("steps/full_forward_eval_logits", "steps/forward_logits"),
    ],
)
def test_a_changed_expectation_fails_its_comparison(tmp_path, array, compared):
    folder = upstream_folders.t5x(tmp_path / "t5x")
    step = 1 if "index" in array or "sequences" in array else 1e-3

    def change(stored):
        changed = stored.copy()
        changed.reshape(-1)[np.abs(changed).argmax()] += step
        return changed

    exchange(folder / "tiny_model.npz", array, change)
    results, code = run(folder)
    assert code == 1
    assert compared in found(results, Outcome.FAIL)


def test_other_router_logits_imply_other_decisions(tmp_path):
    folder = upstream_folders.t5x(tmp_path / "t5x")
    name = "pass/acts/decoder/layers_3/mlp/router/router_weights"
    exchange(folder / "tiny_model.npz", name, lambda stored: stored[..., ::-1].copy())
    results, code = run(folder)
    assert code == 1
    failed = found(results, Outcome.FAIL)
    assert set(failed) == {"pass/forward_router", "pass/forward_decisions"}


def test_models_are_stored_once_and_an_import_runs_like_its_source(tmp_path):
    folder = upstream_folders.t5x(tmp_path / "t5x")
    source, _ = run(folder)
    assert importing.import_set(folder, tmp_path / "own") == {"model": 2, "decoding": 2}
    results, code = run(tmp_path / "own")
    assert code == 0
    names = [r.item.partition("/")[2] for r in results]
    assert sorted(names) == sorted(r.item.partition("/")[2] for r in source)
    index = json.loads((tmp_path / "own" / "model" / "index.json").read_text(encoding="utf-8"))
    first, last = index["cases"]
    assert first["borrows"] == last["id"] == "tiny_params"
    assert not any(name.startswith("params/") for name in first["arrays"])
    with np.load(tmp_path / "own" / "model" / "tiny_model.npz") as file:
        assert sum("params/" in name for name in file.files) == len(last["arrays"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i["cases"][1]["config"].update(params_case="nobody"),
            "case pass: the index has no case nobody",
        ),
        (lambda i: i["cases"][1]["config"].pop("EMBED_DIM"), "case pass: "),
        (lambda i: i["cases"][1]["config"].update(HEAD_DIM=3), "case pass: head_dim: must be even"),
        (lambda i: i["cases"][1].pop("file"), "case pass: lacks 'file'"),
        (lambda i: i["cases"][1]["arrays"].pop("logits"), "case pass: lacks array logits"),
        (lambda i: i["cases"].append([]), "case ?: "),
    ],
)
def test_a_damaged_index_is_named_and_the_rest_runs(tmp_path, change, message):
    folder = upstream_folders.t5x(tmp_path / "t5x")
    edit(folder, change)
    results, code = run(folder)
    assert code == 2
    errors = [r.message for r in results if r.outcome is Outcome.ERROR]
    assert errors
    assert all(message in one for one in errors)
    assert found(results, Outcome.PASS)


def test_a_truncated_file_of_a_model_is_named_by_all_that_need_it(tmp_path):
    folder = upstream_folders.t5x(tmp_path / "t5x")
    path = folder / "tiny_model.npz"
    path.write_bytes(path.read_bytes()[:-200])
    results, code = run(folder)
    assert code == 2
    assert all("tiny_model.npz, case" in r.message for r in results)
    with pytest.raises(UsageError, match=r"tiny_model\.npz, case"):
        importing.import_set(folder, tmp_path / "own")


# ---- tables ------------------------------------------------------------------------------------


def test_tables_beside_the_index_run_and_another_schedule_is_skipped(tmp_path):
    folder = tmp_path / "t5x"
    folder.mkdir()
    values = {"0": 0.01, "10000": 0.01, "40000": 0.005}
    schedule = {"base_learning_rate": 1.0, "warmup_steps": 10000, "values": values}
    other = schedule | {"warmup_steps": 5}
    for name, content in (
        ("index.json", {"cases": []}),
        ("lr_schedule.json", {"schedule": "...", "pretrain": schedule, "tuning": other}),
        ("sparse_layout.json", {"6/2/MIXED": [2, 5], "6/2/MIDDLE": [2, 3]}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    results, code = run(folder)
    assert code == 0
    assert Counter(r.outcome for r in results) == {Outcome.PASS: 5, Outcome.SKIPPED: 1}
    assert {r.clause for r in results} == {"OPT-01", "PARAM-02", ""}
    edit(folder, lambda i: i.update({"6/2/MIXED": [0, 3]}), "sparse_layout.json")
    results, code = run(folder)
    assert code == 1
    assert found(results, Outcome.FAIL) == ["sparse_layers_6_2_MIXED/answer"]


# ---- the published port ------------------------------------------------------------------------


CODES = ("my_openmoe", "upstream_dc003c304")


@pytest.mark.parametrize("code", CODES)
def test_the_ports_folders_run_in_their_dialect(tmp_path, code):
    folder = upstream_folders.torch_port(tmp_path / "torch_port", code=code)
    results, code = run(folder)
    assert code == 0
    assert Counter(r.outcome for r in results) == {Outcome.PASS: 16, Outcome.SKIPPED: 1}
    (skipped,) = [r for r in results if r.outcome is Outcome.SKIPPED]
    assert skipped.message.startswith("the original failed on it: IndexError")
    assert {r.clause for r in results} == {"DIAL-02", "PARAM-05", "MODEL-09", ""}


def test_another_file_of_the_port_is_another_dialect(tmp_path):
    folder = upstream_folders.torch_port(tmp_path / "torch_port", code=CODES[1])
    edit(folder, lambda i: i["cases"][0].update(code=CODES[0]), "decode/cases.json")
    results, code = run(folder)
    assert code == 1
    assert "decode_chunks/decode_logits" in found(results, Outcome.FAIL)
    edit(folder, lambda i: i["cases"][0].update(code="another"), "decode/cases.json")
    results, code = run(folder)
    assert code == 0
    assert "decode_chunks/all" in found(results, Outcome.SKIPPED)


class SpeaksOne(ReferenceAdapter):
    """Knows no dialect but the training code's."""

    def forward(self, parameters, batch, *, configuration, training=False, decisions=None):
        options = {"configuration": configuration, "training": training, "decisions": decisions}
        return ReferenceAdapter.forward(self, parameters, batch, **options)


def test_an_implementation_without_the_dialect_is_skipped(tmp_path):
    results, code = run(upstream_folders.torch_port(tmp_path / "torch_port"), SpeaksOne())
    assert code == 0
    skipped = [r for r in results if r.outcome is Outcome.SKIPPED and "/forward_" in r.item]
    assert {r.message for r in skipped} == {"forward() speaks t5x, not torch_port"}
    assert not [r for r in results if r.outcome is Outcome.PASS and "/forward_" in r.item]


@pytest.mark.parametrize(
    ("file", "array", "compared"),
    [
        ("models/M_forward.npz", "plain/moe1/position", "M_plain/forward_decisions"),
        ("models/M_forward.npz", "plain/moe3/used_capacity", "M_plain/forward_decisions"),
        ("models/M_forward.npz", "plain/hidden_states", "M_plain/forward_hidden_states"),
        ("models/M_forward.npz", "plain/last_layer_raw", "M_plain/forward_last_layer"),
        ("models/M_forward.npz", "plain/moe1/gate", "M_plain/forward_gates"),
        ("decode/decode.npz", "chunks/decode_logits", "decode_chunks/decode_logits"),
        ("decode/decode.npz", "chunks/step01/moe1/kept", "decode_chunks/decode_decisions"),
        ("decode/decode.npz", "chunks/full/moe3/expert_index", "decode_chunks/forward_decisions"),
        (
            "convert/whole_t5x.npz",
            "decoder|decoder_norm|scale",
            "convert_whole_state_dict/state_dict",
        ),
    ],
)
def test_a_changed_output_of_the_port_fails_its_comparison(tmp_path, file, array, compared):
    folder = upstream_folders.torch_port(tmp_path / "torch_port")

    def change(stored):
        changed = stored.copy()
        if changed.dtype == bool:
            changed[0, 0] = ~changed[0, 0]
        else:
            changed.reshape(-1)[0] += 1
        return changed

    exchange(folder / file, array, change)
    results, code = run(folder)
    assert code == 1
    assert compared in found(results, Outcome.FAIL)


def test_a_wrong_name_of_the_port_fails(tmp_path):
    folder = upstream_folders.torch_port(tmp_path / "torch_port")

    def change(rows):
        mapping = rows[0]["mapping"]
        mapping["model.final_norm.weight"] = mapping.pop("model.norm.weight")

    edit(folder, change, "convert/cases.json")
    results, code = run(folder)
    assert code == 1
    assert found(results, Outcome.FAIL) == ["convert_whole/names"]


class AcceptsAnything(ReferenceAdapter):
    def forward(self, parameters, batch, **options):
        try:
            return super().forward(parameters, batch, **options)
        except ValueError:
            return {"logits": np.zeros((1, 2, options["configuration"]["vocabulary_size"]))}


def test_a_tree_that_the_port_cannot_convert_must_be_rejected(tmp_path):
    results, code = run(upstream_folders.torch_port(tmp_path / "torch_port"), AcceptsAnything())
    assert code == 1
    assert found(results, Outcome.FAIL) == ["convert_cut/rejected"]


def test_an_import_of_the_port_leaves_out_what_follows_and_keeps_trees_apart(tmp_path):
    folder = upstream_folders.torch_port(tmp_path / "torch_port")
    assert importing.import_set(folder, tmp_path / "own") == {"dialects": 5}
    results, code = run(tmp_path / "own")
    assert code == 0
    names = {r.item.partition("/")[2] for r in results}
    source, _ = run(folder)
    wanted = {r.item.partition("/")[2] for r in source if r.outcome is Outcome.PASS}
    assert wanted - names == {"convert_whole_state_dict/state_dict"}
    assert "convert_cut/rejected" in names  # it must not borrow the tensor that it lacks


@pytest.mark.parametrize(
    ("file", "case"),
    [
        ("models/M/model.safetensors", "models/cases.json, case M: models/M/model.safetensors: "),
        ("models/M/config.json", "models/cases.json, case M: models/M/config.json: "),
        ("models/M_forward.npz", "models/cases.json, case plain: models/M_forward.npz: "),
        ("decode/decode.npz", "decode/cases.json, case chunks: decode/decode.npz: "),
        ("convert/whole_t5x.npz", "convert/cases.json, case whole: convert/whole_t5x.npz: "),
        ("decode/cases.json", "decode/cases.json cannot be read: "),
    ],
)
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_damaged_file_of_the_port_is_named_and_the_rest_runs(tmp_path, file, case, how):
    folder = upstream_folders.torch_port(tmp_path / "torch_port")
    path = folder / file
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    results, code = run(folder)
    if file == "decode/cases.json" and how == "missing":
        assert code == 0  # a set may do without any of its folders
        return
    assert code == 2
    errors = [r.message for r in results if r.outcome is Outcome.ERROR]
    assert any(message.startswith(f"torch_port/{case}") for message in errors)
    assert found(results, Outcome.PASS)
    with pytest.raises(UsageError):
        importing.import_set(folder, tmp_path / "own")
