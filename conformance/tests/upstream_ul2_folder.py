"""A small folder in the layout that the data pipeline's vectors came in, made of shipped ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_conformance import vector_sets

MODEL = "bytefallback_umt5layout.model"
_TRANSFORMS = {
    "inputs": "noise_span_to_unique_sentinel",
    "targets": "nonnoise_span_to_unique_sentinel",
    "noise_span_to_sentinel": "noise_span_to_sentinel",
    "nonnoise_span_to_sentinel": "nonnoise_span_to_sentinel",
    "noise_token_to_sentinel": "noise_token_to_sentinel",
    "drop_noise": "drop_noise_tokens",
    "drop_nonnoise": "drop_nonnoise_tokens",
}


def ul2(folder: Path) -> Path:
    """Write a set with cases of every file."""
    folder.mkdir()
    files = {
        "sentinel_transforms": _sentinels(),
        "noise_counts": _counts(),
        "noise_masks": _masks(folder),
        "noise_mask_distribution": _distribution(),
        "random_spans_helper": [_answered("objectives", "span_lengths_000")],
        "prefix_lm": _prefixes(),
        "feature_converters": _features(folder),
        "vocabulary": _vocabulary(),
        "pipeline": _pipeline(),
        "mixtures": _mixtures(),
        "sft": _fine_tuning(),
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(vector_sets.built_in() / "vocabulary" / MODEL, folder)
    groups = dict.fromkeys([*files, "feature_converters_7_8"], "")
    index = {"versions": {"t5_fork": "a fork", "python": "3.11.7"}, "groups": groups}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


# ---- shipped cases -----------------------------------------------------------------------------


def _index(chapter: str) -> list[dict[str, Any]]:
    path = vector_sets.built_in() / chapter / "index.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return rows


def _cases(chapter: str, prefix: str) -> Iterator[dict[str, Any]]:
    return (row for row in _index(chapter) if row["id"].startswith(prefix))


def _config(chapter: str, name: str) -> dict[str, Any]:
    config: dict[str, Any] = next(_cases(chapter, name))["config"]
    return config


def _answered(chapter: str, name: str) -> dict[str, Any]:
    """Return arguments and answer of a call in one."""
    config = _config(chapter, name)
    return {**config["arguments"], **config["expected"]}


# ---- noise -------------------------------------------------------------------------------------


def _sentinels() -> dict[str, Any]:
    rows = []
    for number in (0, 5, 102):
        case = next(_cases("objectives", f"sentinels_{number:03d}"))
        config = case["config"]
        row = {"tag": case["exercises"], "vocab_size": config["vocabulary_size"]}
        row |= {"extra_ids": config["num_sentinels"], "tokens": config["tokens"]}
        row["noise_mask"] = config["noise_mask"]
        rows.append(row | {theirs: config[ours] for theirs, ours in _TRANSFORMS.items()})
    return {"fields": "...", "cases": rows}


def _counts() -> list[dict[str, Any]]:
    rows = [_config("objectives", f"noise_counts_{number:03d}") for number in (0, 40)]
    refused = next(
        r for r in _cases("objectives", "noise_counts") if "rejected" in r["comparisons"]
    )
    return [*rows, {**refused["config"], "error": "InvalidArgumentError: shapes"}]


def _masks(folder: Path) -> list[dict[str, Any]]:
    rows, arrays = [], {}
    path = vector_sets.built_in() / "objectives" / "noise_masks.npz"
    wanted = [r for r in _cases("objectives", "noise_mask_") if r["kind"] == "call"]
    kept = [
        next(r for r in wanted if r["config"]["arguments"]["length"] == 20),
        next(r for r in wanted if "roll" in r["config"]["arguments"]),
        next(r for r in wanted if r["config"]["arguments"]["noise_density"] == 0),
    ]
    with np.load(path) as stored:
        for place, case in enumerate(kept):
            row = {"i": place, **case["config"]["arguments"]}
            if "roll" in row:
                row |= {"random_roll": True, "roll_offset": row.pop("roll")}
            for kind in ("noise", "nonnoise"):
                row.pop(f"{kind}_permutation", None)
                if f"arguments/{kind}_permutation" in case["arrays"]:
                    order = stored[f"{case['id']}/arguments/{kind}_permutation"]
                    row[f"num_{kind}_tokens"] = len(order) + 1
                    arrays[f"perm_{kind}_{place}"] = order
                    arrays[f"uniform_{kind}_{place}"] = np.argsort(order).astype(np.float32)
            arrays[f"mask_{place}"] = stored[f"{case['id']}/expected"]
            rows.append(row | {"num_noise": int(arrays[f"mask_{place}"].sum())})
    np.savez(folder / "noise_masks.npz", **arrays)
    return rows


def _distribution() -> dict[str, Any]:
    config = _config("objectives", "noise_mask_distribution")
    return {**config, "distinct_masks": config["masks"], "n": 2000}


def _prefixes() -> dict[str, Any]:
    bounds = _config("objectives", "prefix_bounds_040")
    least, most = bounds["expected"]
    return {
        "cases": [_answered("objectives", "prefix_000"), _answered("objectives", "prefix_012")],
        "masks": [
            {**bounds["arguments"], "min_input_tokens": least, "num_input_tokens": most}
            | {"max_input_tokens_inclusive": most}
        ],
        "hist_length11_d05": {"n": 2000, "counts_by_num_inputs": [0, *[200] * 10]},
        "hist_length11_d025": {"n": 2000, "counts_by_num_inputs": [0, *[200] * 10]},
        "error_density_gt_half": "noise density must not exceed 0.5",
    }


# ---- rows and text -----------------------------------------------------------------------------


def _features(folder: Path) -> list[dict[str, Any]]:
    rows, arrays = [], {}
    for number in (0, 3, 5, 7, 13, 18, 28):
        case = next(_cases("batching", f"features_{number:03d}"))
        config = case["config"]
        row = {"tag": case["exercises"], "converter": "DecoderFeatureConverter", "kwargs": {}}
        row |= {"examples": config["examples"], "task_feature_lengths": config["lengths"]}
        if "loss_on_targets_only" in config:
            row["kwargs"] = {"loss_on_targets_only": config["loss_on_targets_only"]}
        row |= {"pack": config["pack"], "outputs": config.get("outputs")}
        rows.append(row | {"error": None if config.get("outputs") else "InvalidArgumentError"})
        if number in (0, 18):
            for place, example in enumerate(config["examples"]):
                arrays |= {f"example_{place}_{n}": np.array(a) for n, a in example.items()}
            for place, one in enumerate(config["outputs"]):
                name = f"pack{int(config['pack'])}_{place}"
                arrays |= {f"{name}_{feature}": np.array(a) for feature, a in one.items()}
    np.savez(folder / "feature_converters_7_8.npz", **arrays)
    return rows


def _vocabulary() -> dict[str, Any]:
    name = "bytefallback_umt5layout_extra300"
    config = _config("vocabulary", name)
    encoded, decoded = (
        _config("vocabulary", f"{name}_{kind}_005") for kind in ("encode", "decode")
    )
    shown = _config("vocabulary", f"{name}_encode_005_decoded")["expected"]
    return {
        "vocabularies": {
            name: {
                "model": MODEL,
                "base_pieces": config["num_pieces"],
                "extra_ids": config["num_sentinels"],
                "reverse_extra_ids": config["reverse"],
                "vocab_size": config["size"]["vocabulary_size"],
                "pad_id": 0,
                "eos_id": 1,
                "preprocessor_sentinel_id": 1099,
                "sentinel_ids": config["sentinels"],
                "piece_at_base": "▁<extra_id_299>",
                "encode": [
                    {"text": encoded["arguments"]["text"], "ids": encoded["expected"]}
                    | {"decoded": shown}
                ],
                "decode": [{"ids": decoded["arguments"]["ids"], "decoded": decoded["expected"]}],
            }
        },
        "openmoe": {
            "base_pieces": 256000,
            "extra_ids": 300,
            "vocab_size": 256300,
            "num_embeddings": 256384,
            "extra_id_0": 256299,
            "hf_umt5_test_rows": [
                {"text": "No se como puedo <extra_id_0>.", "ids": [826, 321, 671, 256299, 274, 1]}
            ],
        },
    }


def _pipeline() -> dict[str, Any]:
    segments = _config("documents", "branch_001_segments")
    prefix = _config("documents", "branch_005_segments")
    modes = {mode: _config("vocabulary", f"prompt_{mode}")["expected"] for mode in _MODES}
    examples = [_config("objectives", f"small_ul2_{number:03d}") for number in (0, 2, 5, 9)]
    kinds = ("[S2S]", "[NLG]", "[NLU]", "[NLG]")
    return {
        "vocab": f"{MODEL} + 300 extra ids (vocab_size 1100, <extra_id_0>=1099)",
        "prompts": {f"[{mode}]": given for mode, given in modes.items()},
        "lengths_small": {"inputs": 64, "targets": 64},
        "branches": [
            {"mean_noise_span_length": 8.0, "noise_density": 0.15, "prompt": "[NLU] "}
            | {"segment_length": len(segments["expected"][0]), "documents": None}
            | {"concatenated": segments["arguments"]["documents"][0]}
            | {"records": _records("branch_001")},
            {"prefix_lm": True, "prompt": "[S2S] ", "segment_length": len(prefix["expected"][0])}
            | {"records": _records("branch_005")},
        ],
        "full_lm": {
            "documents": _config("documents", "full_lm")["arguments"]["documents"],
            "target_length": _config("documents", "full_lm")["arguments"]["length"],
            "eos_id": 1,
            "segments": _config("documents", "full_lm")["expected"],
        },
        "small_ul2": [
            {"kind": kind, **{name: one[name] for name in ("inputs", "targets")}}
            for kind, one in zip(kinds, examples, strict=True)
        ],
        "small_noprefix": [
            {name: one["config"][name] for name in ("inputs", "targets")}
            for one in _cases("objectives", "small_noprefix_00")
        ],
        "summary": {
            "full_lm_2048": {"n": 635},
            "sampler_seed7": {"first_8": [5, 1, 5, 2, 4, 5, 5, 0], "counts": [1, 1, 1, 0, 1, 4]},
        },
    }


_MODES = ("NLU", "NLG", "S2S")


def _records(branch: str) -> list[dict[str, Any]]:
    rows = []
    for case in _cases("objectives", f"{branch}_record"):
        config = case["config"]
        row = {name: config[name] for name in ("segment", "noise_mask", "split") if name in config}
        for name in ("inputs", "targets"):
            row |= {f"denoise_{name}": config[f"denoised_{name}"], f"final_{name}": config[name]}
        rows.append(row)
    return rows


def _mixtures() -> dict[str, Any]:
    rates = {"redpajama_c4_ul2": 15.0, "redpajama_wikipedia_ul2": 4.5}
    rates |= {"redpajama_stackexchange_ul2": 2.0, "redpajama_arxiv_ul2": 2.5}
    rates |= {"redpajama_book_ul2": 4.5, "redpajama_github_ul2": 4.5}
    rates |= {"redpajama_common_crawl_ul2": 67.0}
    packed = {"decoder_target_tokens": {"add_eos": False}}
    return {
        "mixtures": {
            "mix_lesscode_ul2": {"rates": rates, "sum": 100.0},
            "mix_other": {"rates": {}},
        },
        "tasks": {
            "orca_sft": {"features": {"inputs": {"add_eos": False}, "targets": {"add_eos": True}}},
            "c4_packed": {"features": packed},
        },
        "ul2_objective_defaults": {
            "use_prefix_lm_task": True,
            "rates": [0.1, 0.1, 0.1, 0.1, 0.1, 0.5],
            "mean_noise_span_lengths": [3.0, 8.0, 3.0, 8.0, 64.0],
            "noise_densities": [0.15, 0.15, 0.5, 0.5, 0.5],
            "optional_task_prefixes": [*["[NLU] "] * 2, *["[NLG] "] * 3, "[S2S] "],
        },
    }


def _fine_tuning() -> list[dict[str, Any]]:
    rows = []
    for number, task in ((0, "wildchat_gpt4_sft_V3"), (4, "orca_sft_V2")):
        config = _config("vocabulary", f"sft_{number:03d}")
        fields = list(config["fields"].values())
        lengths = {name: config[f"{name}_length"] for name in ("inputs", "targets")}
        row = {"task": task, "input": fields[-2], "output": fields[-1], "lengths": lengths}
        rows.append(row | {name: config[name] for name in ("inputs", "targets")})
    return [*rows, rows[0] | {"task": "alpaca_sft_V1"}]
