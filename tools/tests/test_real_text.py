"""Text of the machine, tokenisers, and the pass of real input through an implementation."""

from __future__ import annotations

import numpy as np
import pytest

from openmoe_conformance import real_input
from openmoe_conformance.mutants.losses import BalanceTimesE
from openmoe_conformance.mutants.moe import FirstHalfIsActivated
from openmoe_conformance.mutants.routing import ApproximateTopK, DropsWholeTokens, RenormalisedGates
from openmoe_conformance.outcome import Outcome
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject
from openmoe_tools.data import corpus, tokenizer

TEXTS = [
    "the cat sat on the mat\n" * 40,
    "a dog ran after the cat\n" * 40,
    "def cat(mat): return mat",
]


@pytest.fixture(scope="module")
def model():
    return tokenizer.train(TEXTS, vocabulary_size=280)


def test_documents_are_the_same_each_time_and_not_of_one_package():
    first, second = (corpus.standard_library_documents(max_bytes=300_000) for _ in range(2))
    assert first == second
    assert sum(len(d.text.encode()) for d in first) >= 300_000
    assert len({d.name.split("/")[0] for d in first}) > 3
    assert not any("test" in d.name.split("/") for d in first)


def test_a_machine_without_text_is_an_error_that_says_where(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(corpus.CorpusError, match=str(tmp_path)):
        corpus.standard_library_documents(max_bytes=10)


def test_training_is_deterministic(model):
    assert tokenizer.train(TEXTS, vocabulary_size=280) == model


def test_text_comes_back_and_unknown_characters_fall_back_to_bytes(model):
    own = tokenizer.Tokenizer(model)
    assert own.vocabulary_size == 280
    for text in ("the cat", "cat  mat", "Ω and 猫"):
        ids = own.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.UNKNOWN not in ids
        assert own.decode(ids) == text


@pytest.mark.parametrize("broken", [b"", b"no model", "half"])
def test_a_broken_model_is_refused(model, broken):
    with pytest.raises(tokenizer.TokenizerError):
        tokenizer.Tokenizer(model[: len(model) // 2] if broken == "half" else broken)


def test_a_model_with_other_special_ids_is_refused():
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[0].split("\n")),
        model_writer=made,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(tokenizer.TokenizerError, match="id is"):
        tokenizer.Tokenizer(made.getvalue())


def test_too_little_text_for_the_vocabulary_is_refused():
    with pytest.raises(tokenizer.TokenizerError, match="training failed"):
        tokenizer.train(["a b"], vocabulary_size=8000)


# ---- the pass ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def token_ids():
    """One group of 4096 tokens in a Zipf-like distribution: text without a tokeniser."""
    generator = np.random.default_rng(0)
    return (generator.zipf(1.3, real_input.GROUP_SIZE) % 500).astype(np.int32)


@pytest.fixture(autouse=True)
def small_layer(monkeypatch):
    """Base's router with narrow experts: the pass is about decisions, and tests are short."""
    whole = real_input.base_layer

    def narrow(vocabulary_size):
        embedding, weights = whole(vocabulary_size)
        return embedding, {
            "router": weights["router"],
            "wi_0": np.ascontiguousarray(weights["wi_0"][..., :16]),
            "wi_1": np.ascontiguousarray(weights["wi_1"][..., :8]),
            "wo": np.ascontiguousarray(weights["wo"][:, :8]),
        }

    monkeypatch.setattr(real_input, "base_layer", narrow)


def outcomes(implementation, ids):
    results, figures = real_input.run(Subject(implementation), ids, 500)
    assert len(results) == real_input.count_items()
    return {r.item.split("/")[-1]: r.outcome for r in results}, figures


def test_the_reference_passes_and_its_figures_add_up(token_ids):
    found, figures = outcomes(ReferenceAdapter(), token_ids)
    assert set(found.values()) == {Outcome.PASS}
    evaluation, training = figures
    assert (evaluation["capacity"], training["capacity"]) == (512, 320)
    assert training["kept_first"] <= evaluation["kept_first"] <= 1
    kept = (1 - np.mean(training["drop_share_by_position"])) * 2
    assert kept == pytest.approx(training["kept_first"] + training["kept_second"], rel=1e-2)


@pytest.mark.parametrize(
    ("implementation", "item"),
    [
        (ApproximateTopK, "choices"),
        (DropsWholeTokens, "queues"),
        (RenormalisedGates, "gates"),
        (FirstHalfIsActivated, "outputs"),
    ],
)
def test_each_item_catches_its_bug(token_ids, implementation, item):
    found, _ = outcomes(implementation(), token_ids)
    assert found[item] is Outcome.FAIL


def test_a_bug_elsewhere_does_not_show(token_ids):
    found, _ = outcomes(BalanceTimesE(), token_ids)
    assert set(found.values()) == {Outcome.PASS}


class BlackBox:
    """A layer that shows no decision."""

    def moe(self, inputs, parameters, *, k, capacity):
        return ReferenceAdapter().moe(inputs, parameters, k=k, capacity=capacity).output


class Raises:
    def moe(self, inputs, parameters, *, k, capacity):
        raise MemoryError("too large")


class RouterOnly:
    def route(self, inputs, kernel, *, k, capacity):
        return ReferenceAdapter().route(inputs, kernel, k=k, capacity=capacity)


def test_a_black_box_is_compared_where_every_token_is_decided(token_ids):
    found, _ = outcomes(BlackBox(), token_ids)
    assert found["outputs"] in (Outcome.PASS, Outcome.INCONCLUSIVE)
    assert {found[item] for item in ("choices", "queues", "gates")} == {Outcome.SKIPPED}


def test_a_router_alone_is_judged_without_outputs(token_ids):
    found, _ = outcomes(RouterOnly(), token_ids)
    assert found == dict.fromkeys(("choices", "queues", "gates"), Outcome.PASS) | {
        "outputs": Outcome.SKIPPED
    }


def test_an_implementation_that_raises_is_an_error_in_every_item(token_ids):
    found, _ = outcomes(Raises(), token_ids)
    assert set(found.values()) == {Outcome.ERROR}
