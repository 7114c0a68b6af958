"""The pipeline: the same rows wherever it stops, however it is read ahead, and what they hold."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openmoe_spec.data import END, GROUP_OF_DOCUMENTS, OBJECTIVES
from openmoe_spec.errors import RejectedError

pytest.importorskip("grain")
pytest.importorskip("sentencepiece")

from openmoe_production import streams
from openmoe_production.data import Pipeline
from openmoe_production.sources import IdDocuments, JsonLines, Task, Texts
from openmoe_production.streams import Settings

FIRST, SENTINELS = 100, 40_000
"""Ids of the documents begin with the one, of the sentinels with the other."""


def documents(count, *, longest=12):
    """Documents of ids of their own; every seventh is empty."""
    sizes = np.random.default_rng(count).integers(1, longest + 1, count)
    sizes[3::7] = 0
    ends = sizes.cumsum() + FIRST
    return [np.arange(end - n, end).astype(np.int32) for end, n in zip(ends, sizes, strict=True)]


DOCUMENTS = documents(900)
SETTINGS = Settings(
    mode="ul2",
    seed=3,
    inputs_length=32,
    targets_length=32,
    vocabulary_size=SENTINELS + 300,
    prompts=tuple(np.array([10 + i, 20]) for i in range(6)),
)


def pipeline(given=DOCUMENTS, *, batch_size=4, threads=0, ahead=0, **changes):
    return Pipeline(
        [Task(IdDocuments(given))],
        replace(SETTINGS, **changes),
        batch_size=batch_size,
        threads=threads,
        ahead=ahead,
    )


def take(source, count):
    return [next(source) for _ in range(count)]


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def tokens_of(batches):
    found = np.concatenate([one["decoder_target_tokens"].reshape(-1) for one in batches])
    return found[(found >= FIRST) & (found < SENTINELS)]


VARIANTS = {
    "ul2": {},
    "ul2 in order": {"shuffle": False},
    "ul2 with a buffer": {"shuffle_buffer": 20},
    "ul2 once": {"repeat": False},
    "full_lm": {"mode": "full_lm"},
}


# ---- the same rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_it_goes_on_from_any_state_with_any_number_of_threads(changes):
    source = pipeline(**changes)
    states, batches = [source.get_state()], []
    for _ in range(30):
        batches.append(next(source))
        states.append(json.loads(json.dumps(source.get_state())))
    assert len(json.dumps(states[-1])) < 3000
    for stop in (0, 1, 7, 18, 28):
        other = pipeline(threads=stop % 3, **changes)
        other.set_state(states[stop])
        same(take(other, 2), batches[stop : stop + 2])
        other.close()


def test_a_state_may_be_set_again_on_the_same_pipeline():
    source = pipeline()
    take(source, 3)
    state = source.get_state()
    first = take(source, 3)
    source.set_state(state)
    same(take(source, 3), first)


def test_another_size_of_batches_goes_on_too():
    whole = take(pipeline(batch_size=12), 1)[0]
    source = pipeline(batch_size=5)
    (first,) = take(source, 1)
    rest = pipeline(batch_size=7)
    rest.set_state(source.get_state())
    (second,) = take(rest, 1)
    same([{name: np.concatenate([first[name], second[name]]) for name in first}], [whole])


def test_a_process_of_its_own_feeds_the_same_and_says_where_it_was_fed_to():
    wanted = take(pipeline(), 6)
    source = pipeline(ahead=3)
    same(take(source, 4), wanted[:4])
    state = source.get_state()
    source.close()
    same(take(source, 2), wanted[4:])  # ended, it begins anew where it was
    source.close()
    here = pipeline()
    here.set_state(state)
    same(take(here, 2), wanted[4:])


def test_another_seed_feeds_something_else():
    one, other = (take(pipeline(seed=seed), 1)[0] for seed in (1, 2))
    assert not np.array_equal(one["decoder_target_tokens"], other["decoder_target_tokens"])


def test_a_state_of_something_else_is_refused():
    state = pipeline().get_state()
    for changes in (
        {"seed": 4},
        {"targets_length": 31},
        {"shuffle": False},
        {"given": documents(901)},
        {"given": [one[::-1] for one in DOCUMENTS]},  # of the same sizes
    ):
        with pytest.raises(RejectedError, match="of other documents or settings"):
            pipeline(**changes).set_state(state)
    for wrong in (5, None, {}, {"pipeline": ""}):
        with pytest.raises(RejectedError, match="is no state"):
            pipeline().set_state(wrong)


FEEDER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_data import pipeline
if __name__ == "__main__":
    folder, ahead = Path(sys.argv[1]), int(sys.argv[2])
    source = pipeline(ahead=ahead)
    if (folder / "state.json").exists():
        source.set_state(json.loads((folder / "state.json").read_text()))
    while True:
        tokens = next(source)["decoder_target_tokens"].tolist()
        whole = folder / "whole.part"
        whole.write_text(json.dumps(source.get_state()))
        os.replace(whole, folder / "state.json")
        print(json.dumps(tokens), flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_killed_process_goes_on_at_the_same_example(tmp_path, ahead):
    script = tmp_path / "feeder.py"
    script.write_text(FEEDER.format(tests=str(Path(__file__).parent)))
    seen = []
    for batches in (3, 2, 2):
        with subprocess.Popen(
            [sys.executable, script, tmp_path, str(ahead)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            for number in range(batches):
                if number:  # the next batch, when the state behind this one is written
                    process.stdin.write("\n")
                    process.stdin.flush()
                seen.append(json.loads(process.stdout.readline()))
            process.send_signal(signal.SIGKILL)
            # Its worker holds the other end of the pipe too, until it has ended by itself.
            process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
    wanted = take(pipeline(), len(seen))
    assert seen == [one["decoder_target_tokens"].tolist() for one in wanted]


# ---- what is fed -------------------------------------------------------------------------------


def test_every_objective_has_groups_of_its_own_in_the_order_of_the_documents():
    filled = [one for one in DOCUMENTS if len(one)]
    group_of = {
        int(token): place // GROUP_OF_DOCUMENTS for place, one in enumerate(filled) for token in one
    }
    source = pipeline(shuffle=False)
    take(source, 100)
    assert [one.objective for one in source.streams] == [0, 1, 2, 3, 4, 5]
    for stream in source.streams:
        examples = [fed.example for fed in stream[0]]
        found = np.concatenate([part for one in examples for part in one.values()])
        tokens = found[(found >= FIRST) & (found < SENTINELS)].tolist()
        assert {group_of[one] for one in tokens} == {stream.objective}
        assert examples[0]["inputs"][:2].tolist() == [10 + stream.objective, 20]
        assert all(one[part][-1] == END for one in examples for part in one)
        assert [fed.ends_group for fed in stream[0]] == [False] * (len(examples) - 1) + [True]


def test_passes_have_orders_of_their_own_and_each_has_every_document():
    source = pipeline(documents(760), seed=9)
    count = len(source.streams[0].own)
    assert count == sum(len(one) > 0 for one in documents(760))
    orders = []
    for turn in (0, 1):
        numbers = [
            n
            for group in range(-(-count // GROUP_OF_DOCUMENTS))
            for n in source.streams[0]._numbers(turn, group)
        ]
        assert sorted(numbers) == source.streams[0].own.tolist()
        orders.append(numbers)
    assert orders[0] != orders[1] != sorted(orders[1])


def test_processes_share_the_documents():
    seen = []
    for process in range(3):
        source = pipeline(process=process, num_processes=3, mode="full_lm", repeat=False)
        fed = set(tokens_of(list(source)).tolist())
        own = np.concatenate(DOCUMENTS[process::3])
        assert fed <= set(own.tolist())
        assert len(fed) > 0.9 * len(own)  # the last token of each whole segment is lost (DATA-06)
        seen.append(fed)
    assert not seen[0] & seen[1] | seen[1] & seen[2] | seen[0] & seen[2]


def test_one_pass_of_spans_has_every_token_of_its_groups_once():
    source = pipeline(repeat=False, shuffle=False)
    fed = tokens_of(list(source))
    assert len(np.unique(fed)) == len(fed)
    filled = [one for one in DOCUMENTS if len(one)]
    for objective in range(6):
        groups = streams.parts.objective_groups(-(-len(filled) // 128), objective)
        wanted = np.concatenate([np.concatenate(filled[128 * g : 128 * (g + 1)]) for g in groups])
        lost = len(np.setdiff1d(wanted, fed))
        whole = len(source.streams[objective][0])
        # The mode takes the room of two tokens; spans of 64 are counted as none in a length of 32, so
        # that either side of an example is one too long.
        assert lost <= 4 * whole * len(groups)
    with pytest.raises(StopIteration):
        next(source)


def test_ended_groups_begin_anew_so_that_rates_hold():
    source = pipeline(batch_size=100)
    take(source, 20)
    counts = [one.examples for one in source.statistics.streams]
    whole = sum(counts)
    for one, rate in zip(counts, [one.rate for one in OBJECTIVES], strict=True):
        assert abs(one - rate * whole) < 5 * np.sqrt(rate * (1 - rate) * whole)


def test_tasks_have_their_shares():
    tasks = [Task(IdDocuments(documents(200)), 3.0), Task(IdDocuments(documents(300)), 1.0)]
    source = Pipeline(tasks, replace(SETTINGS, mode="full_lm"), batch_size=500)
    take(source, 4)
    first, second = (one.examples for one in source.statistics.streams)
    assert abs(first / (first + second) - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 2000)


def test_statistics_add_up():
    source = pipeline()
    batches = take(source, 50)
    found = source.statistics
    assert found.rows == 200
    assert found.positions == 200 * 64
    assert found.tokens == sum(np.count_nonzero(one["decoder_target_tokens"]) for one in batches)
    assert found.loss_positions == sum(one["decoder_loss_weights"].sum() for one in batches)
    for name in ("tokens", "loss_positions", "examples"):
        assert sum(getattr(one, name) for one in found.streams) == getattr(found, name)
    segment = 32 + 2 - 1  # of PrefixLM: one less than the inputs' length, and both ends
    prefix = found.streams[5]
    assert 0 < prefix.whole_examples < prefix.examples
    assert segment <= prefix.whole_tokens / prefix.whole_examples <= segment + 2  # with the mode
    assert set(found.seconds) == {"reading", "objectives", "packing"}


# ---- text and answers --------------------------------------------------------------------------


class Letters:
    """A vocabulary of code points."""

    class processor:  # noqa: N801
        @staticmethod
        def serialized_model_proto():
            return b""

    def encode_many(self, texts):
        return [np.array([ord(one) for one in text], np.int32) for text in texts]


def test_text_is_cut_by_the_vocabulary():
    tasks = [Task(Texts(["abc", "", "de"]))]
    settings = replace(SETTINGS, mode="full_lm", targets_length=8, shuffle=False, repeat=False)
    source = Pipeline(tasks, settings, batch_size=2, vocabulary=Letters())
    (row,) = next(source)["decoder_target_tokens"].tolist()
    assert row == [97, 98, 99, 1, 100, 101, 1, 1]
    assert "tokenising" in source.statistics.seconds
    with pytest.raises(RejectedError, match="must be given for documents of text"):
        next(Pipeline(tasks, settings, batch_size=2))


def test_answers_are_pairs(tmp_path):
    path = tmp_path / "a.jsonl"
    record = {"system_prompt": "S", "question": "q", "response": "rr"}
    path.write_text(f"{json.dumps(record)}\n")
    settings = replace(SETTINGS, mode="sft", repeat=False)
    task = Task(JsonLines(path, field=None), name="orca_sft")
    batch = next(Pipeline([task], settings, batch_size=2, vocabulary=Letters()))
    row = batch["decoder_target_tokens"][0]
    assert "".join(map(chr, row[row > 1])) == "SUSER: qASSISTANT: rr"
    assert row[row > 0][-1] == END
    assert batch["decoder_loss_weights"].sum() == 3
    with pytest.raises(RejectedError, match="task: must be one of"):
        Pipeline([replace(task, name="other")], settings, batch_size=2, vocabulary=Letters())


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"given": []},
        {"given": [np.zeros(0, int), np.zeros(3, int)]},
        {"given": DOCUMENTS[:2], "process": 3, "num_processes": 4},
        {"mode": "other"},
        {"seed": -1},
        {"inputs_length": 1},
        {"shuffle_buffer": -1},
        {"process": 2, "num_processes": 2},
        {"num_processes": 0},
        {"prompts": ()},
        {"prompts": (np.array([SENTINELS + 300]),) * 6},
        {"batch_size": 0},
    ],
    ids=str,
)
def test_what_cannot_be_fed_is_refused(changes):
    with pytest.raises(RejectedError, match="DATA-11"):
        pipeline(**changes)


def test_a_share_must_be_above_zero():
    with pytest.raises(RejectedError, match="rate"):
        Pipeline([Task(IdDocuments(DOCUMENTS), 0.0)], SETTINGS, batch_size=1)
