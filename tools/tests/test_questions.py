"""Questions and answers of docstrings, and that fine-tuning is fed with them."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest

from openmoe_conformance.outcome import UsageError
from openmoe_spec.data import END, SFT_ENDS
from openmoe_tools.data import questions
from openmoe_tools.data.questions import Subject

MODULE = '''
"""A module that says what it is for."""

def shown(first, /, second=1, *rest, third: int = 2, **others):
    """shown(first) -> text

    Returns what :func:`first` is, as ``text``,
    in one line.

    More of it.
    """

async def waits(*, only):
    """Waits for the only one there is."""

def _private():
    """Nobody asks about this one, ever."""

def many(first_of_arguments, second_of_arguments, third_of_arguments, fourth):
    """Has more arguments than are asked with."""

def short():
    """Too short."""

def headed():
    """What follows is a heading, no sentence
    ---------------------------------------
    """

def unfinished():
    """This one is no whole sentence:"""

def again():
    """Waits for the only one there is."""

def behind(value):
    """behind(value) -> whole, Returns what is behind the value."""

if True:
    class Kept:
        """Keeps what it was given."""

        def method(self, value):
            """Gives back what was kept."""

        @classmethod
        def made(cls):
            """Makes one of nothing at all."""

        class _Inner:
            """Nobody asks about this class either."""
'''

NAMES = {
    "lower": "A module that says what it is for.",
    "lower.shown(first, second, *rest, third, **others)": "Returns what `first` is, as `text`, in one line.",
    "lower.waits(*, only)": "Waits for the only one there is.",
    "lower.many(...)": "Has more arguments than are asked with.",
    "lower.behind(value)": "Returns what is behind the value.",
    "lower.Kept": "Keeps what it was given.",
    "lower.Kept.method(value)": "Gives back what was kept.",
    "lower.Kept.made()": "Makes one of nothing at all.",
}


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Return a folder in the place of the standard library."""
    root = tmp_path / "library"
    root.mkdir()
    monkeypatch.setattr(questions.sysconfig, "get_path", lambda _: str(root))
    return root


@pytest.fixture(scope="module")
def found():
    """What the machine's own library documents."""
    return questions.subjects()


def fill(library, modules):
    for name, text in modules.items():
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


# ---- what is asked about -----------------------------------------------------------------------


def test_public_names_are_asked_about_and_answers_are_sentences(library):
    fill(library, {"lower.py": MODULE})
    assert {one.name: one.answer for one in questions.subjects()} == NAMES
    assert {one.module for one in questions.subjects()} == {"lower"}


def test_nothing_is_run_and_what_is_not_public_or_not_python_is_passed_over(library):
    told = '"""Says what it is, in a sentence."""\n'
    fill(
        library,
        {
            "package/__init__.py": told + "raise SystemExit",
            "package/part.py": told.replace("Says", "Tells"),
            "_hidden.py": told.replace("Says", "Hides"),
            "test/test_it.py": told.replace("Says", "Tests"),
            "site-packages/other.py": told.replace("Says", "Brings"),
            "broken.py": "def (:",
        },
    )
    (library / "latin.py").write_bytes(b'"""Says \xe9 in another encoding."""')
    assert [(one.kind, one.name, one.module) for one in questions.subjects()] == [
        ("module", "package", "package"),
        ("module", "package.part", "package"),
    ]
    assert "package" not in sys.modules


def test_a_library_without_docstrings_is_refused(library, tmp_path):
    fill(library, {"silent.py": "x = 1\n"})
    with pytest.raises(UsageError, match="holds no documented Python sources"):
        questions.write(tmp_path / "out")


def test_the_standard_library_gives_thousands(found):
    assert len(found) >= 3000
    assert len({one.answer for one in found}) == len(found)
    named = {one.name: one.answer for one in found}
    assert named["textwrap.dedent(text)"] == (
        "Remove any common leading whitespace from every line in `text`."
    )


# ---- records -----------------------------------------------------------------------------------

SUBJECT = Subject("function", "textwrap", "textwrap.dedent(text)", "Removes space.")


def test_a_record_has_the_fields_of_its_task_and_a_question_drawn_by_the_seed():
    drawn = [questions.record(SUBJECT, seed=seed) for seed in range(60)]
    assert all(set(one) == {"system_prompt", "question", "response"} for one in drawn)
    assert {one["response"] for one in drawn} == {"Removes space."}
    forms = {one.format(name=SUBJECT.name) for one in questions.QUESTIONS["function"]}
    assert {one["question"] for one in drawn} == forms
    assert {one["system_prompt"] for one in drawn} == set(questions.SYSTEM_PROMPTS)
    assert questions.record(SUBJECT, seed=7) == drawn[7]
    other = questions.record(SUBJECT, task="wildchat_gpt4_sft", seed=7)
    assert other == {"input": drawn[7]["question"], "output": "Removes space."}
    with pytest.raises(UsageError, match="task other: is none of orca_sft, wildchat_gpt4_sft"):
        questions.record(SUBJECT, task="other")


@pytest.mark.parametrize("task", SFT_ENDS)
def test_the_fields_are_those_that_production_takes(task):
    from openmoe_production.documents import sft_texts

    texts = sft_texts(task, questions.record(SUBJECT, task=task))
    assert "textwrap.dedent(text)" in texts["inputs"]
    assert texts["targets"] == "Removes space."


# ---- files -------------------------------------------------------------------------------------


def lines(path):
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]


def test_modules_are_held_out_whole_and_the_same_seed_gives_the_same_bytes(
    monkeypatch, tmp_path, found
):
    monkeypatch.setattr(questions, "subjects", lambda: found)
    made = questions.write(tmp_path, held_out=0.05)
    content = {name: (tmp_path / name).read_bytes() for name in made["files"]}
    for name, told in made["files"].items():
        assert told["sha256"] == hashlib.sha256(content[name]).hexdigest()
        assert told["bytes"] == len(content[name])
        assert told["pairs"] == len(lines(tmp_path / name))
    modules = {one.answer: one.module for one in found}
    train, held_out = (
        {modules[one["response"]] for one in lines(tmp_path / name)} for name in made["files"]
    )
    assert not train & held_out
    assert sorted(held_out) == made["held_out_modules"]
    train, held_out = (told["pairs"] for told in made["files"].values())
    assert train + held_out >= 3000
    assert 0.04 <= held_out / (train + held_out) <= 0.05
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8")) == made

    questions.write(tmp_path, held_out=0.05)
    assert {name: (tmp_path / name).read_bytes() for name in content} == content
    assert questions.write(tmp_path, held_out=0.05, seed=1)["files"] != made["files"]


@pytest.mark.parametrize(
    ("modules", "options", "words"),
    [
        (("a",), {}, "pairs of 1 modules: 2 are needed"),
        (("a", "b"), {"count": 1}, "count 1: must be 2 at least"),
        (("a", "b"), {"held_out": 0.0}, "held_out 0.0: must be above 0"),
        (("a", "b"), {"held_out": float("nan")}, "held_out nan: must be above 0"),
        (("a", "b"), {"task": "other"}, "task other: is none of"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused(library, tmp_path, modules, options, words):
    fill(library, {f"{one}.py": f'"""Says that it is module {one}."""\n' for one in modules})
    with pytest.raises(UsageError, match=words):
        questions.write(tmp_path / "out", **options)
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_one_module_is_held_out_where_each_has_more_than_the_share(library, tmp_path):
    fill(library, {f"{one}.py": f'"""Says that it is module {one}."""\n' for one in "abc"})
    made = questions.write(tmp_path / "out", held_out=0.1)
    assert [told["pairs"] for told in made["files"].values()] == [2, 1]


# ---- fine-tuning -------------------------------------------------------------------------------


def test_both_small_corpora_are_written_and_a_pipeline_feeds_them(tmp_path):
    pytest.importorskip("grain")
    pytest.importorskip("sentencepiece")
    from openmoe_production import sources
    from openmoe_production.data import Pipeline
    from openmoe_production.streams import Settings
    from openmoe_tools.data import opening

    text, asked = questions.write_small(tmp_path)
    assert 3e5 < sum(told["bytes"] for told in text["files"].values()) < 5e5
    assert sum(told["pairs"] for told in asked["files"].values()) == 600

    corpus = sources.open_documents([tmp_path / "text" / "train.jsonl"])
    vocabulary = opening.vocabulary(opening.trained(corpus, pieces=1000))
    settings = Settings(
        mode="ul2",
        seed=0,
        inputs_length=64,
        targets_length=64,
        vocabulary_size=vocabulary.size,
        prompts=vocabulary.modes,
    )
    assert len(Pipeline([sources.Task(corpus)], settings, batch_size=2).streams) == 6

    records = sources.open_documents([tmp_path / "questions" / "train.jsonl"], field=None)
    settings = Settings(
        mode="sft",
        seed=0,
        inputs_length=256,
        targets_length=512,
        vocabulary_size=vocabulary.size,
        repeat=False,
    )
    task = sources.Task(records, name=questions.TASK)
    fed = []
    for batch in Pipeline([task], settings, batch_size=8, vocabulary=vocabulary):
        rows = (batch[f"decoder_{one}"] for one in ("target_tokens", "segment_ids", "loss_weights"))
        for ids, segments, weights in zip(*rows, strict=True):
            for segment in range(1, segments.max() + 1):
                answers = ids[(segments == segment) & (weights == 1)]
                asks = ids[(segments == segment) & (weights == 0)]
                assert answers[-1] == END
                assert np.count_nonzero(answers == END) == 1
                fed.append((vocabulary.decode(asks), vocabulary.decode(answers)))
    wanted = [
        (f"{one['system_prompt']}USER: {one['question']}ASSISTANT: ", one["response"])
        for one in lines(tmp_path / "questions" / "train.jsonl")
    ]
    assert sorted(fed) == sorted(wanted)
