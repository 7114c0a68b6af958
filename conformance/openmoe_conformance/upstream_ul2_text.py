"""The data pipeline's vectors of text: vocabularies, fine-tuning examples, mixtures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_conformance.upstream_rows import failed, guarded, inside, plain, skipped
from openmoe_conformance.upstream_ul2_rows import (
    call,
    ids,
    integer,
    number,
    numbered,
    reading,
    text,
    with_model,
)
from openmoe_conformance.vector_cases import VectorCase, VectorError, pieces_of
from openmoe_spec.data import MIXTURES, NUM_SENTINELS, SFT_ENDS

CHAPTER, DOCUMENTS = "vocabulary", "documents"

Row = Mapping[str, Any]


# ---- vocabularies ------------------------------------------------------------------------------


def _vocabularies(folder: Path, file: str, content: Any) -> list[VectorCase]:
    rows = [{"id": name, "of": row} for name, row in content.get("vocabularies", {}).items()]
    found = guarded(folder, file, rows, partial(_vocabulary, folder))
    for row in rows:
        listed = row["of"] if isinstance(row["of"], dict) else {}
        for kind, make in (("encode", _encoded), ("decode", _decoded)):
            texts = numbered(f"{row['id']}_{kind}", listed.get(kind) or [])
            found += guarded(folder, file, texts, partial(make, folder, listed))
    if "openmoe" not in content:
        return found
    published = {"id": "openmoe", "of": content["openmoe"]}
    found += guarded(folder, file, [published], partial(_published, folder))
    listed = published["of"] if isinstance(published["of"], dict) else {}
    quoted = numbered("openmoe_quoted", listed.get("hf_umt5_test_rows") or [])
    return found + guarded(folder, file, quoted, partial(_quoted, folder, listed))


def _sizes(row: Row) -> dict[str, Any]:
    return {
        "num_pieces": integer(row, "base_pieces"),
        "num_sentinels": integer(row, "extra_ids"),
        "reverse": bool(row.get("reverse_extra_ids", True)),
    }


def _vocabulary(folder: Path, row: Row) -> Iterator[VectorCase]:
    name, row = row["id"], row["of"]
    size = {"vocabulary_size": integer(row, "vocab_size")}
    size |= {
        ours: integer(row, key)
        for ours, key in (("pad", "pad_id"), ("end", "eos_id"))
        if key in row
    }
    sentinels = {j: integer(row["sentinel_ids"], j) for j in row.get("sentinel_ids") or {}}
    config = {**_sizes(row), "size": size, "sentinels": sentinels}
    clauses = {"size": "VOCAB-01"} | ({"sentinels": "VOCAB-02"} if sentinels else {})
    yield plain(folder, name, "vocabulary", config=config, clauses=clauses, chapter=CHAPTER)
    if "preprocessor_sentinel_id" in row:
        arguments = {
            "tokens": [0],
            "noise_mask": [1],
            "transform": "noise_token_to_sentinel",
            "vocabulary_size": size["vocabulary_size"],
            "num_sentinels": config["num_sentinels"],
        }
        yield call(
            *(folder, f"{name}_first_sentinel", "replace_noise", arguments, "OBJ-08"),
            expected=[integer(row, "preprocessor_sentinel_id")],
            chapter=CHAPTER,
        )
    if "model" not in row:
        return
    pieces = reading(pieces_of, inside(folder, text(row, "model")))
    if pieces != config["num_pieces"]:
        raise VectorError(f"{row['model']} has {pieces} pieces, not {config['num_pieces']}")
    places = {"minus_1": size["vocabulary_size"] - 1, "base": config["num_pieces"]}
    keys = {"minus_1": "piece_at_vocab_size_minus_1", "base": "piece_at_base"}
    for place, key in keys.items():
        if key in row:
            shown = text(row, key).removeprefix("▁")
            case = _decoding(folder, row, f"{name}_{key}", [places[place]], shown)
            yield replace(case, comparisons={"answer": "VOCAB-02"})


def _options(row: Row) -> dict[str, Any]:
    sizes = _sizes(row)
    return {name: sizes[name] for name in ("num_sentinels", "reverse")}


def _decoding(folder: Path, of: Row, name: str, given: list[int], shown: str) -> VectorCase:
    arguments = {"ids": given, **_options(of)}
    case = call(
        *(folder, name, "decode_text", arguments, "VOCAB-04"), expected=shown, chapter=CHAPTER
    )
    return with_model(folder, case, text(of, "model"))


def _encoded(folder: Path, of: Row, row: Row) -> Iterator[VectorCase]:
    if row.get("error"):
        yield failed(folder, row["id"], row["error"])
        return
    arguments, made = {"text": text(row, "text"), **_options(of)}, ids(row, "ids")
    case = call(
        *(folder, row["id"], "encode_text", arguments, "VOCAB-03"), expected=made, chapter=CHAPTER
    )
    yield with_model(folder, case, text(of, "model"))
    if "decoded" in row:
        yield _decoding(folder, of, f"{row['id']}_decoded", made, text(row, "decoded"))


def _decoded(folder: Path, of: Row, row: Row) -> Iterator[VectorCase]:
    if row.get("error"):
        yield failed(folder, row["id"], row["error"])
        return
    yield _decoding(folder, of, row["id"], ids(row, "ids"), text(row, "decoded"))


_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_NAMED = re.compile(r"extra_id_(\d+)")


def _published(folder: Path, row: Row) -> Iterator[VectorCase]:
    row = row["of"]
    size = {"vocabulary_size": integer(row, "vocab_size")}
    if "num_embeddings" in row:
        size["num_embeddings"] = integer(row, "num_embeddings")
    sentinels = {m[1]: integer(row, key) for key in row if (m := _NAMED.fullmatch(key))}
    config = {**_sizes(row), "size": size, "sentinels": sentinels}
    clauses = {"size": "VOCAB-01"} | ({"sentinels": "VOCAB-02"} if sentinels else {})
    yield plain(folder, "openmoe", "vocabulary", config=config, clauses=clauses, chapter=CHAPTER)


def _quoted(folder: Path, of: Row, row: Row) -> Iterator[VectorCase]:
    """Compare the ids of sentinels and of the end in a text whose other ids need umT5's own file."""
    sizes, made = _sizes(of), ids(row, "ids")
    size = sizes["num_pieces"] + sizes["num_sentinels"]
    shown = [one for one in made if sizes["num_pieces"] <= one < size]
    names = _SENTINEL.findall(text(row, "text"))
    if len(names) != len(shown):
        raise VectorError(f"its text has {len(names)} sentinels, its ids {len(shown)}")
    config = {
        **sizes,
        "size": {"vocabulary_size": size} | ({"end": made[-1]} if made else {}),
        "sentinels": dict(zip(names, shown, strict=True)),
    }
    clauses = {"size": "VOCAB-01", "sentinels": "VOCAB-02"}
    exercises = "sentinels and end in a quoted test of umT5"
    yield plain(
        *(folder, row["id"], "vocabulary"),
        config=config,
        clauses=clauses,
        chapter=CHAPTER,
        exercises=exercises,
    )
    yield skipped(folder, f"{row['id']}_other_ids", "its other ids need umT5's own model file")


# ---- fine-tuning -------------------------------------------------------------------------------

_MODEL = "bytefallback_umt5layout.model"
"""The model of fine-tuning rows, which do not name theirs."""

_SYSTEM_PROMPT = "You are an assistant."
"""The system prompt of rows that do not hold theirs."""


def _fine_tuned(folder: Path, row: Row) -> Iterator[VectorCase]:
    task = re.sub(r"_V\d+$", "", text(row, "task"))
    if task not in SFT_ENDS:
        yield skipped(folder, row["id"], f"the task {row['task']} is not specified")
        return
    if row.get("error"):
        yield failed(folder, row["id"], row["error"])
        return
    given, answered = text(row, "input"), text(row, "output")
    fields, texts = {"input": given, "output": answered}, {"inputs": given, "targets": answered}
    if task == "orca_sft":
        prompt = text(row, "system_prompt") if "system_prompt" in row else _SYSTEM_PROMPT
        fields = {"system_prompt": prompt, "question": given, "response": answered}
        texts["inputs"] = f"{prompt}USER: {given}ASSISTANT: "
    yield call(
        *(folder, f"{row['id']}_texts", "sft_texts", {"task": task, "fields": fields}, "DATA-10"),
        expected=texts,
        chapter=DOCUMENTS,
    )
    config = {
        "task": task,
        "fields": fields,
        "num_sentinels": integer(row, "extra_ids") if "extra_ids" in row else NUM_SENTINELS,
        "ends": list(SFT_ENDS[task]),
        "inputs_length": integer(row["lengths"], "inputs"),
        "targets_length": integer(row["lengths"], "targets"),
        **{name: ids(row, name) for name in ("inputs", "targets")},
    }
    case = plain(
        *(folder, row["id"], "fine_tuning"),
        config=config,
        clauses={"ids": "DATA-10"},
        chapter=CHAPTER,  # where the models are
    )
    yield with_model(folder, case, row.get("model", _MODEL))


def _sft(folder: Path, file: str, content: Any) -> list[VectorCase]:
    return guarded(folder, file, numbered("sft", content), partial(_fine_tuned, folder))


# ---- mixtures ----------------------------------------------------------------------------------


def _mixtures(folder: Path, file: str, content: Any) -> list[VectorCase]:
    found = []
    for key, make in (("mixtures", _mixture), ("tasks", _task)):
        rows = [{"id": name, "of": row} for name, row in (content.get(key) or {}).items()]
        found += guarded(folder, file, rows, partial(make, folder))
    defaults = [
        {"id": name, "dialect": dialect, "of": content[name]}
        for name, dialect in _DEFAULTS.items()
        if name in content
    ]
    return found + guarded(folder, file, defaults, partial(_objectives, folder))


def _mixture(folder: Path, row: Row) -> Iterator[VectorCase]:
    name, row = row["id"], row["of"]
    if name not in MIXTURES:
        yield skipped(folder, name, f"the mixture {name} is not specified")
        return
    rates = {task: number(row["rates"], task) for task in row["rates"]}
    total = sum(rates.values())
    if row.get("sum", total) != total:
        raise VectorError(f"its rates add up to {total}, not {row['sum']}")
    shares = {task: rate / total for task, rate in rates.items()}
    case = call(
        *(folder, name, "mixture", {"name": name}, "DATA-08"), expected=shares, chapter=DOCUMENTS
    )
    yield replace(case, config={**case.config, "bounds": {"relative": 2**-52}})


def _task(folder: Path, row: Row) -> Iterator[VectorCase]:
    """Compare which features of a task get an end id."""
    name, features = row["id"], row["of"]["features"]
    if not set(features) <= {"inputs", "targets"}:
        yield skipped(folder, name, f"the task {name} makes features of its own")
        return
    ends = [one for one in features if features[one]["add_eos"]]
    given = {"inputs": [5, 6], "targets": [7]}
    arguments = {**given, "inputs_length": 8, "targets_length": 8, "ends": ends}
    yield call(
        *(folder, f"task_{name}", "finish_example", arguments),
        "DATA-10" if name in SFT_ENDS else "OBJ-13",
        expected={f: [*tokens, 1] if f in ends else tokens for f, tokens in given.items()},
        chapter=DOCUMENTS,
        exercises="which features of the task get an end",
    )


_DEFAULTS = {"ul2_objective_defaults": "t5x", "ul2_objective_noprefix_defaults": "paper"}
"""Settings of the objective, and the dialect that has such modes."""


def _objectives(folder: Path, row: Row) -> Iterator[VectorCase]:
    name, dialect, row = row["id"], row["dialect"], row["of"]
    rates, modes = row["rates"], row["optional_task_prefixes"]
    means, densities = row["mean_noise_span_lengths"], row["noise_densities"]
    spans = len(rates) - bool(row.get("use_prefix_lm_task"))
    if [len(means), len(densities)] != [spans] * 2 or len(modes or rates) != len(rates):
        raise VectorError("its lists are not of one entry for each objective")
    expected = []
    for place, rate in enumerate(rates):
        made = {"rate": rate, "mode": modes[place] if modes else "", "mean_noise_span_length": None}
        if place < spans:
            made |= {"mean_noise_span_length": means[place], "noise_density": densities[place]}
        expected.append(made)
    arguments = {"dialect": dialect}
    yield call(
        *(folder, name, "objectives", arguments, "OBJ-01"), expected=expected, chapter="objectives"
    )


MAKERS: Mapping[str, Callable[[Path, str, Any], list[VectorCase]]] = {
    "vocabulary.json": _vocabularies,
    "sft.json": _sft,
    "mixtures.json": _mixtures,
}
"""What makes cases of a JSON file."""
