"""Documents in files: their order, their content, and every error by its place."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from openmoe_production import sources
from openmoe_production.sources import SourceError
from openmoe_spec.errors import RejectedError


def all_of(documents):
    return [documents[i] for i in range(len(documents.sizes))]


def write_lines(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def write_parquet(path, texts, *, group=2, column="text"):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"id": range(len(texts)), column: texts}), path, row_group_size=group
    )
    return path


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name in ("b.txt", "a/z.md", "a/empty", ".hidden/x", "c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name == "a/empty" else name)
    found = sources.open_documents([tmp_path])
    assert all_of(found) == ["", "a/z.md", "b.txt", "c"]
    assert found.sizes.tolist() == [0, 6, 5, 1]


def test_json_lines_by_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "naïve"}\n\n{"id": 3, "text": ""}\n{"text": "last"}', encoding="utf-8"
    )
    found = sources.open_documents([path])
    assert all_of(found) == ["naïve", "", "last"]
    assert (found.sizes > 0).tolist() == [True, False, True]
    assert found[2] == "last"  # in any order
    assert found[0] == "naïve"


def test_another_field_or_the_whole_record(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"input": "a", "output": "b"}])
    assert sources.open_documents([path], field="output")[0] == "b"
    assert sources.JsonLines(path, field=None)[0] == {"input": "a", "output": "b"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "x"', "is no JSON"),
        (b'{"text": 5}', "holds no text 'text'"),
        (b'{"body": "x"}', "holds no text 'text'"),
        (b'["text"]', "holds no text 'text'"),
        (b'{"text": "caf\xe9"}', "byte 31 of the file is no UTF-8"),
        (b'{"text": "x\\ud83d"}', "half of a character"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "right"}\n' + line + b'\n{"text": "x"}\n')
    with pytest.raises(SourceError, match=words) as found:
        sources.open_documents([path])
    assert f"{path}: line 2" in str(found.value)


def test_a_text_file_that_is_no_utf8_is_named_with_the_place(tmp_path):
    (tmp_path / "a").write_bytes(b"right")
    (tmp_path / "b").write_bytes(b"caf\xe9")
    found = sources.open_documents([tmp_path])
    assert found[0] == "right"
    with pytest.raises(SourceError, match="b: byte 3 is no UTF-8"):
        found[1]


def test_parquet_by_row_group(tmp_path):
    texts = ["naïve", "", "", "d", "ee"]
    found = sources.open_documents([write_parquet(tmp_path / "a.parquet", texts)])
    assert all_of(found) == texts
    assert (found.sizes > 0).tolist() == [True, False, False, True, True]
    assert [found[i] for i in (4, 0, 3)] == ["ee", "naïve", "d"]


def test_a_null_row_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["naïve", "", "c", None, "ee"])
    with pytest.raises(SourceError, match=r"a\.parquet: row 3 holds no text 'text'"):
        sources.open_documents([path])


def test_few_row_groups_are_held(tmp_path):
    found = sources.open_documents(
        [write_parquet(tmp_path / "a.parquet", ["x" * 1000] * 40, group=2)]
    )
    assert len(all_of(found)) == 40
    assert sources._row_group.cache_info().currsize <= 4


def test_parquet_without_the_column_says_what_there_is(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["x"], column="body")
    with pytest.raises(SourceError, match=r"no column of texts 'text'; there are: id .*, body"):
        sources.open_documents([path])
    assert sources.open_documents([path], field="body")[0] == "x"


def test_a_truncated_parquet_file_is_none(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["x"] * 9)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"a\.parquet: is no whole Parquet file"):
        sources.open_documents([path])


def test_kinds_are_joined_in_the_order_given(tmp_path):
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    table = write_parquet(tmp_path / "b.parquet", ["three"])
    text = tmp_path / "c.txt"
    text.write_text("four")
    found = sources.open_documents([text, table, lines])
    assert all_of(found) == ["four", "three", "one", "two"]
    assert all_of(pickle.loads(pickle.dumps(found))) == all_of(found)  # noqa: S301 - its own


def test_an_empty_file_beside_others_is_passed_over(tmp_path):
    for name in ("a.jsonl", "b.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.txt").write_text("c")
    found = sources.open_documents([tmp_path])
    assert [found[i] for i in np.flatnonzero(found.sizes)] == ["c"]


def test_nothing_at_all_is_refused(tmp_path):
    with pytest.raises(sources.EmptyError, match="holds no file"):
        sources.open_documents([tmp_path])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(SourceError, match="no document that is not empty"):
        sources.open_documents([tmp_path])
    with pytest.raises(OSError, match="No such file"):
        sources.open_documents([tmp_path / "absent.txt"])
    for name in ("absent.jsonl", "absent.parquet"):
        with pytest.raises(OSError, match="No such file"):
            sources.open_documents([tmp_path / name])


def test_ids_are_checked():
    found = sources.IdDocuments([np.array([4, 0, 5]), np.array([0, 0]), np.zeros(0, int)])
    assert found.sizes.tolist() == [2, 0, 0]
    for wrong in ([np.array([5, -1])], [np.array([0.5])], np.array([[1]])):
        with pytest.raises(RejectedError, match="DATA-11"):
            sources.IdDocuments(wrong)
