"""A SentencePiece model with sentinels: ids, text and back, and every file that is none."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from openmoe_spec.errors import RejectedError

sentencepiece = pytest.importorskip("sentencepiece")

from openmoe_production import vocabulary

WORDS = np.random.default_rng(0).choice(list("aeimnorst"), (400, 5)).tolist()
TEXT = "The cat sat on the mat.\nA naïve dog ran after the [NLU] cat\n" * 30
TEXT += "\n".join(map("".join, WORDS))


def train(**options):
    made = io.BytesIO()
    layout = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=made,
        vocab_size=310,
        minloglevel=2,
        **layout | options,
    )
    return made.getvalue()


@pytest.fixture(scope="module")
def model():
    return train()


@pytest.fixture(scope="module")
def own(model):
    return vocabulary.load(model)


def test_sentinels_count_down_from_the_last_id(own):
    assert (own.num_pieces, own.size, own.num_embeddings) == (310, 610, 640)
    assert (own.sentinel(0), own.sentinel(299)) == (609, 310)
    ids = own.encode("cat <extra_id_0> mat <extra_id_7>")
    assert ids.dtype == np.int32
    assert ids[ids >= 310].tolist() == [609, 602]
    assert [own.sentinel_number(i) for i in (609, 310, 309, 610)] == [0, 299, None, None]


def test_sentinels_may_count_upwards(model):
    upwards = vocabulary.load(model, num_sentinels=5, reverse=False)
    ids = upwards.encode("<extra_id_0> <extra_id_4>")
    assert ids.tolist() == [310, 314]
    assert upwards.sentinel_number(314) == 4
    assert upwards.size == 315


def test_a_sentinel_inside_a_word_is_text(own):
    ids = own.encode("a<extra_id_0>b")
    assert (ids < 310).all()


@pytest.mark.parametrize("text", ["the cat", "", "Ω and 猫", "naïve dog", "🦊"])
def test_text_comes_back(own, text):
    assert own.decode(own.encode(text)) == text
    assert own.decode(own.encode(text.encode())) == text
    assert own.unknown not in own.encode(text)


def test_many_texts_are_as_each(own):
    texts = ["the cat", "", "a dog"]
    for one, text in zip(own.encode_many(texts), texts, strict=True):
        np.testing.assert_array_equal(one, own.encode(text))


def test_decoding_ends_at_the_first_end_and_knows_no_other_ids(own):
    cat = own.encode("the cat").tolist()
    assert own.decode([*cat, 1, *cat, 1]) == "the cat"
    assert own.decode([0, *cat, 0]) == "the cat"
    assert own.decode([9999]) == own.decode([own.unknown]) != ""
    with pytest.raises(RejectedError, match="VOCAB-05"):
        own.decode([3, -1])


@pytest.mark.parametrize(
    ("text", "place"),
    [(b"caf\xe9", "byte 3"), (b"\xff", "byte 0"), (b"a\xc3", "byte 1"), ("a\ud800", "character 1")],
)
def test_text_that_is_no_utf8_is_refused_by_its_place(own, text, place):
    with pytest.raises(RejectedError, match=place) as found:
        own.encode(text)
    assert found.value.clause == "VOCAB-05"


def test_what_is_no_text_is_refused(own):
    with pytest.raises(RejectedError, match="must be text, got int"):
        own.encode(5)


def ends_of_fields(content):
    place = 0
    while place < len(content):
        _, place = vocabulary._varint(content, place)
        length, place = vocabulary._varint(content, place)
        place += length
        yield place


def test_a_model_cut_anywhere_between_its_fields_is_truncated(model):
    *cuts, whole = ends_of_fields(model)
    assert whole == len(model)
    for cut in (*cuts[2::40], *cuts[-3:]):
        with pytest.raises(RejectedError, match="is truncated"):
            vocabulary.load(model[:cut])


@pytest.mark.parametrize("cut", [-1, -20, 500, 100])
def test_a_model_cut_inside_a_field_is_truncated(model, cut):
    with pytest.raises(RejectedError, match="is truncated"):
        vocabulary.load(model[:cut])


@pytest.mark.parametrize("content", [b"", b"no model at all\n" * 9, b"\x00" * 40, b"PAR1 PAR1"])
def test_a_foreign_file_is_no_model(content, tmp_path):
    path = tmp_path / "foreign.model"
    path.write_bytes(content)
    with pytest.raises(RejectedError, match=r"is no SentencePiece model \[VOCAB-05\]"):
        vocabulary.load(path)


def test_other_special_ids_are_refused():
    other = train(pad_id=3, unk_id=0)
    with pytest.raises(RejectedError, match=r"must have padding 0 and end 1, has \(3, 1\)"):
        vocabulary.load(other)


def test_sentinels_that_are_there_already_are_refused(own, model):
    for content in (
        own.processor.serialized_model_proto(),
        train(user_defined_symbols=["▁<extra_id_5>"]),
    ):
        with pytest.raises(RejectedError, match="holds sentinels already"):
            vocabulary.load(content)
        assert vocabulary.load(content, num_sentinels=0).num_sentinels == 0
    with pytest.raises(RejectedError, match="num_sentinels"):
        vocabulary.load(model, num_sentinels=-1)


def test_what_cannot_be_umt5s_is_told(own):
    assert own.differences_from_umt5() == {"pieces": (310, 256_000)}
    other = vocabulary.load(train(byte_fallback=False, bos_id=-1, unk_id=2))
    assert set(other.differences_from_umt5()) == {"pieces", "start", "unknown", "byte fallback"}


def test_it_can_be_sent_to_another_process(own):
    copy = pickle.loads(pickle.dumps(own))  # noqa: S301 - its own
    np.testing.assert_array_equal(copy.encode("the cat"), own.encode("the cat"))
    assert [one.tolist() for one in copy.modes] == [one.tolist() for one in own.modes]
