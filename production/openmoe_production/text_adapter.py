"""Text and the whole pipeline as the conformance kit sees them; what a missing extra lacks, is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

if TYPE_CHECKING:
    from openmoe_production.vocabulary import Vocabulary


class TextAdapter:
    """Text to ids by a SentencePiece model's file, and rows fed by the pipeline."""

    if find_spec("sentencepiece"):

        def encode_text(
            self,
            text: str | bytes,
            *,
            model: str,
            num_sentinels: int = 300,
            reverse: bool = True,
        ) -> ndarray:
            """Return the ids of a text. Spec: VOCAB-03."""
            return _vocabulary(Path(model).read_bytes(), num_sentinels, reverse).encode(text)

        def decode_text(
            self, ids: ndarray, *, model: str, num_sentinels: int = 300, reverse: bool = True
        ) -> str:
            """Return the text of ids. Spec: VOCAB-04."""
            return _vocabulary(Path(model).read_bytes(), num_sentinels, reverse).decode(ids)

    if find_spec("grain") and find_spec("sentencepiece"):

        def feed(
            self,
            documents: Sequence[ndarray],
            *,
            count: int,
            seed: int,
            inputs_length: int,
            targets_length: int,
            vocabulary_size: int,
            prompts: Sequence[ndarray],
            state: Mapping[str, Any] | None = None,
            process: int = 0,
            num_processes: int = 1,
        ) -> dict[str, Any]:
            """Return `count` rows, and the state behind them. Spec: DATA-12, DATA-13, DATA-14."""
            from openmoe_production.data import Pipeline  # noqa: PLC0415 - Grain takes a second
            from openmoe_production.sources import IdDocuments, Task  # noqa: PLC0415
            from openmoe_production.streams import Settings  # noqa: PLC0415

            settings = Settings(
                mode="ul2",
                seed=seed,
                inputs_length=inputs_length,
                targets_length=targets_length,
                vocabulary_size=vocabulary_size,
                prompts=tuple(map(np.asarray, prompts)),
                shuffle=False,
                process=process,
                num_processes=num_processes,
            )
            pipeline = Pipeline([Task(IdDocuments(documents))], settings, batch_size=count)
            if state is not None:
                pipeline.set_state(state)
            features = next(pipeline)
            pipeline.close()
            return {"features": features, "state": pipeline.get_state()}


@lru_cache(maxsize=8)
def _vocabulary(model: bytes, num_sentinels: int, reverse: bool) -> Vocabulary:
    from openmoe_production.vocabulary import load  # noqa: PLC0415 - an optional extra

    return load(model, num_sentinels=num_sentinels, reverse=reverse)
