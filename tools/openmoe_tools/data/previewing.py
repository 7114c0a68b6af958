"""`openmoe data preview`: examples of each objective as text, and a packed row.

The report's schema is `preview.schema.json`, beside this file.
Spec: OBJ-01..OBJ-14, DATA-03, DATA-05, BATCH-03, BATCH-06, BATCH-07.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray
from rich.console import Console

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.data import GROUP_OF_DOCUMENTS, OBJECTIVES
from openmoe_spec.errors import RejectedError
from openmoe_tools import files
from openmoe_tools.data import opening, showing
from openmoe_tools.terminal import console, say

if TYPE_CHECKING:  # the extra `data` may be missing
    from openmoe_production.sources import Documents
    from openmoe_production.vocabulary import Vocabulary

SCHEMA = "openmoe-preview/1"
COMMAND = "openmoe data preview"
_PIECES = 8000
"""Of a tokenizer that is trained here; fewer where the text is short."""


@dataclass(frozen=True)
class Request:
    """The options of `openmoe data preview`; an objective of None is each of them."""

    paths: tuple[Path, ...]
    field: str
    standard_library: bool
    tokenizer: Path | None
    objective: int | None
    examples: int
    inputs_length: int
    targets_length: int
    seed: int
    json: Path | None


def preview(request: Request) -> int:
    """Print examples as text; return 0. Errors: UsageError."""
    files.writable(request.json, read=[*request.paths, request.tokenizer])
    opening.require(COMMAND, "sentencepiece")
    to = console()
    given = opening.documents(
        request.paths,
        field=request.field,
        standard_library=request.standard_library,
    )
    texts = _first(given)
    vocabulary = _vocabulary(request, given, to)
    group = vocabulary.encode_many(texts)
    wanted = range(len(OBJECTIVES)) if request.objective is None else (request.objective,)
    try:
        made = [one for i in wanted for one in _examples(request, i, group, vocabulary)]
        row = _row(request, group, vocabulary)
    except RejectedError as error:
        raise UsageError(opening.explained(error, request.inputs_length)) from error
    found = {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "lengths": {"inputs": request.inputs_length, "targets": request.targets_length},
        "seed": request.seed,
        "documents": len(group),
        "pieces": vocabulary.num_pieces,
        "examples": made,
        "row": row,
    }
    showing.render(found, vocabulary, to)
    files.write(request.json, lambda: json_module.dumps(found, indent=1, allow_nan=False) + "\n")
    return 0


def _first(given: Documents) -> list[str]:
    """Return the texts of the first group of documents that are not empty. Errors: UsageError."""
    from openmoe_production.sources import SourceError  # noqa: PLC0415 - an optional extra

    try:
        return [str(given[i]) for i in np.flatnonzero(given.sizes)[:GROUP_OF_DOCUMENTS].tolist()]
    except SourceError as error:
        raise UsageError(str(error)) from error


def _vocabulary(request: Request, given: Documents, to: Console) -> Vocabulary:
    if request.tokenizer is not None:
        return opening.vocabulary(request.tokenizer)
    made = opening.vocabulary(opening.trained(given, pieces=_PIECES, exact=False))
    say(
        to,
        f"No --tokenizer: trained one of {made.num_pieces:,} pieces on these documents.\n",
        "dim",
    )
    return made


def _examples(
    request: Request, objective: int, group: Sequence[ndarray], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Return the first examples of an objective, with the segments and the noise they are made of."""
    from openmoe_production import documents, draws, noise, objectives  # noqa: PLC0415

    segments = documents.objective_segments(group, objective, inputs_length=request.inputs_length)[
        : request.examples
    ]
    drawn = draws.segment_draws(
        objective, [len(one) for one in segments], np.random.default_rng((request.seed, objective))
    )
    mode = vocabulary.modes[objective]
    made, uncut = (
        objectives.ul2_examples(
            segments,
            objective,
            inputs_length=request.inputs_length + more,
            targets_length=request.targets_length + more,
            vocabulary_size=vocabulary.size,
            prompt=mode,
            **drawn,
        )
        for more in (0, sum(map(len, segments)) + len(mode))
    )
    one = OBJECTIVES[objective]
    found = []
    for i, segment in enumerate(segments):
        if one.mean_noise_span_length is None:
            mask = np.arange(len(segment)) >= drawn["splits"][i]
        else:
            mask = noise.noise_mask(
                len(segment),
                noise_density=one.noise_density,
                mean_noise_span_length=one.mean_noise_span_length,
                noise_permutation=drawn["noise_permutations"][i],
                nonnoise_permutation=drawn["nonnoise_permutations"][i],
            )
        found.append(
            {
                "objective": objective,
                "mode": one.mode,
                "mode_length": len(mode),
                "segment": segment.tolist(),
                "noise": mask.astype(int).tolist(),
                **{name: made[i][name].tolist() for name in ("inputs", "targets")},
                "cut_off": {
                    name: uncut[i][name][len(made[i][name]) - 1 : -1].tolist()
                    for name in ("inputs", "targets")
                },
            }
        )
    return found


def _row(
    request: Request, group: Sequence[ndarray], vocabulary: Vocabulary
) -> Mapping[str, list[int]]:
    """Return the row that holds most of the last segments of all objectives, by feature.

    Those are shorter, where whole ones, at lengths as in training, have a row each.
    """
    from openmoe_production import batching, documents, draws, objectives  # noqa: PLC0415

    last = []
    for objective in range(len(OBJECTIVES)):
        segment = documents.objective_segments(
            group, objective, inputs_length=request.inputs_length
        )[-1]
        drawn = draws.segment_draws(
            objective, [len(segment)], np.random.default_rng((request.seed, objective))
        )
        last += objectives.ul2_examples(
            [segment],
            objective,
            inputs_length=request.inputs_length,
            targets_length=request.targets_length,
            vocabulary_size=vocabulary.size,
            prompt=vocabulary.modes[objective],
            **drawn,
        )
    lengths = {"inputs": request.inputs_length, "targets": request.targets_length}
    last.sort(key=lambda one: len(one["inputs"]) + len(one["targets"]))
    features = batching.decoder_features(last, lengths=lengths, pack=True)
    best = int(features["decoder_segment_ids"].max(axis=1).argmax())
    return {name: array[best].tolist() for name, array in features.items()}
