"""A training run on text: stopped and resumed anywhere, diverged, refused; and what it writes down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

pytest.importorskip("grain")
sentencepiece = pytest.importorskip("sentencepiece")

from openmoe_production import metrics_log, run_settings, trainer
from openmoe_production.checkpoints import CheckpointError, complete_steps
from openmoe_spec.errors import RejectedError

SETTINGS = """
seed = 1
[model]
name = "tiny"
num_layers = 2
num_moe_layers = 1
embed_dim = 16
num_heads = 2
head_dim = 8
mlp_dim = 32
num_experts = 4
vocabulary_size = 640
max_length = 64
[data]
tokenizer = "tokenizer.model"
batch_size = 4
tasks = [{ paths = ["text.jsonl"] }]
[[stage]]
mode = "ul2"
steps = 6
inputs_length = 24
targets_length = 24
[[stage]]
mode = "full_lm"
steps = 6
targets_length = 32
[optimizer]
num_microbatches = 2
[dropout]
rate = 0.1
[checkpoints]
every = 3
keep = 2
early = [1]
"""


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    draws = np.random.default_rng(0)
    words = ["".join(draws.choice(list("abcdefgh"), 4)) for _ in range(150)]
    texts = [" ".join(draws.choice(words, 40)) for _ in range(900)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    lines = "".join(json.dumps({"text": one}) + "\n" for one in texts)
    (folder / "text.jsonl").write_text(lines)
    return folder


@pytest.fixture
def settings_of(material):
    def load(**changes):
        text = SETTINGS
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        path = material / f"run_{zlib.crc32(text.encode())}.toml"
        path.write_text(text)
        return run_settings.load(path)

    return load


def tensors(run):
    return {name: np.asarray(value) for name, value in run.parameters.items()}


def finished(settings, folder, *, stop=None):
    """Run until the end, or until the record of a step; return the run and its records."""
    run, records = trainer.Trainer(settings, folder), []
    with metrics_log.MetricsLog(folder, begin_step=run.step) as log:
        for record in run.run():
            records.append(record)
            log.write(record.step, record._asdict())
            run.stopping = record.step == stop
    run.close()
    return run, records


def test_a_run_that_was_stopped_ends_as_one_that_was_not(settings_of, tmp_path):
    settings = settings_of()
    whole, records = finished(settings, tmp_path / "whole")
    assert [one.step for one in records] == list(range(1, 13))
    assert [one.mode for one in records] == ["ul2"] * 6 + ["full_lm"] * 6
    assert whole.checkpoints.steps() == [1, 9, 12]
    again = []
    for stop in (2, 5, 8, None):
        parts, more = finished(settings, tmp_path / "parts", stop=stop)
        again += more
    assert [one.step for one in again] == list(range(1, 13))
    assert again == records
    one, other = tensors(whole), tensors(parts)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    read = metrics_log.read(tmp_path / "parts")
    assert read == metrics_log.read(tmp_path / "whole")
    assert read[-1]["tokens"] == 4 * 32
    assert sum(read[-1]["loads"]["1"]["chosen"]) == 2 * 4 * 32


def test_averaged_microbatches_count_the_same_tokens(settings_of, tmp_path):
    kinds = [{}, {"a": ("num_microbatches = 2", "num_microbatches = 2\naveraged = true")}]
    found = [
        finished(settings_of(**one), tmp_path / str(i), stop=1)[1][0] for i, one in enumerate(kinds)
    ]
    assert found[0].tokens == found[1].tokens
    assert found[0].losses == pytest.approx(found[1].losses)  # of a microbatch, either way
    norms = [one.gradient_norms["all"] for one in found]
    assert norms[0] == pytest.approx(2 * norms[1])


CHILD = """
import sys
from pathlib import Path
from openmoe_production import metrics_log, run_settings, trainer
if __name__ == "__main__":
    run = trainer.Trainer(run_settings.load(Path(sys.argv[1])), Path(sys.argv[2]))
    with metrics_log.MetricsLog(Path(sys.argv[2]), begin_step=run.step) as log:
        for record in run.run():
            log.write(record.step, record._asdict())
    run.close()
"""


def killed(path, folder, script, *, lines, later=0.0):
    """Begin or go on with a run, and kill it when so many records are there, a moment later."""
    with subprocess.Popen([sys.executable, script, path, folder]) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if len(metrics_log.read(folder)) >= lines:
                break
            time.sleep(0.01)
        time.sleep(later)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def ends_alike(whole, records, settings, folder):
    run, _ = finished(settings, folder)
    one, other = tensors(whole), tensors(run)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert [row["losses"] for row in metrics_log.read(folder)] == [row.losses for row in records]


def test_a_run_that_is_killed_goes_on_from_what_was_saved(material, settings_of, tmp_path):
    settings = settings_of()
    whole, records = finished(settings, tmp_path / "whole")
    script, folder = tmp_path / "child.py", tmp_path / "killed"
    script.write_text(CHILD)
    path = material / "killed.toml"
    path.write_text(SETTINGS)
    for lines in (4, 8):  # behind the record of a step that is not saved yet, or just being saved
        killed(path, folder, script, lines=lines)
        assert max(complete_steps(folder / "checkpoints")) < 12
    ends_alike(whole, records, settings, folder)


@pytest.mark.skipif("OPENMOE_EXHAUSTIVE" not in os.environ, reason="make test EXHAUSTIVE=1 runs it")
def test_a_run_that_is_killed_ten_times_ends_as_one_that_was_not(material, settings_of, tmp_path):
    longer = ("steps = 6", "steps = 60")
    settings = settings_of(a=longer)
    whole, records = finished(settings, tmp_path / "whole")
    script, folder = tmp_path / "child.py", tmp_path / "killed"
    script.write_text(CHILD)
    path = material / "killed_often.toml"
    path.write_text(SETTINGS.replace(*longer))
    draws = np.random.default_rng(0)
    for number in range(10):
        killed(path, folder, script, lines=3 + 11 * number, later=draws.uniform(0, 0.3))
    ends_alike(whole, records, settings, folder)


def test_what_is_not_finite_ends_the_run_and_is_not_saved(settings_of, tmp_path):
    run = trainer.Trainer(settings_of(), tmp_path)
    records = run.run()
    while next(records).step < 4:
        pass
    name = "decoder/logits_dense/kernel"
    run.parameters = run.parameters | {name: run.parameters[name] * np.float32(np.nan)}
    with pytest.raises(trainer.NotFiniteError, match="step 3 is saved and good"):
        list(records)
    run.close()
    assert max(complete_steps(tmp_path / "checkpoints")) == 3


def test_another_run_s_checkpoints_are_refused_by_field(settings_of, tmp_path):
    finished(settings_of(), tmp_path, stop=1)
    other = settings_of(a=("seed = 1", "seed = 2"), b=("mlp_dim = 32", "mlp_dim = 48"))
    with pytest.raises(CheckpointError, match=r"model\.mlp_dim: checkpoint has 32, this run 48"):
        trainer.Trainer(other, tmp_path)
    longer = settings_of(
        a=('mode = "full_lm"\nsteps = 6', 'mode = "full_lm"\nsteps = 7')
    )  # the last stage may grow
    run = trainer.Trainer(longer, tmp_path)
    assert (run.step, longer.total_steps) == (1, 13)
    run.close()


def test_numbers_go_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    from tensorboardX.record_writer import masked_crc32c

    with metrics_log.MetricsLog(tmp_path, begin_step=0, tensorboard=True) as log:
        for step in (1, 2):
            log.write(step, {"step": step, "losses": {"total": 0.5 * step}, "mode": "ul2"})
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, records = path.read_bytes(), []
    while content:  # length, its checksum, an event, its checksum
        length = int.from_bytes(content[:8], "little")
        event, check = content[12 : 12 + length], content[12 + length : 16 + length]
        assert int.from_bytes(check, "little") == masked_crc32c(event)
        records.append(event)
        content = content[16 + length :]
    assert sum(b"losses/total" in one for one in records) == 2


def test_lines_behind_a_checkpoint_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / metrics_log.NAME
    path.write_text('{"step": 1, "a": 0.1}\n{"step": 2}\n{"step": 3}\n{"st')
    with metrics_log.MetricsLog(tmp_path, begin_step=2) as log:
        log.write(3, {"losses": {"total": float("nan")}, "loads": [1, 2]})
    assert metrics_log.read(tmp_path) == [
        {"step": 1, "a": 0.1},
        {"step": 2},
        {"step": 3, "losses": {"total": None}, "loads": [1, 2], "not_finite": ["losses/total"]},
    ]


@pytest.mark.parametrize(
    ("old", "new", "argument", "words"),
    [
        ("seed = 1", "sed = 1", "sed", "did you mean seed"),
        ("mlp_dim = 32", "mlp_dim = true", "model.mlp_dim", "whole number"),
        ("mlp_dim = 32\n", "", "model", "lacks mlp_dim"),
        ("batch_size = 4", "batch_size = 5", "optimizer.num_microbatches", "must divide"),
        ("max_length = 64", "max_length = 32", r"stage[0].targets_length", "rows of 48"),
        ('mode = "ul2"', 'mode = "ul3"', r"stage[0].mode", "ul2"),
        ("steps = 6", "steps = 0", r"stage[0].steps", "1"),
        ("inputs_length = 24\n", "", r"stage[0].inputs_length", "must be given"),
        ('"text.jsonl"', '"none.jsonl"', r"data.tasks[0].paths[0]", "there is no"),
        ("rate = 0.1", "rate = 1.0", "dropout.rate", "0.99"),
        ("[dropout]", "[drop]", "drop", "did you mean dropout"),
        ("num_microbatches = 2", "rate = 0.2", "optimizer.rate", "constant alone"),
        ("seed = 1", "seed = ", "file", "TOML"),
    ],
)
def test_illegal_settings_are_refused_by_field(material, old, new, argument, words):
    assert old in SETTINGS
    text = SETTINGS.replace(old, new, 1)
    path = material / f"wrong_{zlib.crc32(text.encode())}.toml"
    path.write_text(text)
    with pytest.raises(RejectedError, match=words) as raised:
        run_settings.load(path)
    assert raised.value.argument == argument


def test_settings_are_the_same_as_json(settings_of):
    settings = settings_of()
    written = json.loads(json.dumps(settings.to_mapping()))
    assert run_settings.from_mapping(written) == settings


def test_layouts_that_do_not_fit_are_refused(settings_of, tmp_path):
    wide = settings_of(a=("[checkpoints]", "[mesh]\nmodel = 4\n[checkpoints]"))
    with pytest.raises(RejectedError, match="parts would do"):
        trainer.Trainer(wide, tmp_path)
    assert not list(tmp_path.iterdir())
