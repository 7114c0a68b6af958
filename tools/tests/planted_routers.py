"""Small models with weights chosen by hand, whose routers go by one thing alone; and text for them.

The decoder has a dense layer and a sparse one. Feed-forwards add nothing, and in the first layer attention
sees all earlier tokens alike, so that it adds the mean of what they have; the router reads chosen dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters
from openmoe_tools.audit import folder
from openmoe_tools.audit.counting.layout import Sizes
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.measures import report
from openmoe_tools.audit.passing.flattening import flat, replayed
from openmoe_tools.audit.passing.model import Audited
from openmoe_tools.audit.passing.recording import How, Machine, Recorded
from openmoe_tools.audit.passing.rules import rules, what_ifs
from openmoe_tools.audit.passing.text import Call

WIDTH, LENGTH, ROWS, SLICES, EXPERTS, IDS = 32, 64, 8, 3, 8, 200
CONSTANT, START, WITH_THE_FREQUENT, MEAN = 0, 1, 7, 8
"""Dimensions: what all ids have, the start token, frequent ids; where means of the first ones are put."""
MARKERS = (4, 5, 6)
"""Ids that documents of a slice begin with."""
MODEL = Configuration(
    name="planted",
    num_layers=2,
    num_moe_layers=1,
    embed_dim=WIDTH,
    num_heads=1,
    head_dim=MEAN,
    mlp_dim=4,
    num_experts=EXPERTS,
    vocabulary_size=IDS,
    max_length=LENGTH,
    max_group_size=LENGTH,
)
ROUTER = "decoder/layers_1/mlp/router/router_weights/w/kernel"


def _model(embedding, router) -> Audited:
    weights = {
        one.name: (np.ones if one.name.endswith("scale") else np.zeros)(one.shape, np.float32)
        for one in parameters(MODEL)
    }
    carried = np.eye(WIDTH, MEAN, dtype=np.float32)  # the first dimensions, to where means are put
    weights["decoder/layers_0/self_attention/value/kernel"] = carried
    weights["decoder/layers_0/self_attention/out/kernel"] = np.roll(carried, MEAN, axis=0).T.copy()
    weights["token_embedder/embedding"] = embedding.astype(np.float32)
    weights[ROUTER] = router.astype(np.float32)
    return Audited(Path("planted"), MODEL, weights, None, "0" * 64)


def _plain() -> np.ndarray:
    embedding = np.zeros((IDS, WIDTH))
    embedding[:, CONSTANT] = 1
    embedding[0, START] = 1
    return embedding


def by_token(seed: int) -> Audited:
    """Each id has experts of its own."""
    generator = np.random.default_rng(seed)
    embedding = _plain()
    embedding[:, 2 * MEAN :] = generator.normal(size=(IDS, WIDTH - 2 * MEAN)) * 3
    router = np.zeros((WIDTH, EXPERTS))
    router[2 * MEAN :] = generator.normal(size=(WIDTH - 2 * MEAN, EXPERTS))
    return _model(embedding, router)


def by_position(_: int) -> Audited:
    """The mean of what only the start token has is 1 over the tokens so far: lines in it, in turn on top."""
    router = np.zeros((WIDTH, EXPERTS))
    ends = 1 / (np.arange(EXPERTS + 1) * LENGTH / EXPERTS + 1)  # where one expert follows another
    slope, height = 0.0, 0.0
    for expert in range(EXPERTS):
        router[MEAN + START, expert], router[CONSTANT, expert] = slope, height
        # The next line crosses this one where its part of the row begins, and is lower before.
        steeper = slope - 1
        height += (slope - steeper) * ends[expert + 1]
        slope = steeper
    return _model(_plain(), router * 50)


def by_slice(_: int) -> Audited:
    """The mean of what the marks at the beginnings of documents have."""
    embedding = _plain()
    for number, marker in enumerate(MARKERS):
        embedding[marker, 2 + number] = 1
    router = np.zeros((WIDTH, EXPERTS))
    for number in range(SLICES):
        router[MEAN + 2 + number, 2 * number] = 20
        router[MEAN + 2 + number, 2 * number + 1] = 10
    return _model(embedding, router)


def late_dropping(seed: int) -> Audited:
    """The most frequent ids prefer one expert, whose slots the first tokens of a group take."""
    model = by_token(seed)
    embedding, router = (
        model.weights["token_embedder/embedding"].copy(),
        model.weights[ROUTER].copy(),
    )
    embedding[10:15, WITH_THE_FREQUENT] = 10
    router[WITH_THE_FREQUENT, 0] = 100
    return _model(embedding, router)


class ByChance:
    """Routers that draw their logits, from a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, ids: np.ndarray, _: np.ndarray) -> Recorded:
        from openmoe_reference.routing import decide, softmax

        shape = (len(ids), LENGTH, EXPERTS)
        logits = self._generator.normal(size=shape).astype(np.float32)
        found = decide(softmax(logits), k=2, capacity=_rules()[0].capacity)
        fields = (found.expert_index, found.gate, found.position, found.kept, logits)
        return Recorded(*(one[None] for one in fields))


def _rules():
    return rules(MODEL, ROWS, LENGTH, factor=MODEL.eval_capacity_factor)


def calls(seed: int, number: int) -> Iterator[Call]:
    """Yield calls of one-row documents whose ids are as frequent as words are, alike in all slices."""
    generator = np.random.default_rng(seed)
    known = np.arange(10, IDS)
    chances = 1 / np.arange(1, len(known) + 1)
    for i in range(number):
        ids = np.zeros((ROWS, LENGTH), np.int32)
        ids[:, 1:] = generator.choice(known, (ROWS, LENGTH - 1), p=chances / chances.sum())
        ids[:, 1] = MARKERS[i % SLICES]
        targets = np.ones_like(ids)
        targets[:, :-1] = ids[:, 1:]
        names = tuple(f"{i % SLICES}/{i}-{row}" for row in range(ROWS))
        first = np.arange(i * ROWS, (i + 1) * ROWS)
        yield Call(i, ids, targets, i % SLICES, names, first, names)


def audited(model: Audited | ByChance, seed: int, number: int = 30):
    """Return the report of a model over drawn text."""
    ours = _rules()
    asked = what_ifs(MODEL, ROWS, LENGTH, ours[0])
    sizes = Sizes(IDS, LENGTH, SLICES, 1, EXPERTS, 2, tuple(one.name for one in ours), asked)
    tables = Tables(sizes)
    record = model
    if isinstance(model, Audited):
        record = Machine(How("reference"), model).recorder(model)
    for call in calls(seed, number):
        found = record(call.ids, call.targets)
        one = flat(call, found, ours)
        tables.add(one.routed, [[groups] for groups in one.groups])
        tables.add_probabilities(one.probability, one.log_sum)
        for rule, dropped in replayed(call, found, ours[0], asked):
            tables.add_what_if(rule, dropped, one.routed.position)
        tables.count_documents(call.begun, np.full(ROWS, call.slice, np.int16))
    return folder.Audit(_manifest(ours, sizes, number), tables, None, None, [], Path("planted"))


def verdict(model, seed, number=30):
    """Return what the report concludes, and its lines by id."""
    found = report.make(audited(model, seed, number))["verdict"]
    return found, {one["id"]: one for one in found["lines"]}


def _manifest(ours, sizes, number):
    slices = [{"name": f"slice {i}", "digest": "0" * 64} for i in range(SLICES)]
    return {
        "schema": folder.SCHEMA,
        "spec_version": "0",
        "version": "0",
        "source": "run",
        "model": {
            "name": "planted",
            "path": "planted",
            "step": None,
            "digest": "0" * 64,
            "layers": [1],
            "experts": EXPERTS,
            "choices": 2,
            "vocabulary_size": IDS,
            "certificate": {"status": "none", "file": None},
        },
        "tokenizer": None,
        "corpus": {
            "digest": "0" * 64,
            "slices": [one | {"documents": 1, "tokens": 1, "bytes": 1} for one in slices],
        },
        "recipe": {
            "rows": ROWS,
            "length": LENGTH,
            "tokens": None,
            "share": None,
            "mesh": None,
            "backend": "reference",
            "dtype": "float32",
            "capacity": "evaluation",
            "capacity_factor": 2.0,
            "seed": 0,
            "folds": 8,
            "replicates": 100,
            "rules": [one.manifest() for one in ours],
            "what_if": [one._asdict() for one in sizes.what_if],
        },
        "checkpoints": [],
        "recorded": [
            *("tokens", "positions", "documents", "drops", "groups", "margins", "gates"),
            "probabilities",
        ],
        "totals": {
            "tokens": number * ROWS * LENGTH,
            "documents": number * ROWS,
            "calls": number,
            "seconds": 1.0,
        },
    }
