"""The data pipeline's vectors of noise: sentinels, counts, masks, segment lengths, prefixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_conformance.upstream_rows import failed, guarded, plain, skipped
from openmoe_conformance.upstream_ul2_rows import (
    call,
    ids,
    integer,
    mask,
    number,
    numbered,
    reading,
)
from openmoe_conformance.vector_cases import VectorCase, VectorError, array_of, keys_of
from openmoe_spec.data import NUM_SENTINELS

CHAPTER = "objectives"
ARRAYS = ("noise_masks.npz",)
"""Archives that a JSON file of the same name describes."""

_SETTING = ("noise_density", "mean_noise_span_length")
_COUNTS = ("num_noise_tokens", "num_noise_spans", "num_nonnoise_tokens")

Row = Mapping[str, Any]


def _setting(row: Row) -> dict[str, float]:
    return {name: number(row, name) for name in _SETTING}


# ---- sentinels ---------------------------------------------------------------------------------

_TRANSFORMS = {
    "inputs": "noise_span_to_unique_sentinel",
    "targets": "nonnoise_span_to_unique_sentinel",
    "noise_span_to_sentinel": "noise_span_to_sentinel",
    "nonnoise_span_to_sentinel": "nonnoise_span_to_sentinel",
    "noise_token_to_sentinel": "noise_token_to_sentinel",
    "drop_noise": "drop_noise_tokens",
    "drop_nonnoise": "drop_nonnoise_tokens",
}
"""What is stored, and the transform that it is the output of."""


def _replaced(folder: Path, row: Row) -> Iterator[VectorCase]:
    if row.get("error"):
        yield failed(folder, row["id"], row["error"])
        return
    tokens, size = ids(row, "tokens"), integer(row, "vocab_size")
    noise = mask(row, "noise_mask", len(tokens))
    sentinels = integer(row, "extra_ids") if "extra_ids" in row else None
    config: dict[str, Any] = {"tokens": tokens, "noise_mask": noise, "vocabulary_size": size}
    config["num_sentinels"] = min(NUM_SENTINELS, size) if sentinels is None else sentinels
    clauses = {}
    for name, transform in _TRANSFORMS.items():
        if name not in row:
            continue
        config[transform] = ids(row, name)
        clauses[transform] = "OBJ-08"
        if "unique" in transform:
            runs = _runs(noise, 0 if transform.startswith("nonnoise") else 1)
            overflows = runs > config["num_sentinels"]
            clauses[transform] = "OBJ-10" if overflows else "OBJ-07"
            if overflows:
                config["overflow"] = "runs_on"
                if sentinels is not None:
                    clauses[f"{transform}_rejected"] = "OBJ-09"
    yield plain(
        *(folder, f"{row['id']}_{row.get('tag', '')}", "noise_replaced"),
        config=config,
        clauses=clauses,
        chapter=CHAPTER,
        exercises=row.get("tag", ""),
    )
    if lacking := [name for name in _TRANSFORMS if name not in row]:
        raise VectorError(f"lacks {', '.join(lacking)}")


def _runs(noise: list[int], value: int) -> int:
    kinds = np.asarray(noise) == value
    return int((np.diff(kinds.astype(np.int8), prepend=0) == 1).sum())


# ---- counts and masks --------------------------------------------------------------------------

_FORM = ("mask_sum", "mask_runs", "starts_nonnoise", "ends_noise")


def _counted(folder: Path, row: Row) -> Iterator[VectorCase]:
    config: dict[str, Any] = {"length": integer(row, "length"), **_setting(row)}
    make = partial(plain, folder, row["id"], "noise_counts", chapter=CHAPTER)
    why = row.get("why", "")
    if row.get("error"):
        yield make(config=config, clauses={"rejected": "OBJ-06"}, exercises=why)
        return
    config |= {name: integer(row, name) for name in _COUNTS}
    clauses = {"counts": "OBJ-02"}
    if all(row.get(name) is not None for name in _FORM):
        config |= {name: row[name] for name in _FORM}
        clauses["form"] = "OBJ-04"
        why += "; of the mask, what does not depend on the draw"
    yield make(config=config, clauses=clauses, exercises=why)


_PERMUTATIONS = ("noise", "nonnoise")
_NONE = np.zeros(0)


def _masked(folder: Path, file: str, content: Any) -> list[VectorCase]:
    archive = folder / ARRAYS[0]

    def make(row: Row) -> Iterator[VectorCase]:
        place = integer(row, "i")
        stored = set(reading(keys_of, archive))
        setting = _setting(row)
        arguments: dict[str, Any] = {"length": integer(row, "length"), **setting}
        if row.get("error"):
            yield call(folder, row["id"], "noise_counts", arguments, "OBJ-06", chapter=CHAPTER)
            return
        if row.get("random_roll"):
            arguments["roll"] = integer(row, "roll_offset")
        keys = {"expected": f"mask_{place}"}
        for kind in _PERMUTATIONS:
            empty = setting["noise_density"] == 0 or integer(row, f"num_{kind}_tokens") == 1
            key = f"perm_{kind}_{place}"
            if key in stored or not empty:
                keys[f"arguments/{kind}_permutation"] = key
            else:
                arguments[f"{kind}_permutation"] = []
        case = VectorCase(
            *(folder.name, f"noise_mask_{place:03d}", "call"),
            "rolled" if "roll" in arguments else "",
            {"function": "noise_mask", "arguments": arguments},
            {"answer": "OBJ-04"},
            tuple(keys),
            archive,
            keys=keys,
            chapter=CHAPTER,
        )
        _check(row, case, archive, stored)
        yield case

    return guarded(folder, file, numbered("noise_mask", content), make)


def _check(row: Row, case: VectorCase, archive: Path, stored: set[str]) -> None:
    """Check the file against itself: uniforms give the permutations, the mask has its counts."""
    place, found = row["i"], case.own()
    for kind in _PERMUTATIONS:
        key, order = f"uniform_{kind}_{place}", found.get(f"arguments/{kind}_permutation", _NONE)
        uniform = array_of(archive, key) if key in stored else _NONE
        if len(uniform) and not np.array_equal(np.argsort(uniform, kind="stable"), order):
            raise VectorError(f"perm_{kind}_{place} is not the stable order of {key}")
    noise = found["expected"]
    for name, count in (("num_noise", int(noise.sum())), ("num_runs", _runs(noise.tolist(), 1))):
        if row.get(name, count) != count:
            raise VectorError(f"mask_{place} has {name} {count}, not {row[name]}")


# ---- draws -------------------------------------------------------------------------------------


def _distributed(folder: Path, file: str, content: Any) -> list[VectorCase]:
    def make(row: Row) -> Iterator[VectorCase]:
        if row.get("error"):
            yield failed(folder, row["id"], row["error"])
            return
        length = integer(row, "length")
        masks = [mask({"mask": one}, "mask", length) for one in row["distinct_masks"]]
        if not masks:
            raise VectorError("there are no distinct_masks")
        config = {"length": length, **_setting(row), "masks": masks, "count": integer(row, "n")}
        noise = sum(masks[0])
        config |= {
            "num_noise_tokens": noise,
            "num_noise_spans": _runs(masks[0], 1),
            "num_nonnoise_tokens": length - noise,
        }
        yield plain(
            *(folder, row["id"], "drawn_masks"),
            config=config,
            clauses={"cuts": "OBJ-03", "drawn": "OBJ-16"},
            chapter=CHAPTER,
        )

    row = {"id": "noise_mask_distribution", **content}
    return guarded(folder, file, [row], make)


_HISTOGRAM = re.compile(r"hist_length(\d+)_d(\d)(\d*)")


def _histogram(folder: Path, row: Row) -> Iterator[VectorCase]:
    name = row["id"]
    matched = _HISTOGRAM.fullmatch(name)
    if not matched:
        raise VectorError("its name does not say what was drawn")
    if float(f"{matched[2]}.{matched[3]}") != 0.5:
        yield skipped(folder, name, "only prefixes of density 0.5 are drawn")
        return
    counts = ids(row["of"], "counts_by_num_inputs")
    config = {
        "length": int(matched[1]),
        "count": integer(row["of"], "n"),
        "splits": [split for split, times in enumerate(counts) if times],
    }
    kind, clauses = "drawn_splits", {"drawn": "OBJ-17"}
    yield plain(folder, name, kind, config=config, clauses=clauses, chapter=CHAPTER)


# ---- lengths of segments -----------------------------------------------------------------------

_EXTRA = ("extra_tokens_per_span_inputs", "extra_tokens_per_span_targets")


def _lengths(folder: Path, row: Row) -> Iterator[VectorCase]:
    arguments = {"inputs_length": integer(row, "inputs_length"), **_setting(row)}
    arguments |= {name: integer(row, name) for name in _EXTRA if name in row}
    if row.get("error"):
        yield call(folder, row["id"], "span_lengths", arguments, "OBJ-06", chapter=CHAPTER)
        return
    expected = {name: integer(row, name) for name in ("tokens_length", "targets_length")}
    yield call(
        *(folder, row["id"], "span_lengths", arguments, "OBJ-05"),
        expected=expected,
        chapter=CHAPTER,
        exercises="as trained" if row.get("openmoe") else "",
    )


# ---- prefixes ----------------------------------------------------------------------------------


def _prefixes(folder: Path, file: str, content: Any) -> list[VectorCase]:
    found = _rows(_split, "prefix")(folder, file, content.get("cases") or [])
    found += _rows(_bounds, "prefix_bounds")(folder, file, content.get("masks") or [])
    drawn = [{"id": name, "of": row} for name, row in content.items() if name.startswith("hist")]
    found += guarded(folder, file, drawn, partial(_histogram, folder))
    if content.get("error_density_gt_half"):
        arguments = {"length": 11, "noise_density": 0.6}
        name = "prefix_bounds_beyond_half"
        found.append(call(folder, name, "prefix_bounds", arguments, "OBJ-12", chapter=CHAPTER))
    return found


def _split(folder: Path, row: Row) -> Iterator[VectorCase]:
    arguments = {"tokens": ids(row, "tokens"), "split": integer(row, "split")}
    if row.get("error"):
        yield call(folder, row["id"], "split_prefix", arguments, "OBJ-12", chapter=CHAPTER)
        return
    expected = {name: ids(row, name) for name in ("inputs", "targets")}
    yield call(
        *(folder, row["id"], "split_prefix", arguments, "OBJ-11"),
        expected=expected,
        chapter=CHAPTER,
        exercises="" if row.get("reachable", True) else "never drawn",
    )


def _bounds(folder: Path, row: Row) -> Iterator[VectorCase]:
    arguments = {"length": integer(row, "length"), "noise_density": number(row, "noise_density")}
    if row.get("error"):
        yield call(folder, row["id"], "prefix_bounds", arguments, "OBJ-12", chapter=CHAPTER)
        return
    least, most = integer(row, "min_input_tokens"), integer(row, "max_input_tokens_inclusive")
    if not least <= row.get("num_input_tokens", least) <= most:
        raise VectorError(f"num_input_tokens {row['num_input_tokens']} is not in {least}..{most}")
    yield call(
        *(folder, row["id"], "prefix_bounds", arguments, "OBJ-11"),
        expected=[least, most],
        chapter=CHAPTER,
    )


# ---- files -------------------------------------------------------------------------------------


def _rows(
    make: Callable[[Path, Row], Iterator[VectorCase]], prefix: str, key: str = ""
) -> Callable[[Path, str, Any], list[VectorCase]]:
    """Return what makes cases of the rows of a file, each of its own."""

    def made(folder: Path, file: str, content: Any) -> list[VectorCase]:
        rows = numbered(prefix, content[key] if key else content)
        return guarded(folder, file, rows, partial(make, folder))

    return made


MAKERS: Mapping[str, Callable[[Path, str, Any], list[VectorCase]]] = {
    "sentinel_transforms.json": _rows(_replaced, "sentinels", "cases"),
    "noise_counts.json": _rows(_counted, "noise_counts"),
    "noise_masks.json": _masked,
    "noise_mask_distribution.json": _distributed,
    "random_spans_helper.json": _rows(_lengths, "span_lengths"),
    "prefix_lm.json": _prefixes,
}
"""What makes cases of a JSON file."""
