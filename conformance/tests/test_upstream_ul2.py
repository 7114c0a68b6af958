"""The data pipeline's layout: every row runs, what is wrong is named, an import runs like its source."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upstream_ul2_folder import MODEL, ul2

from openmoe_conformance import (
    importing,
    runner,
    upstream_ul2_examples,
    vector_kinds,
    vector_sets,
)
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.outcome import Evidence, Outcome, UsageError, exit_code
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject
from openmoe_conformance.upstream_rows import plain
from openmoe_reference import draws, noise
from openmoe_spec.data import OBJECTIVES

CHAPTERS = ("vocabulary", "objectives", "documents", "batching")


def run(folder: Path, implementation: Any = None):
    options = runner.Options("", profile=PROFILES["quick"], vectors=folder, checks=False)
    results, planned = runner.run(options, Subject(implementation or ReferenceAdapter()))
    assert len(results) == planned
    return results, exit_code(results, planned)


def edit(folder: Path, file: str, change) -> None:
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    change(content)
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


def found(results, outcome: Outcome) -> list[str]:
    return [r.item.partition("/")[2] for r in results if r.outcome is outcome]


def messages(results, outcome: Outcome) -> list[str]:
    return [r.message for r in results if r.outcome is outcome]


@pytest.fixture
def folder(tmp_path):
    return ul2(tmp_path / "ul2")


def test_every_row_of_every_file_runs_and_has_its_clause(folder):
    results, code = run(folder)
    assert code == 0
    assert {r.outcome for r in results} == {Outcome.PASS, Outcome.SKIPPED}
    clauses = {r.item.partition("/")[2]: r.clause for r in results}
    wanted = {
        "sentinels_000_all_noise/noise_span_to_unique_sentinel": "OBJ-07",
        "sentinels_000_all_noise/drop_nonnoise_tokens": "OBJ-08",
        "noise_counts_000/counts": "OBJ-02",
        "noise_counts_001/form": "OBJ-04",
        "noise_counts_002/rejected": "OBJ-06",
        "noise_mask_001/answer": "OBJ-04",
        "noise_mask_distribution/cuts": "OBJ-03",
        "noise_mask_distribution/drawn": "OBJ-16",
        "span_lengths_000/answer": "OBJ-05",
        "prefix_001/answer": "OBJ-11",
        "prefix_bounds_000/answer": "OBJ-11",
        "prefix_bounds_beyond_half/answer": "OBJ-12",
        "hist_length11_d05/drawn": "OBJ-17",
        "features_000_docstring_example/decoder_target_tokens": "BATCH-01",
        "features_000_docstring_example/decoder_input_tokens": "BATCH-02",
        "features_000_docstring_example/decoder_loss_weights": "BATCH-03",
        "features_000_docstring_example/decoder_causal_attention": "BATCH-04",
        "features_001_targets_longer_than_lengths_errors/rejected": "BATCH-10",
        "features_002_empty_targets_then_normal/decoder_loss_weights": "BATCH-09",
        "features_003_zero_inside_inputs/decoder_loss_weights": "BATCH-08",
        "features_004_lm_full_lm_style_full_segments/decoder_target_tokens": "BATCH-05",
        "features_004_lm_full_lm_style_full_segments/no_causal_attention": "BATCH-05",
        "features_005_docstring_example_packed/decoder_segment_ids": "BATCH-07",
        "features_005_docstring_example_packed/rows": "BATCH-06",
        "feature_converters_7_8_pack0/decoder_target_tokens": "BATCH-01",
        "feature_converters_7_8_pack1/decoder_positions": "BATCH-07",
        "bytefallback_umt5layout_extra300/size": "VOCAB-01",
        "bytefallback_umt5layout_extra300/sentinels": "VOCAB-02",
        "bytefallback_umt5layout_extra300_piece_at_base/answer": "VOCAB-02",
        "bytefallback_umt5layout_extra300_encode_000/answer": "VOCAB-03",
        "bytefallback_umt5layout_extra300_decode_000/answer": "VOCAB-04",
        "openmoe/size": "VOCAB-01",
        "openmoe_quoted_000/sentinels": "VOCAB-02",
        "prompt_NLU/answer": "VOCAB-03",
        "branch_000_record_000/noise_replaced": "OBJ-07",
        "branch_000_record_000/finished": "OBJ-13",
        "branch_000_segments/answer": "DATA-05",
        "branch_000_length/answer": "OBJ-05",
        "branch_001_record_000/prefix_split": "OBJ-11",
        "branch_001_record_014/whole": "OBJ-14",
        "small_ul2_001/whole": "OBJ-14",
        "small_noprefix_009/whole": "OBJ-14",
        "full_lm/answer": "DATA-06",
        "sampler_seed7/answer": "DATA-07",
        "mix_lesscode_ul2/answer": "DATA-08",
        "task_orca_sft/answer": "DATA-10",
        "ul2_objective_defaults/answer": "OBJ-01",
        "sft_000_texts/answer": "DATA-10",
        "sft_001/ids": "DATA-10",
    }
    assert {name: clauses.get(name) for name in wanted} == wanted


def test_what_is_not_specified_or_not_stored_is_skipped_with_a_reason(folder):
    results, _ = run(folder)
    reasons = dict(
        zip(found(results, Outcome.SKIPPED), messages(results, Outcome.SKIPPED), strict=True)
    )
    assert reasons == {
        "hist_length11_d025/all": "only prefixes of density 0.5 are drawn",
        "openmoe_quoted_000_other_ids/all": "its other ids need umT5's own model file",
        "full_lm_2048/all": "statistics of documents that are not stored",
        "mix_other/all": "the mixture mix_other is not specified",
        "c4_packed/all": "the task c4_packed makes features of its own",
        "sft_002/all": "the task alpaca_sft_V1 is not specified",
    }


def test_runs_beyond_the_sentinels_run_on_and_are_rejected_by_default(folder):
    results, _ = run(folder)
    beyond = {r.item.rpartition("/")[2]: r.clause for r in results if "sentinels_002_" in r.item}
    for name in ("noise_span_to_unique_sentinel", "nonnoise_span_to_unique_sentinel"):
        assert beyond[name] == "OBJ-10"
        assert beyond[f"{name}_rejected"] == "OBJ-09"
    assert not [r for r in results if "sentinels_001_" in r.item and r.clause == "OBJ-09"]


def test_an_import_runs_like_its_source(folder, tmp_path):
    source, _ = run(folder)
    counts = importing.import_set(folder, tmp_path / "own")
    assert set(counts) == set(CHAPTERS)
    results, code = run(tmp_path / "own")
    assert code == 0
    assert {r.outcome for r in results} == {Outcome.PASS}
    assert sorted(found(results, Outcome.PASS)) == sorted(found(source, Outcome.PASS))
    index = json.loads((tmp_path / "own/vocabulary/index.json").read_text(encoding="utf-8"))
    assert index["provenance"]["program"] == "a fork"
    assert list(index["files"]) == [MODEL]


# ---- what an implementation gets wrong ---------------------------------------------------------


class OtherIds(ReferenceAdapter):
    """Puts each sentinel one id too low."""

    def replace_noise(self, tokens, noise_mask, *, vocabulary_size, **options):
        size = vocabulary_size - 1
        return super().replace_noise(
            np.minimum(tokens, size - 1), noise_mask, vocabulary_size=size, **options
        )


class AcceptsOverflow(ReferenceAdapter):
    """Never rejects more runs than sentinels."""

    def replace_noise(self, tokens, noise_mask, **options):
        return super().replace_noise(tokens, noise_mask, **options | {"overflow": "runs_on"})


class DrawsOneShort(ReferenceAdapter):
    """Never draws the longest prefix, nor a mask that ends in one token of noise."""

    def draw_splits(self, length, *, count, seed):
        return np.minimum(super().draw_splits(length, count=count, seed=seed), length - 2)

    def draw_noise_masks(self, length, **options):
        masks = super().draw_noise_masks(length, **options)
        masks[~masks[:, -2]] = masks[masks[:, -2]][0]
        return masks


class ShiftsPacked(ReferenceAdapter):
    """Shifts a packed row as one text."""

    def decoder_features(self, examples, *, pack, **options):
        made = dict(super().decoder_features(examples, pack=pack, **options))
        rolled = np.roll(made["decoder_target_tokens"], 1, axis=1)
        rolled[:, 0] = 0
        return made | {"decoder_input_tokens": rolled}


class ForgetsModes(ReferenceAdapter):
    """Puts no mode in front."""

    def ul2_example(self, segment, objective, *, prompt, **options):
        return super().ul2_example(segment, objective, prompt=prompt[:0], **options)


@pytest.mark.parametrize(
    ("implementation", "failed"),
    [
        (OtherIds(), "sentinels_000_all_noise/noise_span_to_unique_sentinel"),
        (AcceptsOverflow(), "_rejected"),
        (DrawsOneShort(), "hist_length11_d05/drawn"),
        (DrawsOneShort(), "noise_mask_distribution/drawn"),
        (ShiftsPacked(), "feature_converters_7_8_pack1/decoder_input_tokens"),
        (ForgetsModes(), "small_ul2_002/whole"),
    ],
)
def test_a_wrong_implementation_fails(folder, implementation, failed):
    results, code = run(folder, implementation)
    assert code == 1
    assert [name for name in found(results, Outcome.FAIL) if name.endswith(failed)]
    assert not found(results, Outcome.ERROR)


class WithoutPieces(ReferenceAdapter):
    """Has no package for pieces of text."""

    def encode_text(self, text, **_):
        raise UnsupportedError("the package sentencepiece is not installed")

    decode_text = encode_text


def test_an_implementation_without_pieces_of_text_is_skipped(folder):
    results, code = run(folder, WithoutPieces())
    assert code == 0
    lacking = [r for r in results if r.message == "the package sentencepiece is not installed"]
    assert {r.outcome for r in lacking} == {Outcome.SKIPPED}
    assert {r.clause for r in lacking} == {"VOCAB-02", "VOCAB-03", "VOCAB-04", "DATA-10"}


# ---- what is wrong with the files --------------------------------------------------------------


def _pop(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content.pop(path[-1])

    return change


def _put(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "failed"),
    [
        ("sentinel_transforms", _put([9], "cases", 0, "targets"), "sentinels_000_all_noise/non"),
        ("noise_counts", _put(3, 1, "num_noise_spans"), "noise_counts_001/counts"),
        ("noise_counts", _put(77, 1, "mask_sum"), "noise_counts_001/form"),
        ("random_spans_helper", _put(3, 0, "tokens_length"), "span_lengths_000/answer"),
        ("prefix_lm", _put([3], "cases", 1, "inputs"), "prefix_001/answer"),
        ("prefix_lm", _put(0, "masks", 0, "min_input_tokens"), "prefix_bounds_000/answer"),
        ("prefix_lm", _put([200] * 11, "hist_length11_d05", "counts_by_num_inputs"), "hist_length"),
        (
            "vocabulary",
            _put(
                "hello",
                *("vocabularies", "bytefallback_umt5layout_extra300", "encode", 0, "decoded"),
            ),
            "bytefallback_umt5layout_extra300_encode_000_decoded/answer",
        ),
        ("vocabulary", _put(256298, "openmoe", "extra_id_0"), "openmoe/sentinels"),
        (
            "pipeline",
            _put([5], "branches", 0, "records", 2, "final_targets"),
            "branch_000_record_002/finished",
        ),
        ("pipeline", _put([2, 1], "full_lm", "segments", 0), "full_lm/answer"),
        (
            "mixtures",
            lambda c: c["mixtures"]["mix_lesscode_ul2"].update(rates={"redpajama_c4_ul2": 100.0}),
            "mix_lesscode_ul2/answer",
        ),
        ("mixtures", _put("", *("ul2_objective_defaults", "optional_task_prefixes", 5)), "ul2_obj"),
        ("sft", _put([7, 1], 1, "targets"), "sft_001/ids"),
        (
            "feature_converters",
            _put([9] * 15, 0, "outputs", 1, "decoder_target_tokens"),
            "features_000_docstring_example/decoder_target_tokens",
        ),
        ("noise_mask_distribution", lambda c: c["distinct_masks"].pop(), "noise_mask_distribution"),
    ],
)
def test_another_expected_value_fails_and_is_no_error(folder, file, change, failed):
    edit(folder, f"{file}.json", change)
    results, code = run(folder)
    assert code == 1
    assert [name for name in found(results, Outcome.FAIL) if name.startswith(failed)]
    assert not found(results, Outcome.ERROR)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "sentinel_transforms",
            _pop("cases", 1, "drop_noise"),
            "case sentinels_001: lacks drop_noise",
        ),
        ("sentinel_transforms", _pop("cases", 1, "tokens"), "case sentinels_001: lacks 'tokens'"),
        (
            "sentinel_transforms",
            _put([2], "cases", 2, "noise_mask"),
            "case sentinels_002: noise_mask must be 0 or 1 for each of 100 tokens",
        ),
        ("noise_counts", _put("x", 0, "length"), "case noise_counts_000: length must be a whole"),
        ("noise_counts", lambda c: c.append(7), "case ?: "),
        ("noise_masks", _put(9, 0, "i"), "case noise_mask_000: noise_masks.npz"),
        ("noise_masks", _put(4, 0, "num_noise"), "case noise_mask_000: mask_0 has num_noise "),
        (
            "noise_mask_distribution",
            _put([], "distinct_masks"),
            "case noise_mask_distribution: there are no distinct_masks",
        ),
        ("random_spans_helper", _pop(0, "targets_length"), "case span_lengths_000: lacks"),
        ("prefix_lm", _put(0, "masks", 0, "num_input_tokens"), "case prefix_bounds_000: num_input"),
        ("prefix_lm", _put(3, "hist_length11_d05"), "case hist_length11_d05: "),
        ("feature_converters", _put([], 0, "outputs"), "case features_000: its rows do not hold"),
        ("feature_converters", _pop(0, "pack"), "case features_000: lacks 'pack'"),
        (
            "vocabulary",
            _put(
                "no.model",
                *("vocabularies", "bytefallback_umt5layout_extra300", "model"),
            ),
            "case bytefallback_umt5layout_extra300: no.model: cannot be read",
        ),
        (
            "vocabulary",
            _put(
                "../x.model",
                *("vocabularies", "bytefallback_umt5layout_extra300", "model"),
            ),
            "case bytefallback_umt5layout_extra300_encode_000: file leaves its folder",
        ),
        (
            "vocabulary",
            _put([1], "openmoe", "hf_umt5_test_rows", 0, "ids"),
            "case openmoe_quoted_000: its text has 1 sentinels, its ids 0",
        ),
        ("pipeline", _put("umT5", "vocab"), "case small_ul2_003: vocab does not name a model"),
        ("pipeline", _pop("prompts", "[NLU]"), "case branch_000_record_000: lacks '[NLU]'"),
        ("pipeline", _put([1], "small_ul2", 2, "targets"), "case small_ul2_002: no choices of its"),
        (
            "pipeline",
            _put([8, 1], "small_ul2", 2, "inputs"),
            "case small_ul2_002: its inputs do not begin with the ids of their mode",
        ),
        (
            "pipeline",
            _put([3] * 6, "summary", "sampler_seed7", "counts"),
            "case sampler_seed7: its counts are not those of its choices",
        ),
        ("pipeline", _put([[5]], "branches", 0, "records"), "case branch_000"),
        ("mixtures", _put(99.0, *("mixtures", "mix_lesscode_ul2", "sum")), "case mix_lesscode_ul2"),
        ("mixtures", _put([0.5], "ul2_objective_defaults", "rates"), "case ul2_objective_defaults"),
        ("sft", _pop(0, "lengths"), "case sft_000: lacks 'lengths'"),
    ],
)
def test_a_damaged_row_is_named_and_the_rest_runs(folder, file, change, message):
    edit(folder, f"{file}.json", change)
    results, code = run(folder)
    assert code == 2
    errors = messages(results, Outcome.ERROR)
    assert any(one.startswith(f"ul2/{file}.json, {message}") for one in errors)
    assert len(found(results, Outcome.PASS)) > 100
    with pytest.raises(UsageError):
        importing.import_set(folder, folder.parent / "own")


@pytest.mark.parametrize("how", ["truncated", "missing"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("noise_masks.npz", "ul2/noise_masks.json, case noise_mask_000: "),
        ("feature_converters_7_8.npz", "ul2/feature_converters_7_8.npz, case "),
        (MODEL, f"{MODEL}, case bytefallback_umt5layout_extra300_decode_000: "),
        ("noise_counts.json", "ul2/noise_counts.json cannot be read: "),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_runs(folder, file, message, how):
    path = folder / file
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    results, code = run(folder)
    assert len(found(results, Outcome.PASS)) > 100
    if how == "missing" and file not in (MODEL, "noise_masks.npz"):
        assert code == 0  # a set may do without any of its files, but not in silence
        reason = "the index names this file, and it is not there"
        assert messages(results, Outcome.SKIPPED).count(reason) == 1
        return
    assert code == 2
    assert any(one.startswith(message) for one in messages(results, Outcome.ERROR))


@pytest.mark.parametrize("cut", [1, 2, 100_000, 249_000])
def test_a_model_that_is_cut_anywhere_is_the_files_fault(folder, cut):
    content = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(content[:-cut])
    results, code = run(folder)
    assert code == 2
    faulty = [r for r in results if r.outcome is Outcome.ERROR]
    assert faulty
    assert all("SentencePiece model" in r.message and MODEL in r.message for r in faulty)


def test_a_model_of_another_number_of_pieces_is_named(folder):
    name = "bytefallback_umt5layout_extra300"
    edit(folder, "vocabulary.json", _put(801, "vocabularies", name, "base_pieces"))
    results, _ = run(folder)
    (message,) = messages(results, Outcome.ERROR)
    assert message == f"ul2/vocabulary.json, case {name}: {MODEL} has 800 pieces, not 801"


def test_permutations_that_are_not_those_of_their_uniforms_are_named(folder):
    with np.load(folder / "noise_masks.npz") as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(folder / "noise_masks.npz", **arrays | {"uniform_noise_0": -arrays["uniform_noise_0"]})
    results, code = run(folder)
    assert code == 2
    (message,) = messages(results, Outcome.ERROR)
    assert message.endswith("perm_noise_0 is not the stable order of uniform_noise_0")


def test_rows_on_which_the_original_raised_are_rejected_or_skipped(folder):
    def raised(file, *path):
        edit(folder, file, _put("ValueError: no", *path))

    raised("sentinel_transforms.json", "cases", 0, "error")
    raised("noise_masks.json", 1, "error")
    raised("random_spans_helper.json", 0, "error")
    raised("prefix_lm.json", "masks", 0, "error")
    raised("sft.json", 0, "error")
    results, code = run(folder)
    assert code == 1
    reason = "the original failed on it: ValueError: no"
    assert messages(results, Outcome.SKIPPED).count(reason) == 2
    accepted = {"noise_mask_001/answer", "span_lengths_000/answer", "prefix_bounds_000/answer"}
    assert set(found(results, Outcome.FAIL)) == accepted


def test_a_set_of_one_file_and_files_that_nobody_knows(folder):
    for path in folder.iterdir():
        if path.name not in ("index.json", "noise_counts.json"):
            path.unlink()
    (folder / "streams.json").write_text("{}", encoding="utf-8")
    edit(folder, "index.json", lambda i: i.update(groups={"noise_counts": "", "streams": ""}))
    results, code = run(folder)
    assert code == 0
    assert messages(results, Outcome.SKIPPED) == ["no reader of this version reads streams.json"]
    assert Counter(r.clause for r in results) == {"OBJ-02": 2, "OBJ-04": 2, "OBJ-06": 1, "": 1}


# ---- models in the project's own layout --------------------------------------------------------


@pytest.fixture
def own(folder, tmp_path):
    importing.import_set(folder, tmp_path / "own")
    return tmp_path / "own" / "vocabulary"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["files"].clear(), f"{MODEL} has no sha256"),
        (lambda i: i["files"][MODEL].update(sha256="0" * 64), "its sha256 is not the one"),
        (lambda i: _encoding(i).update(model="../index.json"), "file leaves its folder"),
        (lambda i: _encoding(i).pop("model"), "encode_text needs the argument model"),
        (
            lambda i: _encoding(i)["config"]["arguments"].update(model="/dev/null"),
            "a model is no plain argument: the case names its file",
        ),
        (
            lambda i: _encoding(i)["config"].update(function="num_blocks", arguments={"length": 3}),
            "num_blocks has no argument model",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_named(own, change, message):
    edit(own, "index.json", change)
    results, code = run(own)
    assert code == 2
    errors = messages(results, Outcome.ERROR)
    assert errors
    assert all(message in one for one in errors)


def _encoding(index):
    name = "bytefallback_umt5layout_extra300_encode_000"
    return next(row for row in index["cases"] if row["id"] == name)


def test_a_model_of_the_own_layout_must_be_there(own):
    (own / MODEL).unlink()
    results, code = run(own)
    assert code == 2
    errors = messages(results, Outcome.ERROR)
    assert all(one.startswith(f"{MODEL}, case ") for one in errors)
    assert found(results, Outcome.PASS)


def test_a_config_that_a_comparison_needs_is_named(own):
    edit(own, "index.json", lambda i: i["cases"][0]["config"].pop("size"))
    results, code = run(own)
    assert code == 2
    (message, *_) = messages(results, Outcome.ERROR)
    assert message.endswith("case bytefallback_umt5layout_extra300: its config lacks size")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_shipped_chapters_pass_for_the_reference(chapter):
    results, code = run(vector_sets.built_in() / chapter)
    assert code == 0
    assert {r.outcome for r in results} == {Outcome.PASS}


# ---- choices read off an example ---------------------------------------------------------------


@pytest.mark.parametrize("objective", range(6))
@pytest.mark.parametrize(("inputs_length", "modes"), [(64, 5), (64, 0), (40, 3), (17, 1)])
def test_choices_that_are_read_off_an_example_make_it_again(objective, inputs_length, modes):
    sizes = {"inputs_length": inputs_length, "targets_length": inputs_length}
    given = {"vocabulary_size": 1100, "num_sentinels": 300, **sizes}
    config = {**given, "prompt": [7] * modes}
    made, reference = OBJECTIVES[objective], ReferenceAdapter()
    generator = np.random.default_rng(objective)
    longest = inputs_length - 1
    if made.mean_noise_span_length is not None:
        how = {
            "noise_density": made.noise_density,
            "mean_noise_span_length": made.mean_noise_span_length,
        }
        longest = noise.span_lengths(inputs_length, **how)["tokens_length"]
    for length in range(1, longest + 1):
        choices = {"split": int(generator.integers(1, length))} if length > 1 else {"split": 0}
        if made.mean_noise_span_length is not None:
            choices = draws.permutations(generator, noise.noise_counts(length, **how))
        segment = generator.integers(300, 800, length)
        prompt = np.array(config["prompt"], np.int32)
        example = reference.ul2_example(segment, objective, prompt=prompt, **given, **choices)
        ids = {name: one.tolist() for name, one in example.items()}
        read = upstream_ul2_examples.chosen(
            ids["inputs"], ids["targets"], objectives=range(6), config=config
        )
        case = plain(Path(), "x", "example", config=config | ids | read, clauses={}, chapter="")
        vector_kinds.compare(Subject(reference), case, "whole", {}, Evidence())
        if modes == 0:
            assert read["segment"][: longest // 2] == segment.tolist()[: longest // 2]
