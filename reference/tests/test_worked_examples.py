"""The stored worked examples are what the naive form answers."""

from __future__ import annotations

import json

import numpy as np
import worked_example
import worked_examples


def test_the_stored_set_is_what_the_naive_form_gives():
    index, arrays = worked_examples.index_and_arrays()
    text = (worked_examples.FOLDER / "index.json").read_text(encoding="utf-8")
    stored = json.loads(text)
    assert list(stored.pop("files")) == ["worked_examples.npz"]
    del index["files"]
    assert stored == json.loads(json.dumps(index))
    with np.load(worked_examples.FOLDER / "worked_examples.npz") as file:
        assert sorted(file.files) == sorted(arrays)
        for name in file.files:
            assert file[name].dtype == arrays[name].dtype, name
            if file[name].dtype.kind == "f":
                # exp and log of another C library may differ in the last bit
                np.testing.assert_allclose(file[name], arrays[name], rtol=1e-6, atol=1e-12)
            else:
                assert np.array_equal(file[name], arrays[name]), name


def test_every_example_has_an_answer_or_is_rejected():
    for example in worked_examples.examples():
        row, arrays = worked_example.stored(example, {})
        answered = "expected" in row["config"] or any("/expected" in name for name in arrays)
        assert answered != bool(row["config"].get("rejected")), example.id


def test_ids_are_unique():
    ids = [example.id for example in worked_examples.examples()]
    assert len(ids) == len(set(ids))
