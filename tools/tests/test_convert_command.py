"""`openmoe convert`: all ways, all layouts, killed and gone on with, within its memory."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from corruptions import DISTINCT, trained
from safetensors.numpy import load_file, save_file

pytest.importorskip("tensorstore")
pytest.importorskip("msgpack")

from openmoe_reference import checkpoints as reference
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters
from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers import opening, writers
from openmoe_tools.checkpoints.conversion import converting, journal, planning
from openmoe_tools.checkpoints.verification import comparing

COMMAND = (sys.executable, "-c", "from openmoe_tools.command_line import main; main()")
EXHAUSTIVE = bool(os.environ.get("OPENMOE_EXHAUSTIVE"))
BUDGET = working.Budget.of(10**9, 2)
SCHEMA = Path(converting.__file__).with_name("convert.schema.json")


def folder(path, model=DISTINCT, seed=0, dtype=np.float32):
    """Write a model's folder with the names of PARAM-01 and our own configuration."""
    path.mkdir()
    weights = {name: one.astype(dtype) for name, one in trained(model, seed).items()}
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(asdict(model)))
    (path / "tokenizer.model").write_bytes(b"pieces")
    return weights


def converted(source, target, to, **options):
    """Convert without the command line; return the digest of what was written."""
    plan = planning.plan(opening.open_checkpoint(source), to, **options)
    nothing = {"written": lambda _: None, "reread": lambda _: None}
    return converting.convert(plan, target, BUDGET, **nothing)


def contents(path):
    return {
        one.relative_to(path).as_posix(): one.read_bytes()
        for one in path.rglob("*")
        if one.is_file()
    }


def refused(found, *words):
    """Check that a command ended in one line that has all the words, behind what it had said."""
    assert found.code == 3, found
    assert len(found.stderr.splitlines()) == 1, found.stderr
    for word in words:
        assert word in found.stderr


FORMS = {
    "t5x": {"to": "t5x"},
    "orbax": {"to": "orbax"},
    "hf": {"to": "hf"},
    "per_expert": {"to": "hf", "names": "per_expert"},
    "sharded": {"to": "hf", "shard_size": 20_000},
}


@pytest.mark.parametrize("first", FORMS)
def test_every_way_there_and_on_is_the_same_model(tmp_path, first):
    weights = folder(tmp_path / "source")
    wanted = {name: reference.tensor_digest(one) for name, one in weights.items()}
    there = converted(tmp_path / "source", tmp_path / first, **FORMS[first])
    assert there.digests == wanted
    assert there.model_digest == reference.model_digest(wanted)
    for second, options in FORMS.items():
        on = converted(tmp_path / first, tmp_path / f"{first}_{second}", **options)
        assert on.digests == wanted
        made = opening.open_checkpoint(tmp_path / f"{first}_{second}")
        for name, one in weights.items():
            assert made.read(name).tobytes() == one.tobytes()
        assert (tmp_path / f"{first}_{second}" / "tokenizer.model").read_bytes() == b"pieces"


def random_model(draw):
    heads, moe = draw.choice([1, 2, 3, 4]), draw.choice([1, 2])
    return Configuration(
        name="drawn",
        num_layers=moe * draw.choice([1, 2, 3]),
        num_moe_layers=moe,
        embed_dim=draw.choice([8, 12, 16, 24]),
        num_heads=heads,
        head_dim=draw.choice([4, 8]),
        mlp_dim=draw.choice([8, 12, 16]),
        num_experts=draw.choice([2, 3, 4]),
        vocabulary_size=draw.randrange(20, 60),
        num_kv_heads=draw.choice([None, 1]),
        expert_mlp_dim=draw.choice([None, 6]),
    )


def test_a_hundred_clean_conversions_raise_no_alarm(tmp_path):
    draw = random.Random(20240202)
    for number in range(100):
        path = tmp_path / str(number)
        path.mkdir()
        model = random_model(draw)
        dtype = draw.choice([np.float32, ml_dtypes.bfloat16])
        folder(path / "source", model, number, dtype)
        cast = draw.choice([None, "bfloat16"]) if dtype is np.float32 else None
        first, second = draw.choice(list(FORMS)), draw.choice(list(FORMS))
        converted(path / "source", path / "first", **FORMS[first])
        converted(path / "first", path / "second", **FORMS[second], cast=cast)
        sides = [opening.open_checkpoint(path / name) for name in ("source", "second")]
        found = comparing.compare(*sides, BUDGET, cast=cast, models=(model, model))
        assert not found.findings, (number, model, first, second, cast)
        assert [one.verdict for one in found.verdicts] == ["holds"] * 3
        shutil.rmtree(path)


def test_a_configuration_goes_along_in_the_form_of_its_container(tmp_path):
    model = replace(DISTINCT, max_group_size=64, expert_mlp_dim=None)
    folder(tmp_path / "source", model)
    converted(tmp_path / "source", tmp_path / "hf", "hf", cast="bfloat16")
    theirs = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (theirs["hidden_size"], theirs["moe_layer_interval"]) == (24, 2)
    assert theirs["torch_dtype"] == "bfloat16"
    own = json.loads((tmp_path / "hf" / "openmoe.json").read_text())  # the port has no group size
    assert own["max_group_size"] == 64
    converted(tmp_path / "hf", tmp_path / "t5x", "t5x")
    from openmoe_tools.checkpoints import loading

    assert replace(loading.load(tmp_path / "t5x").model, name=model.name) == model


def test_a_cast_rounds_to_nearest_even(tmp_path):
    weights = folder(tmp_path / "source")
    converted(tmp_path / "source", tmp_path / "there", "hf", cast="bfloat16")
    made = opening.open_checkpoint(tmp_path / "there")
    for name, one in weights.items():
        assert made.read(name).tobytes() == reference.to_bfloat16(one).tobytes()


def test_orbax_itself_restores_what_is_written(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    weights = folder(tmp_path / "source")
    converted(tmp_path / "source", tmp_path / "orbax", "orbax")
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(tmp_path / "orbax")
    for name, one in weights.items():
        value = tree
        for level in name.split("/"):
            value = value[level]
        np.testing.assert_array_equal(np.asarray(value), one)


def test_the_library_reads_the_safetensors(tmp_path):
    weights = folder(tmp_path / "source")
    converted(tmp_path / "source", tmp_path / "hf", "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    name = "decoder/layers_0/mlp/wi_0/kernel"
    np.testing.assert_array_equal(found["model.layers.0.mlp.gate_proj.weight"].T, weights[name])


# ---- killed and gone on with ---------------------------------------------------------------------

LARGER = replace(
    DISTINCT, embed_dim=192, mlp_dim=384, expert_mlp_dim=384, num_experts=8, head_dim=48
)


def begin(source, target, *more):
    return subprocess.Popen([*COMMAND, "convert", source, target, *more], stdout=subprocess.DEVNULL)


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("to", ["t5x", "hf"])
def test_a_killed_conversion_goes_on_to_the_same_output(tmp_path, to):
    folder(tmp_path / "source", LARGER)
    options = ("--to", to, "--shard-size", "8MB", "--jobs", "1")
    assert begin(tmp_path / "source", tmp_path / "whole", *options).wait() == 0
    draw = random.Random(7)
    number = len(parameters(LARGER))
    target, kept = tmp_path / "killed", tmp_path / "killed.journal"
    for _ in range(10 if EXHAUSTIVE else 2):
        shutil.rmtree(target, ignore_errors=True)
        kills = 0
        # Killed again and again, each time behind a few more tensors; who is too late tries again.
        for behind in sorted(draw.sample(range(1, number), 2 if EXHAUSTIVE else 1)) * 20:
            begun = begin(tmp_path / "source", target, *options)
            while lines(kept) <= behind and begun.poll() is None:
                time.sleep(0.001)
            begun.send_signal(signal.SIGKILL)
            kills += begun.wait() == -signal.SIGKILL
            if kills == (2 if EXHAUSTIVE else 1):
                break
            if target.exists():
                shutil.rmtree(target)
        assert kills
        if not target.exists():  # killed between its name and its end, it has both
            assert begin(tmp_path / "source", target, *options).wait() == 0
        assert contents(target) == contents(tmp_path / "whole")
        kept.unlink(missing_ok=True)
        assert not target.with_name("killed.partial").exists()


class Killed(BaseException):
    """What stands for a signal inside this process."""


def interrupted(tmp_path, behind):
    """Convert until so many tensors are done; leave what a kill leaves."""
    folder(tmp_path / "source")
    plan = planning.plan(opening.open_checkpoint(tmp_path / "source"), "t5x")
    count = iter(range(1000))

    def written(_):
        if next(count) >= behind:
            raise Killed

    with pytest.raises(Killed):
        converting.convert(plan, tmp_path / "there", BUDGET, written=written, reread=lambda _: None)


def test_what_is_done_is_not_done_again(tmp_path):
    interrupted(tmp_path, 20)
    made = converted(tmp_path / "source", tmp_path / "there", "t5x")
    assert 20 <= made.resumed < len(made.digests)


def test_a_torn_line_of_the_journal_is_passed_over(tmp_path):
    interrupted(tmp_path, 20)
    path = tmp_path / "there.journal"
    text = path.read_text()
    done = text.count("\n") - 1
    path.write_text(text[:-10])
    assert converted(tmp_path / "source", tmp_path / "there", "t5x").resumed == done - 1


def test_a_folder_that_was_removed_is_begun_again(tmp_path):
    interrupted(tmp_path, 20)
    shutil.rmtree(tmp_path / "there.partial")
    assert converted(tmp_path / "source", tmp_path / "there", "t5x").resumed == 0


def test_other_conversions_do_not_go_on_with_it(tmp_path, run):
    interrupted(tmp_path, 20)
    arguments = ("convert", tmp_path / "source", tmp_path / "there", "--to")
    refused(run(*arguments, "hf"), "there.journal", "another conversion")
    shutil.rmtree(tmp_path / "source")
    folder(tmp_path / "source", seed=1)
    refused(run(*arguments, "t5x"), "its source has changed since")
    (tmp_path / "there.journal").unlink()
    refused(run(*arguments, "t5x"), "there.partial", "no there.journal beside it")


def test_files_of_others_are_not_taken_for_ours(tmp_path, run):
    folder(tmp_path / "source")
    notes, partial = tmp_path / "notes.journal", tmp_path / "more.partial"
    notes.write_text("my own notes\n")
    partial.mkdir()
    (partial / "own.py").write_text("pass")
    ask = ("convert", tmp_path / "source")
    refused(
        run(*ask, tmp_path / "notes", "--to", "hf"), "notes.journal", "no journal of a conversion"
    )
    refused(run(*ask, tmp_path / "more", "--to", "hf"), "more.partial", "remove it")
    assert notes.read_text() == "my own notes\n"


def test_shards_of_another_size_are_another_conversion(tmp_path):
    folder(tmp_path / "source")
    source = opening.open_checkpoint(tmp_path / "source")
    plans = [planning.plan(source, "hf", shard_size=size).identity() for size in (20_000, 30_000)]
    assert plans[0] != plans[1]


def test_a_named_configuration_stands_above_what_lies_there(tmp_path):
    folder(tmp_path / "source", replace(DISTINCT, expert_mlp_dim=None))
    converted(tmp_path / "source", tmp_path / "hf", "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 2, "head_dim": 16})
    )
    named = str(tmp_path / "source" / "config.json")
    converted(tmp_path / "hf", tmp_path / "again", "hf", config=named)
    told = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (told["num_attention_heads"], told["head_dim"]) == (4, 8)


def test_two_conversions_do_not_write_one_target(tmp_path, run):
    folder(tmp_path / "source")
    plan = planning.plan(opening.open_checkpoint(tmp_path / "source"), "hf")
    with journal.opened(tmp_path / "there", plan.identity()):
        arguments = ("convert", tmp_path / "source", tmp_path / "there", "--to", "hf")
        refused(run(*arguments), "another conversion is writing there")


def test_what_reads_back_otherwise_gets_no_name(tmp_path, run, monkeypatch):
    folder(tmp_path / "source")
    own = converting.open_checkpoint

    def damaged(path, *more):
        file = path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        return own(path, *more)

    monkeypatch.setattr(converting, "open_checkpoint", damaged)
    arguments = ("convert", tmp_path / "source", tmp_path / "there", "--to", "hf")
    refused(run(*arguments), "there.partial", "reads back as something else")
    assert not (tmp_path / "there").exists()


# ---- memory --------------------------------------------------------------------------------------


@pytest.fixture
def one_chunk(monkeypatch, tmp_path):
    """Write a T5X checkpoint as one device does: each tensor one chunk of gzip."""

    def write(model):
        monkeypatch.setattr(writers, "CHUNK", 1 << 40)
        weights = folder(tmp_path / "plain", model)
        converted(tmp_path / "plain", tmp_path / "source", "t5x")
        monkeypatch.undo()
        return weights

    return write


def test_a_chunk_too_large_is_streamed_through_its_codec(one_chunk, tmp_path):
    weights = one_chunk(DISTINCT)
    source = opening.open_checkpoint(tmp_path / "source")
    largest = max(source.size(name) for name in source.tensors)
    small = working.Budget(2 * largest, 1)
    assert any(working.must_stream(source, name, small) for name in source.tensors)
    for to in ("hf", "t5x"):
        plan = planning.plan(source, to)
        nothing = {"written": lambda _: None, "reread": lambda _: None}
        made = converting.convert(plan, tmp_path / to, small, **nothing)
        assert made.digests == {name: reference.tensor_digest(one) for name, one in weights.items()}


def test_a_chunk_that_cannot_be_streamed_is_refused(one_chunk, tmp_path, monkeypatch):
    one_chunk(DISTINCT)
    source = opening.open_checkpoint(tmp_path / "source")
    monkeypatch.setattr(type(source.reader), "stream", lambda *_: None)
    with pytest.raises(opening.Unreadable, match="allow more with --memory"):
        converting.convert(
            planning.plan(source, "hf"), tmp_path / "there", working.Budget(40_000, 1),
            written=lambda _: None, reread=lambda _: None,
        )  # fmt: skip
    assert sorted(one.name for one in tmp_path.iterdir()) == ["plain", "source"]


def test_the_limit_on_memory_is_kept(one_chunk, tmp_path):
    one_chunk(replace(DISTINCT, embed_dim=512, vocabulary_size=60_000))  # 123 MB, twice
    # VmHWM is of the program that runs; ru_maxrss would be that of the one which started it too.
    program = (
        "import sys; from openmoe_tools.command_line import main\n"
        "try: main()\n"
        "except SystemExit as e: print(open('/proc/self/status').read()); sys.exit(e.code)"
    )
    arguments = (
        "convert",
        tmp_path / "source",
        tmp_path / "there",
        "--to",
        "hf",
        "--memory",
        "600MB",
    )
    made = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", made.stdout)
    assert int(peak) * 1024 < 600e6


# ---- plans and wrong requests --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "8b", "34b"])
def test_a_plan_needs_no_weights(run, valid, tmp_path, name):
    file = tmp_path / "plan.json"
    found = run(
        "convert",
        name,
        tmp_path / "there",
        "--to",
        "hf",
        "--cast",
        "bfloat16",
        "--dry-run",
        "--json",
        file,
    )
    assert found.code == 0, found
    assert "nothing was written" in found.stdout
    report = json.loads(file.read_text())
    assert valid(report, json.loads(SCHEMA.read_text()))
    number = {"base": 799663104, "8b": 11855046656, "34b": 46270737408}[name]
    assert report["bytes"] == 2 * number
    assert sorted(one.name for one in tmp_path.iterdir()) == ["plan.json"]


def test_the_report_obeys_the_schema(run, valid, tmp_path):
    folder(tmp_path / "source")
    arguments = ("convert", tmp_path / "source", tmp_path / "there", "--to", "orbax")
    assert run(*arguments, "--json", tmp_path / "report.json").code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert valid(report, json.loads(SCHEMA.read_text()))
    assert len(report["model_digest"]) == 64


def test_wrong_requests_are_one_line(complains, run, tmp_path):
    folder(tmp_path / "source")
    there = tmp_path / "there"
    ask = ("convert", tmp_path / "source", there, "--to")
    complains(*ask, "pt", words=["--to pt", "t5x, orbax, hf"])
    complains(*ask, "t5x", "--layout", "per_expert", words=["--layout", "hf"])
    complains(*ask, "hf", "--layout", "mine", words=["--layout mine", "per_expert"])
    complains(*ask, "hf", "--cast", "float16", words=["float16", "--force"])
    complains(*ask, "hf", "--cast", "int8", words=["--cast int8", "bfloat16"])
    complains(*ask, "hf", "--memory", "10MB", words=["--memory 10MB", "at least"])
    complains(*ask, "hf", "--memory", "much", words=["--memory much", "2GB"])
    complains(*ask, "hf", "--shard-size", "big", words=["--shard-size big"])
    complains(*ask, "hf", "--config", "8b", words=["configuration 8b", "--config"])
    complains(*ask, "hf", "--step", "3", words=["step 3"])
    complains("convert", "8b", there, "--to", "hf", words=["8b", "--dry-run"])
    complains("convert", tmp_path / "no", there, "--to", "hf", words=["is not there"])
    complains(
        "convert", tmp_path / "source", tmp_path / "a" / "b", "--to", "hf", words=["does not exist"]
    )
    there.mkdir()
    complains(*ask, "hf", words=["is there already"])
    inside = ("convert", tmp_path / "source", tmp_path / "source" / "there", "--to", "hf")
    refused(run(*inside), "lies in the source")


def test_a_tensor_without_a_place_is_not_lost_in_silence(complains, run, tmp_path):
    folder(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    save_file(
        {**load_file(file), "decoder/relpos_bias/rel_embedding": np.zeros((3, 32), np.float32)},
        file,
    )
    ask = ("convert", tmp_path / "source", tmp_path / "there", "--to", "hf")
    complains(*ask, words=["relpos_bias", "would be lost", "--force"])
    found = run(*ask, "--force")
    assert found.code == 0
    assert "left out, since --force was given: decoder/relpos_bias" in found.stdout


def test_a_full_disk_is_said_before_anything_is_written(run, tmp_path, monkeypatch):
    folder(tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    ask = ("convert", tmp_path / "source", tmp_path / "there", "--to", "t5x")
    refused(run(*ask), "there.partial", "needs", "nothing was written")
    assert not (tmp_path / "there.partial").exists()
