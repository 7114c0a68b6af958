"""What the models were fed: objectives, mixtures, runs, special ids. Data only.

Source: t5 fork preprocessors.py, mixtures.py, tasks.py@3eb38e6; gin files of t5x@3234135.
Spec: VOCAB-01, OBJ-01, DATA-09.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PAD, END = 0, 1
"""Ids of padding, which is the start token too, and of the end of a sequence, in every vocabulary."""

NUM_PIECES, NUM_SENTINELS = 256_000, 300
"""Pieces of umT5's SentencePiece model, and the sentinels added to it."""

UMT5_TEXTS: Mapping[str, tuple[int, ...]] = {
    "Bonjour monsieur <extra_id_0> bien <extra_id_1>.": (
        *(38530, 210703, 256299, 1410, 256298, 274, 1),
    ),
    "No se como puedo <extra_id_0>.": (826, 321, 671, 25922, 256299, 274, 1),
    "This is the reason why we <extra_id_0> them.": (
        *(1460, 339, 312, 19014, 10620, 758, 256299, 2355, 274, 1),
    ),
    "A <extra_id_0> walks into a bar and orders a <extra_id_1> with <extra_id_2> pinch of <extra_id_3>.": (
        *(320, 256299, 14869, 281, 2234, 289, 2275, 333, 61391, 289, 256298, 543, 256297),
        *(168714, 329, 256296, 274, 1),
    ),
}
"""Ids of some texts, the end behind them, by umT5's model. Source: transformers, test of UMT5."""

EMBEDDING_MULTIPLE = 128
"""The embedding table's rows are a multiple of this."""

GROUP_OF_DOCUMENTS = 128
"""Documents that are joined before they are cut into segments."""

MAX_DOCUMENT_LENGTH = 65_536
"""Tokens of a document that are looked at: one aligned block of this length."""


@dataclass(frozen=True)
class Objective:
    """One of the six objectives of the training mixture; without a span length it is PrefixLM.

    rate  share of the examples
    mode  text put in front of the inputs
    """

    rate: float
    mean_noise_span_length: float | None
    noise_density: float
    mode: str

    @property
    def is_prefix(self) -> bool:
        """Whether inputs are a prefix, and not text with spans taken out."""
        return self.mean_noise_span_length is None


OBJECTIVES = (
    Objective(0.1, 3.0, 0.15, "[NLU] "),
    Objective(0.1, 8.0, 0.15, "[NLU] "),
    Objective(0.1, 3.0, 0.5, "[NLG] "),
    Objective(0.1, 8.0, 0.5, "[NLG] "),
    Objective(0.1, 64.0, 0.5, "[NLG] "),
    Objective(0.5, None, 0.5, "[S2S] "),
)
"""The training mixture; an objective is known by its place here."""

TRANSFORMS = (
    "noise_span_to_unique_sentinel",
    "nonnoise_span_to_unique_sentinel",
    "noise_span_to_sentinel",
    "nonnoise_span_to_sentinel",
    "noise_token_to_sentinel",
    "drop_noise_tokens",
    "drop_nonnoise_tokens",
)
"""What can be done with the noise of a segment; OpenMoE uses the first two and the last two."""

OVERFLOWS = ("rejected", "runs_on")
"""What becomes of more spans than sentinels: an error, or ids below the sentinels (as trained)."""


def _tasks(suffix: str, rates: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_{suffix}": rate for name, rate in rates.items()}


_LESS_CODE = {
    "redpajama_c4": 15.0,
    "redpajama_wikipedia": 4.5,
    "redpajama_stackexchange": 2.0,
    "redpajama_arxiv": 2.5,
    "redpajama_book": 4.5,
    "redpajama_github": 4.5,
    "redpajama_common_crawl": 67.0,
}
_FIRST = {**_LESS_CODE, "the_stack_dedup": 100.0}
_STAGE_2 = {
    "redpajama_c4": 15.0,
    "redpajama_wikipedia": 6.5,
    "wikipedia": 6.5,
    "redpajama_stackexchange": 2.5,
    "redpajama_arxiv": 4.5,
    "redpajama_book": 6.5,
    "redpajama_github": 5.0,
    "redpajama_common_crawl": 43.5,
    "the_stack_dedup": 10.0,
}
_VERSION_2 = {
    "redpajama_c4": 15.0,
    "redpajama_wikipedia": 4.5,
    "wikipedia": 2.5,
    "redpajama_stackexchange": 1.0,
    "redpajama_arxiv": 4.5,
    "redpajama_book": 4.5,
    "redpajama_github": 5.0,
    "redpajama_common_crawl": 33.0,
    "the_stack_dedup": 30.0,
}

MIXTURES: Mapping[str, Mapping[str, float]] = {
    "mix_ul2": _tasks("ul2", _FIRST),
    "mix_ul2_stage2": _tasks("ul2", _STAGE_2),
    "mix_ul2_v2": _tasks("ul2", _VERSION_2),
    "mix_ul2_noprefix": _tasks("ul2", _FIRST),  # the tasks that do put modes in front
    "mix_lesscode_ul2": _tasks("ul2", _LESS_CODE),
    "mix_full_lm": _tasks("full_lm", _FIRST),
    "mix_full_lm_stage2": _tasks("full_lm", _STAGE_2),
    "mix_full_lm_v2": _tasks("full_lm", _VERSION_2),
}
"""The eight mixtures: rates of examples by task, as they are written there; any sum."""


@dataclass(frozen=True)
class Run:
    """What one stage of a training run was fed: a mixture, and lengths of a row's features."""

    mixture: str
    inputs_length: int | None
    targets_length: int


RUNS: Mapping[str, Run] = {
    "base": Run("mix_ul2", 1024, 1024),
    "8b": Run("mix_ul2", 1024, 1024),
    "8b after 780B": Run("mix_full_lm_stage2", None, 2048),
    "34b": Run("mix_full_lm_v2", None, 2048),
    "base without UL2": Run("mix_full_lm", None, 2048),
}
"""The stages of the published runs, by name."""

SFT_ENDS: Mapping[str, tuple[str, ...]] = {"wildchat_gpt4_sft": (), "orca_sft": ("targets",)}
"""Features that end in the end id, by fine-tuning task."""
