"""The data pipeline's vectors of the whole way: documents, segments, examples, the stream of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_conformance.upstream_rows import guarded, plain, skipped
from openmoe_conformance.upstream_ul2_examples import Choices, chosen
from openmoe_conformance.upstream_ul2_rows import (
    call,
    id_list,
    ids,
    integer,
    mask,
    number,
    numbered,
    text,
    with_model,
)
from openmoe_conformance.vector_cases import VectorCase, VectorError
from openmoe_spec.data import END, OBJECTIVES

OBJECTIVE_CHAPTER, DOCUMENTS, VOCABULARY = "objectives", "documents", "vocabulary"

Row = Mapping[str, Any]

_VOCABULARY = re.compile(r"(\S+\.model) \+ (\d+) extra ids \(vocab_size (\d+)")


@dataclass(frozen=True)
class World:
    """What all cases of the file share: its model, sizes and lengths, and the modes' ids."""

    model: str
    num_sentinels: int
    vocabulary_size: int
    lengths: Mapping[str, int]
    prompts: Mapping[str, list[int]]

    def config(self, prompt: list[int]) -> dict[str, Any]:
        """Return what the kind `example` needs of it."""
        return {
            "prompt": prompt,
            "vocabulary_size": self.vocabulary_size,
            "num_sentinels": self.num_sentinels,
            "inputs_length": self.lengths["inputs"],
            "targets_length": self.lengths["targets"],
        }


def _world(content: Row) -> World:
    matched = _VOCABULARY.match(text(content, "vocab"))
    if not matched:
        raise VectorError("vocab does not name a model, its sentinels and its size")
    lengths = {name: integer(content["lengths_small"], name) for name in ("inputs", "targets")}
    prompts = {mode.strip(): ids(content["prompts"], mode) for mode in content["prompts"]}
    return World(matched[1], int(matched[2]), int(matched[3]), lengths, prompts)


def _pipeline(folder: Path, file: str, content: Any) -> list[VectorCase]:
    make = partial(guarded, folder, file)
    given = content.get("prompts") or {}
    modes = [{"id": f"prompt_{mode.strip('[]')}", "mode": mode} for mode in given]
    found = make(modes, partial(_prompt, folder, content))
    for branch in numbered("branch", content.get("branches") or []):
        found += make([branch], partial(_branch, folder))
        found += make([branch], partial(_segments, folder, content))
        listed = branch.get("records") if isinstance(branch, dict) else None
        records = numbered(f"{branch['id']}_record", listed) if listed else []
        found += make(records, partial(_record, folder, content, branch))
    for name in ("small_ul2", "small_noprefix"):
        examples = numbered(name, content.get(name) or [])
        found += make(examples, partial(_example, folder, content))
    if "full_lm" in content:
        found += make([{"id": "full_lm", "of": content["full_lm"]}], partial(_full_lm, folder))
    summary = [{"id": name, "of": one} for name, one in (content.get("summary") or {}).items()]
    return found + make(summary, partial(_summary, folder))


def _prompt(folder: Path, content: Row, row: Row) -> Iterator[VectorCase]:
    world, mode = _world(content), row["mode"].strip()
    arguments = {"text": f"{mode} ", "num_sentinels": world.num_sentinels}
    case = call(
        *(folder, row["id"], "encode_text", arguments, "VOCAB-03"),
        expected=world.prompts[mode],
        chapter=VOCABULARY,
        exercises="the ids of a mode",
    )
    yield with_model(folder, case, world.model)


# ---- one objective -----------------------------------------------------------------------------


def _objective(branch: Row) -> int | None:
    """Return which of the mixture's objectives a branch is, None when it is none of them."""
    for place, one in enumerate(OBJECTIVES):
        if one.mode != branch["prompt"] or one.is_prefix != bool(branch.get("prefix_lm")):
            continue
        setting = [branch.get("mean_noise_span_length"), branch.get("noise_density")]
        if one.is_prefix or setting == [one.mean_noise_span_length, one.noise_density]:
            return place
    return None


def _branch(folder: Path, branch: Row) -> Iterator[VectorCase]:
    """Yield what joins documents, and what is not of the mixture."""
    if _objective(branch) is None:
        reason = "no objective of the mixture has its mode, density and mean span"
        yield skipped(folder, f"{branch['id']}_objective", reason)
    if branch.get("documents") and "concatenated" in branch:
        documents = [id_list("documents", one) for one in branch["documents"]]
        yield call(
            *(folder, f"{branch['id']}_joined", "join_documents", {"documents": documents}),
            "DATA-03",
            expected=ids(branch, "concatenated"),
            chapter=DOCUMENTS,
        )


def _segments(folder: Path, content: Row, branch: Row) -> Iterator[VectorCase]:
    records = [ids(one, "segment") for one in branch.get("records") or []]
    length, name = integer(branch, "segment_length"), branch["id"]
    joined = ids(branch, "concatenated") if "concatenated" in branch else [*chain(*records)]
    segments = [joined[place : place + length] for place in range(0, len(joined), length)]
    if records != segments[: len(records)]:
        raise VectorError("its records are not the segments of what it concatenated")
    objective = _objective(branch)
    if objective is None:
        return
    inputs_length = integer(content["lengths_small"], "inputs")
    arguments = {
        "documents": branch.get("documents") or [joined],
        "objective": objective,
        "inputs_length": inputs_length,
    }
    yield call(
        *(folder, f"{name}_segments", "objective_segments", arguments, "DATA-05"),
        expected=segments,
        chapter=DOCUMENTS,
    )
    if branch.get("prefix_lm"):
        return
    setting = {key: number(branch, key) for key in ("noise_density", "mean_noise_span_length")}
    yield call(
        *(folder, f"{name}_length", "span_lengths", {"inputs_length": inputs_length, **setting}),
        "OBJ-05",
        expected={"tokens_length": length},
        chapter=OBJECTIVE_CHAPTER,
    )


def _record(folder: Path, content: Row, branch: Row, row: Row) -> Iterator[VectorCase]:
    segment = ids(row, "segment")
    world, mode = _world(content), text(branch, "prompt").strip()
    config: dict[str, Any] = {"segment": segment, **world.config(world.prompts[mode])}
    config |= {f"denoised_{name}": ids(row, f"denoise_{name}") for name in ("inputs", "targets")}
    config |= {name: ids(row, f"final_{name}") for name in ("inputs", "targets")}
    if "split" in row:
        config["split"], clauses = integer(row, "split"), {"prefix_split": "OBJ-11"}
    else:
        config["noise_mask"] = mask(row, "noise_mask", len(segment))
        clauses = {"noise_replaced": "OBJ-07"}
    clauses["finished"] = "OBJ-13"
    objective = _objective(branch)
    if objective is not None:
        config["objective"] = objective
        clauses["whole"] = "OBJ-14"
    yield plain(
        *(folder, row["id"], "example"),
        config=config,
        clauses=clauses,
        chapter=OBJECTIVE_CHAPTER,
        exercises=f"a record of {mode}",
    )


def _example(folder: Path, content: Row, row: Row) -> Iterator[VectorCase]:
    """Yield an example whose choices are not stored: those that it shows are taken."""
    world, mode = _world(content), text(row, "kind") if "kind" in row else ""
    prompt = world.prompts[mode] if mode else []
    objectives = [p for p, one in enumerate(OBJECTIVES) if mode in ("", one.mode.strip())]
    made: Choices = chosen(
        *(ids(row, name) for name in ("inputs", "targets")),
        objectives=objectives,
        config=world.config(prompt),
    )
    config = {**made, **world.config(prompt), **{name: row[name] for name in ("inputs", "targets")}}
    yield plain(
        *(folder, row["id"], "example"),
        config=config,
        clauses={"whole": "OBJ-14"},
        chapter=OBJECTIVE_CHAPTER,
        exercises="its choices are those that it shows; what was cut off is id 2",
    )


# ---- streams -----------------------------------------------------------------------------------


def _full_lm(folder: Path, row: Row) -> Iterator[VectorCase]:
    name, row = row["id"], row["of"]
    if row.get("eos_id", END) != END:
        yield skipped(folder, name, f"the end is id {END}, not {row['eos_id']}")
        return
    documents = [id_list("documents", one) for one in row["documents"]]
    arguments = {"documents": documents, "length": integer(row, "target_length")}
    yield call(
        *(folder, name, "full_lm_segments", arguments, "DATA-06"),
        expected=[id_list("segments", one) for one in row["segments"]],
        chapter=DOCUMENTS,
    )


def _summary(folder: Path, row: Row) -> Iterator[VectorCase]:
    """Yield the stream of objectives; other statistics are of documents that are not stored."""
    name, row = row["id"], row["of"]
    stored = [key for key in row if re.fullmatch(r"first_\d+", key)] if "counts" in row else []
    if not stored:
        yield skipped(folder, name, "statistics of documents that are not stored")
        return
    choices, counts = ids(row, stored[0]), ids(row, "counts")
    if np.bincount(choices, minlength=len(counts)).tolist() != counts:
        raise VectorError("its counts are not those of its choices")
    taken = [choices[:place].count(stream) for place, stream in enumerate(choices)]
    yield call(
        *(folder, name, "mix_streams", {"lengths": counts, "choices": choices}, "DATA-07"),
        expected=[list(pair) for pair in zip(choices, taken, strict=True)],
        chapter=DOCUMENTS,
        exercises="the objectives as the original drew them",
    )


MAKERS: Mapping[str, Callable[[Path, str, Any], list[VectorCase]]] = {"pipeline.json": _pipeline}
"""What makes cases of a JSON file."""
