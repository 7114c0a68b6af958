"""Audits of routing that was drawn, so that what is true of it is known: for the tests of measures and verdict.

Texts are documents of one row each. Tables are counted here with NumPy alone, in the plainest way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from openmoe_reference.audit_inference import document_fold, document_weights
from openmoe_tools.audit.counting.layout import (
    FOLDS,
    POSITION_BINS,
    REPLICATES,
    Sizes,
    forms,
    pair_forms,
)


@dataclass(frozen=True)
class Drawn:
    """Documents [P] of one row each, tokens [P, S], and their routing.

    counted  bool [P, S]
    expert   int [P, S, L, K]
    dropped  bool [R, P, S, L, K]
    """

    sizes: Sizes
    slices: np.ndarray
    token: np.ndarray
    counted: np.ndarray
    expert: np.ndarray
    dropped: np.ndarray
    names: tuple[str, ...]


def draw(
    seed,
    router="chance",
    *,
    documents=64,
    length=32,
    vocabulary=40,
    slices=4,
    layers=1,
    experts=8,
    choices=2,
    rules=("t5x", "torch_port"),
    strength=0.9,
    late=0.0,
    whole_rows=True,
):
    """Draw a text and its routing.

    router    what decides the first choice, with the probability `strength`; else it is drawn evenly
    late      how much likelier drops are in the last quarter of a row than in the others, where 0.1 are
    """
    rng = np.random.default_rng(seed)
    sizes = Sizes(vocabulary, length, slices, layers, experts, choices, rules)
    of = rng.integers(slices, size=documents)
    frequent = 1 / np.arange(1, vocabulary)
    token = rng.choice(
        np.arange(1, vocabulary), size=(documents, length), p=frequent / frequent.sum()
    )
    token[:, 0] = 0
    long = np.full(documents, length) if whole_rows else rng.integers(2, length + 1, size=documents)
    position = np.broadcast_to(np.arange(length), token.shape)
    planted = {
        "chance": np.zeros_like(token),
        "token id": token % experts,
        "position": position // 4 % experts,
        "slice": np.broadcast_to(of[:, None] % experts, token.shape),
    }[router]
    shape = (documents, length, layers)
    expert = rng.random((*shape, experts)).argsort(axis=-1)
    obeys = rng.random(shape) < (0 if router == "chance" else strength)
    first = np.where(obeys, planted[..., None], expert[..., 0])
    # The planted expert goes to the front; what stood there takes its place.
    where = (expert == first[..., None]).argmax(axis=-1)
    np.put_along_axis(expert, where[..., None], expert[..., :1].copy(), axis=-1)
    expert[..., 0] = first
    chance = 0.1 + late * (position >= length * 3 // 4)
    dropped = rng.random((len(rules), *shape, choices)) < chance[..., None, None]
    return Drawn(
        sizes,
        of,
        token,
        position < long[:, None],
        expert[..., :choices],
        dropped,
        tuple(f"{seed}/{of[i]}/{i}" for i in range(documents)),
    )


def count(drawn):
    """Return the tables of choices, slices and drops; the others hold zeros."""
    sizes = drawn.sizes
    arrays = {name: np.zeros(form.shape, form.dtype) for name, form in forms(sizes).items()}
    document, position = np.nonzero(drawn.counted)
    fold = np.array([document_fold(one) for one in drawn.names])
    weights = np.array([document_weights(one) for one in drawn.names])  # [P, B]
    token, of = drawn.token[document, position], drawn.slices[document]
    expert = drawn.expert[document, position]  # [N, L, K]
    np.add.at(arrays["documents"], (fold, drawn.slices), 1)
    np.add.at(arrays["slice_token"], (of, token), 1)
    by_document = np.zeros((len(fold), *arrays["slice"].shape[2:]), np.int64)
    layer, rank = np.arange(sizes.layers)[:, None], np.arange(sizes.choices)
    spread = lambda key: np.asarray(key)[:, None, None]  # noqa: E731
    for name, key in (("token", token), ("position", position), ("slice", of)):
        place = (spread(fold[document]), spread(key), layer, expert, rank)
        np.add.at(arrays[name], place, 1)
    np.add.at(by_document, (spread(document), layer, expert, rank), 1)
    bins = position * POSITION_BINS // sizes.length
    drops = np.zeros((len(fold), len(sizes.rules), POSITION_BINS, sizes.layers, 5), np.int64)
    for rule, dropped in enumerate(drawn.dropped):
        lost = dropped[document, position]  # [N, L, K]
        second = lost[..., 1] if sizes.choices > 1 else np.zeros_like(lost[..., 0])
        columns = np.stack(
            [np.ones_like(second), lost[..., 0], second, lost.any(axis=-1), lost.all(axis=-1)], -1
        )
        np.add.at(arrays["drop"][rule], (of, position), columns)
        np.add.at(drops, (document, rule, bins), columns)
    for one in range(sizes.slices):
        here = drawn.slices == one
        arrays["replicate_slice"][:, one] = np.einsum(
            "pb,p...->b...", weights[here], by_document[here]
        )
        arrays["replicate_drop"][:, :, one] = np.einsum("pb,p...->b...", weights[here], drops[here])
    return arrays


RECORDED = (
    "tokens",
    "positions",
    "documents",
    "drops",
    "groups",
    "margins",
    "gates",
    "probabilities",
)


def manifest(sizes, arrays, recorded=RECORDED):
    """Return an audit's manifest."""
    return {
        "schema": "openmoe-audit/1",
        "spec_version": "0",
        "version": "0",
        "command": "openmoe audit run checkpoint --text a=a.jsonl",
        "source": "run",
        "model": {
            "name": "drawn",
            "path": "drawn",
            "step": 1000,
            "digest": "0" * 64,
            "layers": [2 * one + 1 for one in range(sizes.layers)],
            "experts": sizes.experts,
            "choices": sizes.choices,
            "vocabulary_size": sizes.vocabulary,
            "certificate": {"status": "holds", "file": "certificate.json"},
        },
        "tokenizer": None,
        "corpus": {
            "digest": "1" * 64,
            "slices": [
                {
                    "name": f"slice {one}",
                    "documents": int(arrays["documents"][:, one].sum()),
                    "tokens": int(arrays["slice_token"][one].sum()),
                    "bytes": 1,
                    "digest": "2" * 64,
                }
                for one in range(sizes.slices)
            ],
        },
        "recipe": {
            "rows": 8,
            "length": sizes.length,
            "backend": "reference",
            "mesh": None,
            "dtype": "float32",
            "capacity_factor": 2.0,
            "seed": 0,
            "folds": FOLDS,
            "replicates": REPLICATES,
            "rules": [
                {"name": one, "groups": 1, "group_size": 8, "capacity": 4, "formula": "4"}
                for one in sizes.rules
            ],
            "what_if": [one._asdict() for one in sizes.what_if],
        },
        "checkpoints": [],
        "recorded": [*recorded],
        "totals": {
            "tokens": int(arrays["slice_token"].sum()),
            "documents": int(arrays["documents"].sum()),
            "calls": 1,
            "seconds": 1.0,
        },
    }


def audit(drawn, *, tables=None, recorded=RECORDED, **more):
    """Return an audit of drawn routing, as `folder.read` gives it."""
    arrays = count(drawn) if tables is None else tables
    made = {"pairs": None, "pieces": None, "sample": [], "path": Path("drawn")}
    return SimpleNamespace(
        manifest=manifest(drawn.sizes, arrays, recorded),
        tables=SimpleNamespace(sizes=drawn.sizes, arrays=arrays),
        **(made | more),
    )


def with_pairs(made, drawn, series):
    """Return the audit with checkpoints: (label, kind, step, expert [P, S, L, K]), the audited one added."""
    sizes, own = drawn.sizes, drawn.expert
    series = [*series, ("audited", "audited", 1000, own)]
    tables = {
        name: np.zeros(form.shape, form.dtype)
        for name, form in pair_forms(sizes, len(series)).items()
    }
    halves = np.array([document_fold(one) % 2 for one in drawn.names])
    weights = np.array([document_weights(one) for one in drawn.names])
    document, position = np.nonzero(drawn.counted)
    layer, rank = np.arange(sizes.layers)[:, None], np.arange(sizes.choices)
    for number, (_, _, _, expert) in enumerate(series):
        shared = (own[..., :, None] == expert[..., None, :]).sum(axis=(-1, -2))
        same = own[..., 0] == expert[..., 0]
        columns = (
            np.stack([np.ones_like(shared), shared, same], -1) * drawn.counted[..., None, None]
        )
        tables["agreement"][number] = columns.sum(axis=(0, 1))
        tables["replicate_agreement"][:, number] = np.einsum(
            "pb,p...->b...", weights, columns.sum(axis=1)
        )
        token = drawn.token[document, position][:, None, None]
        half = halves[document][:, None, None]
        np.add.at(
            tables["checkpoint_token"][number],
            (half, token, layer, expert[document, position], rank),
            1,
        )
    listed = [
        {"label": label, "kind": kind, "step": step, "digest": "3" * 64}
        for label, kind, step, _ in series
    ]
    return SimpleNamespace(
        **(vars(made) | {"pairs": tables, "manifest": made.manifest | {"checkpoints": listed}})
    )


def mixed(drawn, share, seed=0):
    """Return the choices of a checkpoint that has this share of its tokens' choices, and others by chance."""
    other = draw(
        seed,
        documents=len(drawn.names),
        length=drawn.sizes.length,
        layers=drawn.sizes.layers,
        experts=drawn.sizes.experts,
        choices=drawn.sizes.choices,
        slices=drawn.sizes.slices,
    )
    keep = np.random.default_rng(seed).random(drawn.expert.shape[:3]) < share
    return np.where(keep[..., None], drawn.expert, other.expert)


def sized(drawn, **changes):
    """Return the same with other sizes."""
    return replace(drawn, sizes=replace(drawn.sizes, **changes))
