"""`openmoe prepare`, `train`, `eval` and `generate` on a run: what they make, tell and refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("grain")
pytest.importorskip("sentencepiece")

from openmoe_tools.runs import restoring, training

FOLDER = Path(training.__file__).parent
TRAIN, EVAL = (
    json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    for name in ("train", "eval")
)


# ---- prepare -------------------------------------------------------------------------------------


def test_a_preset_is_prepared_whole_and_never_twice(prepared, complains):
    written = {one.name for one in prepared.iterdir()}
    names = {one for one in written if not one.startswith(("run_", "on_"))}  # other tests'
    assert names == {
        "run.toml",
        "tokenizer.model",
        "train.jsonl",
        "held_out.jsonl",
        "manifest.json",
    }
    complains("prepare", "small", prepared, words=["run.toml: is there already", "openmoe train"])


def test_fine_tuning_is_prepared_of_a_run_and_begins_with_it(trained, run, tmp_path):
    from openmoe_production import run_settings

    found = run("prepare", "questions", tmp_path / "asked", "--start", trained)
    assert found.code == 0, found
    settings = run_settings.load(tmp_path / "asked" / "run.toml")
    assert settings.start.checkpoint.resolve() == trained.resolve()
    assert (settings.dropout.rate, settings.optimizer.rate) == (0.05, 1e-3)
    assert [one.mode for one in settings.stage] == ["sft"]
    assert settings.model == restoring.load(trained).model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("large", "new"), ["large: must be one of the presets small, questions"]),
        (("questions", "new"), ["needs --start FOLDER"]),
        (("questions", "new", "--start", "nowhere"), ["nowhere: must be a run's folder"]),
        (("small", "new", "--start", "nowhere"), ["--start: small begins with fresh weights"]),
        (("questions", "new", "--start", ".", "--megabytes", 1), ["--text and --megabytes"]),
        (("small", "new", "--text", "nowhere"), ["nowhere"]),
        (("small", "new", "--megabytes", 0), ["megabytes 0.0: must be above 0"]),
    ],
    ids=str,
)
def test_what_cannot_be_prepared_is_refused(complains, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    complains("prepare", *arguments, words=words)
    assert not (tmp_path / "new" / "run.toml").exists()


# ---- train ---------------------------------------------------------------------------------------


def test_a_report_tells_of_the_run(trained, run, valid, tmp_path):
    made = json.loads((trained / "report.json").read_text(encoding="utf-8"))
    assert valid(made, TRAIN)
    assert (made["begun_at"], made["step"], made["saved"], made["finished"]) == (0, 12, 12, True)
    assert made["last"]["mode"] == "full_lm"
    found = run("train", trained / "run.toml", "--json", tmp_path / "again.json")
    assert found.code == 0
    assert "goes on from step 12 of 12" in found.stdout
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert valid(again, TRAIN)
    assert again["last"] is None


def test_a_folder_stands_for_its_settings(trained, run, complains, tmp_path):
    assert "goes on from step 12 of 12" in run("train", trained).stdout
    assert run("eval", trained, "--batches", 1).code == 0
    for command in ("train", "eval"):
        complains(command, tmp_path, words=["this folder holds no run.toml"])
        complains(command, tmp_path / "misspelt" / "run.toml", words=["cannot be read"])
    assert not (tmp_path / "misspelt").exists()


def test_a_half_written_step_is_passed_over_with_a_warning(trained, run, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    largest = max(
        (one for one in (tmp_path / "checkpoints" / "12").rglob("*") if one.is_file()),
        key=lambda one: one.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[:-100])
    found = run("train", trained / "run.toml", "--output", tmp_path)
    assert found.code == 0
    (warning,) = [one for one in found.stdout.splitlines() if one.startswith("warning: ")]
    assert "12" in warning
    assert "goes on from step 8 of 12" in found.stdout
    first, again = (restoring.load(one).weights for one in (trained, tmp_path))
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_a_data_file_that_breaks_ends_the_run_behind_what_is_saved(tiny_run, tmp_path):
    config = tiny_run(steps=200, every=1)
    text = config.read_text(encoding="utf-8")
    lines = (config.parent / "train.jsonl").read_text(encoding="utf-8").splitlines()
    lines[len(lines) // 2] = lines[len(lines) // 2][:-5]
    shutil.copyfile(config.parent / "tokenizer.model", tmp_path / "tokenizer.model")
    shutil.copyfile(config.parent / "held_out.jsonl", tmp_path / "held_out.jsonl")
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    result = subprocess.run(
        [*COMMAND, "train", str(tmp_path / "run.toml")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 3
    (line,) = result.stderr.splitlines()
    assert f"train.jsonl: line {len(lines) // 2 + 1}" in line


FULL = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (20_000, r.RLIM_INFINITY))"
COMMAND = (sys.executable, "-c", "from openmoe_tools.command_line import main; main()")


def test_a_full_disk_ends_the_run_and_the_step_before_stays(trained, tmp_path):
    shutil.copytree(trained / "checkpoints" / "8", tmp_path / "checkpoints" / "8")

    # As many devices as the run had: another number gives other last bits.
    arguments = ("train", trained / "run.toml", "--output", tmp_path, "--cpu-devices", 8)
    command = [*COMMAND, *map(str, arguments)]
    full = [*command[:2], f"{FULL}; {command[2]}", *command[3:]]
    result = subprocess.run(full, capture_output=True, text=True, check=False)
    assert result.returncode == 3, result
    (line,) = result.stderr.splitlines()
    assert "step 12 cannot be saved" in line
    assert "step 8 is saved and good" in line
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result
    first, again = (restoring.load(one).weights for one in (trained, tmp_path))
    assert all(np.array_equal(first[name], again[name]) for name in first)


# ---- eval ----------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(trained, run, tmp_path, valid):
    def call(*arguments):
        path = tmp_path / "eval.json"
        found = run("eval", trained / "run.toml", *arguments, "--json", path)
        assert found.code == 0, found
        made = json.loads(path.read_text(encoding="utf-8"))
        assert valid(made, EVAL)
        return made

    return call


def test_every_step_is_evaluated_by_what_is_asked(evaluated):
    made = evaluated("--every-step", "--batches", 2)
    steps = sorted({row["step"] for row in made["rows"]})
    assert steps == [1, 4, 8, 12]
    kinds = [row["kind"] for row in made["rows"] if row["step"] == 12]
    assert kinds[-1] == "full_lm"
    assert len(set(kinds)) == 7
    by_step = [row["loss"] for row in made["rows"] if row["kind"] == "full_lm"]
    assert by_step == sorted(by_step, reverse=True)


def test_loss_and_accuracy_are_those_of_the_reference(evaluated, trained):
    from openmoe_production import run_data, run_settings
    from openmoe_reference import model as reference

    (row,) = evaluated("--mode", "full_lm")["rows"]
    settings = run_settings.load(trained / "run.toml")
    pieces = run_data.vocabulary(settings)
    configuration, weights, _ = restoring.load(trained)
    stage, task = settings.stage[1], settings.evaluation.tasks[0]
    losses, right, targets = [], [], []
    for features in run_data.one_pass(settings, stage, task, pieces):
        logits = reference.forward(weights, features, configuration).logits.astype(np.float64)
        wanted, counted = features["decoder_target_tokens"], features["decoder_loss_weights"] > 0
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_softmax = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        chosen = np.take_along_axis(log_softmax, wanted[..., None], axis=-1)[..., 0]
        losses += (-chosen[counted]).tolist()
        right += (logits.argmax(axis=-1) == wanted)[counted].tolist()
        targets += wanted[counted].tolist()
    shares = np.unique(targets, return_counts=True)[1] / len(targets)
    assert row["tokens"] == len(losses)
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["accuracy"] == pytest.approx(np.mean(right), abs=1e-9)
    assert row["unigram"] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-9)


def test_a_mesh_and_other_text_change_where_it_is_evaluated(evaluated, trained):
    (alone,) = evaluated("--mode", "full_lm")["rows"]
    (spread,) = evaluated("--mode", "full_lm", "--mesh", "2x2x2")["rows"]
    assert spread["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert spread["tokens"] == alone["tokens"]
    named = f"seen={trained / 'train.jsonl'}"
    (seen,) = evaluated("--mode", "full_lm", "--data", named, "--batches", 1)["rows"]
    assert seen["data"] == "seen"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--step", 3), ["--step 3: saved are 1, 4, 8, 12"]),
        (("--step", 4, "--every-step"), ["one of them"]),
        (("--mode", "sft"), ["--mode sft: the run has ul2, full_lm"]),
        (("--mesh", "2x2"), ["--mesh 2x2: must be sizes"]),
        (("--mesh", "64x1x1"), ["64 x 1 x 1 needs 64 devices"]),
        (("--data", "held_out.jsonl"), ["must be NAME=PATH"]),
        (("--data", "a=nowhere"), ["nowhere does not exist"]),
        (("--output", "elsewhere"), ["holds no complete step"]),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_refused(complains, trained, arguments, words):
    complains("eval", trained / "run.toml", *arguments, words=words)


# ---- generate ------------------------------------------------------------------------------------


def test_a_run_generates_the_same_on_a_mesh_and_by_the_reference(trained, run, tmp_path):
    def rows(*arguments):
        path = tmp_path / "made.json"
        prompts = ("--text", "def read(", "--text", "import os\n", "--text", "return")
        options = ("--max-new-tokens", 6, "--json", path)
        found = run("generate", trained, *prompts, *options, *arguments)
        assert found.code == 0, found
        return json.loads(path.read_text(encoding="utf-8"))["rows"]

    alone = rows()
    assert all(isinstance(one["text"], str) for one in alone)
    assert rows("--implementation", "reference") == alone
    assert rows("--mesh", "1x2x2") == alone
    more = [
        argument for i in range(3) for argument in ("--text", f"x{i} = ")
    ]  # six rows, eight fit
    assert len(rows("--mesh", "1x2x1", *more)) == 6
    found = run("generate", trained / "checkpoints", "--text", "def", "--max-new-tokens", 2)
    assert found.code == 0, found
    step = tmp_path / "step" / "checkpoints" / "4"
    shutil.copytree(trained / "checkpoints" / "4", step)
    shutil.copyfile(trained / "tokenizer.model", tmp_path / "step" / "tokenizer.model")
    assert run("generate", step, "--text", "def", "--max-new-tokens", 2).code == 0


def test_a_mesh_that_cannot_generate_is_refused(trained, complains):
    prompt = ("generate", trained, "--text", "def")
    complains(*prompt, "--mesh", "1x3x1", words=["num_experts", "MESH-06"])
    complains(
        *prompt, "--mesh", "1x1x2", "--implementation", "reference", words=["--mesh", "production"]
    )


# ---- a run's checkpoint in other containers ------------------------------------------------------


def test_a_run_goes_through_every_container_and_says_the_same(trained, run, tmp_path):
    way = [trained, tmp_path / "t5x", tmp_path / "hf", tmp_path / "orbax"]
    for source, target in pairwise(way):
        assert run("convert", source, target, "--to", target.name).code == 0
    found = run("verify", way[0], way[-1], "--certify", tmp_path / "certificate.json")
    assert found.code == 0, found.stdout
    assert (
        "HOLDS: the target is the source, by structure, bitwise, numeric, functional"
        in found.stdout
    )
    said = []
    for one in way:
        assert run("verify", "--certificate", tmp_path / "certificate.json", one).code == 0
        report = tmp_path / "report.json"
        asked = ("--text", "def read(path):", "--max-new-tokens", 8, "--json", report)
        assert run("generate", one, *asked).code == 0
        said.append(json.loads(report.read_text())["rows"])
    assert all(rows == said[0] for rows in said)
