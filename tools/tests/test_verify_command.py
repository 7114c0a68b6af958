"""`openmoe verify`: verdicts, reports, certificates; every bit that is flipped is found."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from corruptions import DISTINCT, EMBEDDING, HEAD, QUERY, trained
from safetensors.numpy import load_file, save_file

pytest.importorskip("tensorstore")
pytest.importorskip("msgpack")

from openmoe_reference import checkpoints as reference
from openmoe_tools.checkpoints import digests, working
from openmoe_tools.checkpoints.containers import opening
from openmoe_tools.checkpoints.conversion import planning
from openmoe_tools.checkpoints.conversion.converting import convert
from openmoe_tools.checkpoints.verification import comparing, verifying

ROOM = Path(verifying.__file__).parent
BUDGET = working.Budget.of(10**9, 2)
QUICK = ("--no-functional",)


def schema(name):
    return json.loads((ROOM / f"{name}.schema.json").read_text())


def made(path, weights=None, model=DISTINCT):
    """Write a model's folder; return it."""
    path.mkdir()
    save_file(trained(model) if weights is None else dict(weights), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(asdict(model)))
    return path


def converted(source, target, to, **options):
    plan = planning.plan(opening.open_checkpoint(source), to, **options)
    convert(plan, target, BUDGET, written=lambda _: None, reread=lambda _: None)
    return target


@pytest.fixture
def pair(tmp_path):
    """A checkpoint and its conversion."""
    source = made(tmp_path / "source")
    return source, converted(source, tmp_path / "target", "hf")


def changed(path, change):
    """Change the tensors of a file of safetensors, by their names there."""
    file = path / "model.safetensors"
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file)


def test_a_conversion_holds_in_all_four_tiers(run, valid, tmp_path, pair):
    found = run("verify", *pair, "--json", tmp_path / "report.json")
    assert found.code == 0, found
    report = json.loads((tmp_path / "report.json").read_text())
    assert valid(report, schema("verify"))
    assert {one["tier"]: one["verdict"] for one in report["verdicts"]} == dict.fromkeys(
        ("structure", "bitwise", "numeric", "functional"), "holds"
    )
    assert report["line"].startswith("HOLDS: the target is the source, by structure, bitwise")
    assert report["line"] in found.stdout


def test_what_differs_is_said_on_the_terminal_and_in_every_report(run, valid, tmp_path, pair):
    changed(
        pair[1],
        lambda w: w.update(
            {"model.layers.2.self_attn.q_proj.weight": w["model.layers.2.self_attn.k_proj.weight"]}
        ),
    )
    names = {kind: tmp_path / f"report.{kind}" for kind in ("json", "junit", "html")}
    found = run("verify", *pair, *QUICK, *(f"--{kind}={path}" for kind, path in names.items()))
    assert found.code == 1
    assert "1. query, key and value swapped (explains every difference there)" in found.stdout
    assert "   decoder/layers_2/self_attention/query/kernel" in found.stdout
    assert (
        found.stdout.rstrip().splitlines()[-1].startswith("DOES NOT HOLD: bitwise, numeric: query")
    )
    report = json.loads(names["json"].read_text())
    assert valid(report, schema("verify"))
    (finding,) = report["findings"]
    assert (finding["tensors"], finding["exact"]) == ([QUERY], True)
    assert report["differences"][QUERY]["differing"] > 700
    root = ET.fromstring(names["junit"].read_text())  # noqa: S314 - our own file
    cases = root.findall(".//testcase")
    assert [case.get("name") for case in cases] == ["structure", "bitwise", "numeric", "functional"]
    assert [len(case.findall("failure")) for case in cases] == [0, 1, 1, 0]
    page = names["html"].read_text()
    assert "query, key and value swapped" in page
    for outside in ("http:", "https:", "src=", "<script", "@import", "url("):
        assert outside not in page


def test_every_flipped_bit_is_found_and_located(pair):
    source, target = (opening.open_checkpoint(path) for path in pair)
    file = target.path / "model.safetensors"
    whole = file.read_bytes()
    draw = random.Random(3)
    start = int.from_bytes(whole[:8], "little") + 8
    header = json.loads(whole[8:start])
    for name, placed in target.tensors.items():
        begin, end = header[placed.parts[0].theirs]["data_offsets"]
        content = bytearray(whole)
        content[start + draw.randrange(begin, end)] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        found = comparing.compare(source, opening.open_checkpoint(target.path), BUDGET)
        assert found.differing == [name]
        (finding,) = found.findings
        assert finding.tensors == (name,)
        place = found.differences[name].places[0]
        one = opening.open_checkpoint(target.path).read(name)
        assert found.differences[name].differing == 1
        assert one[place].tobytes() != source.read(name)[place].tobytes()
        if finding.cause != "not finite":  # a flipped exponent may make one of those
            assert finding.cause == "flipped bits"
            assert f"row {place[-2] if len(place) > 1 else 0}, column {place[-1]}" in finding.where


def test_an_undeclared_cast_is_a_matter_of_structure(run, tmp_path):
    source = made(tmp_path / "source")
    target = converted(source, tmp_path / "target", "hf", cast="bfloat16")
    found = run("verify", source, target, *QUICK)
    assert found.code == 1
    assert "float32 in the source, bfloat16 in the target, and no cast is declared" in found.stdout
    assert "fix: declare it with --cast bfloat16" in found.stdout
    found = run("verify", source, target, *QUICK, "--cast", "bfloat16")
    assert found.code == 0
    assert "after the declared cast to bfloat16" in found.stdout


def test_ulps_are_counted_and_may_be_allowed(run, tmp_path, pair):
    def change(w):
        name = "model.layers.0.mlp.up_proj.weight"
        w[name] = np.nextafter(w[name], np.float32(9))

    changed(pair[1], change)
    found = run("verify", *pair, *QUICK, "--json", tmp_path / "report.json")
    assert found.code == 1
    report = json.loads((tmp_path / "report.json").read_text())
    (difference,) = report["differences"].values()
    assert difference["ulps"] == {"0": 0, "1": difference["elements"]}
    found = run("verify", *pair, *QUICK, "--ulps", 1)
    assert found.code == 1  # the bits are not the same, whatever the numbers
    assert "numeric     holds" in found.stdout


def test_a_stale_shard_is_named(tmp_path):
    source = made(tmp_path / "source")
    target = converted(source, tmp_path / "target", "hf", shard_size=60_000)
    other = converted(
        made(tmp_path / "other", trained(DISTINCT, 9)), tmp_path / "stale", "hf", shard_size=60_000
    )
    shard = sorted(one.name for one in target.glob("*.safetensors"))[1]
    (target / shard).write_bytes((other / shard).read_bytes())
    found = comparing.compare(*map(opening.open_checkpoint, (source, target)), BUDGET)
    (finding,) = found.findings
    assert (finding.cause, finding.where) == ("stale shard", shard)
    assert set(finding.tensors) == set(found.differing)


def test_another_model_is_not_a_hundred_findings(tmp_path):
    sides = [made(tmp_path / "a"), made(tmp_path / "b", trained(DISTINCT, 9))]
    found = comparing.compare(*map(opening.open_checkpoint, sides), BUDGET)
    assert [one.cause for one in found.findings] == ["another model"]


def test_padding_rows_of_the_vocabulary_are_named(tmp_path):
    model = replace(DISTINCT, embed_dim=4, vocabulary_size=256_384, num_layers=1, num_moe_layers=1)
    weights = trained(model)
    sides = [made(tmp_path / "a", weights, model)]
    for name, index in ((EMBEDDING, (slice(256_300, None),)), (HEAD, (slice(None), 256_311))):
        weights[name] = weights[name].copy()
        weights[name][index] += 1
    sides.append(made(tmp_path / "b", weights, model))
    found = comparing.compare(*map(opening.open_checkpoint, sides), BUDGET)
    assert {one.cause for one in found.findings} == {"padding rows of the vocabulary"}


def test_a_wrong_interval_is_named(run, pair):
    config = pair[1] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"moe_layer_interval": 3}))
    (pair[1] / "openmoe.json").unlink(missing_ok=True)
    found = run("verify", *pair)
    assert found.code == 1
    assert "the target is no model of its configuration" in found.stdout
    assert "moe_layer_interval" in found.stdout


# ---- function ------------------------------------------------------------------------------------


def test_the_weights_are_right_and_the_forward_differs(run, pair):
    found = run("verify", *pair, "--target-dialect", "torch_port")
    assert found.code == 1
    assert "bitwise     holds" in found.stdout
    assert "forward differs" in found.stdout
    assert "the weights are right and the forward differs" in found.stdout


def test_what_the_targets_own_program_printed_is_compared(run, tmp_path, pair):
    from openmoe_reference import dialects
    from openmoe_reference import model as models

    ids = np.arange(1, 61, dtype=np.int32).reshape(1, 60) % 90 + 1
    batch = {"decoder_input_tokens": ids, "decoder_target_tokens": np.ones_like(ids)}
    logits = models.forward(trained(DISTINCT), batch, DISTINCT, rules=dialects.rules("t5x")).logits
    np.savez(tmp_path / "mine.npz", input_ids=ids, logits=logits)
    found = run("verify", *pair, "--outputs", tmp_path / "mine.npz")
    assert "functional  holds" in found.stdout or "functional  incomplete" in found.stdout
    np.savez(tmp_path / "mine.npz", input_ids=ids, logits=logits[..., ::-1])
    found = run("verify", *pair, "--outputs", tmp_path / "mine.npz")
    assert found.code == 1
    assert "the weights are right and the forward differs" in found.stdout


def test_probes_are_written_for_the_targets_own_program(run, tmp_path, pair):
    from openmoe_reference import model as models

    file = tmp_path / "probes.npz"
    assert run("verify", *pair, "--probes", file).code == 0
    with np.load(file) as archive:
        asked = dict(archive)
    answered = dict(asked)
    for name, ids in asked.items():
        batch = {"decoder_input_tokens": ids, "decoder_target_tokens": np.ones_like(ids)}
        logits = models.forward(trained(DISTINCT), batch, DISTINCT).logits
        answered[name.replace("input_ids", "logits")] = logits
    np.savez(file, **answered)
    assert "functional  holds" in run("verify", *pair, "--outputs", file).stdout


def test_large_models_are_run_when_it_is_asked_for(run, pair, monkeypatch):
    from openmoe_tools.checkpoints.function import function_tier

    monkeypatch.setattr(function_tier, "LARGEST", 1000)
    found = run("verify", *pair)
    assert found.code == 0
    assert "not run" in found.stdout
    assert "ask for it with --functional" in found.stdout
    assert "functional  holds" in run("verify", *pair, "--functional").stdout


def test_without_a_configuration_the_function_is_not_judged(run, pair):
    for one in pair:
        (one / "config.json").unlink()
        (one / "openmoe.json").unlink(missing_ok=True)
    found = run("verify", *pair)
    assert found.code == 0
    assert "no configuration is known; name it with --config" in found.stdout
    assert run("verify", *pair, "--functional").code == 2


def test_experts_that_are_missing_or_odd_are_named(run, tmp_path):
    source = made(tmp_path / "source")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    for number, (change, cause) in enumerate(
        {
            "dropped": (lambda w: w.pop(name), "expert dropped (experts 2)"),
            "turned": (lambda w: w.update({name: w[name].T.copy()}), "transposed (experts 2)"),
            "narrow": (lambda w: w.update({name: w[name].astype(np.float16)}), "dtype (experts 2)"),
        }.values()
    ):
        target = converted(source, tmp_path / f"there{number}", "hf", names="per_expert")
        changed(target, change)
        found = run("verify", source, target)
        assert found.code == 1
        assert f"1. {cause}" in found.stdout


def test_what_is_not_finite_is_a_verdict_and_no_end(run, pair):
    changed(pair[1], lambda w: w.update({"lm_head.weight": w["lm_head.weight"] * np.nan}))
    found = run("verify", *pair)
    assert found.code == 1
    assert "1. not finite" in found.stdout
    assert "functional  incomplete  cannot be run" in found.stdout


def test_a_name_is_no_markup(run, pair):
    config = pair[1] / "config.json"
    fields = json.loads(config.read_text()) | {"num_hidden_layers": 12}
    config.write_text(json.dumps(fields))
    (pair[1] / "openmoe.json").write_text(
        json.dumps(asdict(replace(DISTINCT, name="[/b]", num_layers=9)))
    )
    assert "[/b]" in run("verify", *pair, *QUICK).stdout


# ---- certificates --------------------------------------------------------------------------------


@pytest.fixture
def certified(run, tmp_path, pair):
    assert run("verify", *pair, *QUICK, "--certify", tmp_path / "certificate.json").code == 0
    return tmp_path / "certificate.json"


def test_a_certificate_obeys_its_schema_and_its_digests_are_the_references(valid, certified):
    content = json.loads(certified.read_text())
    assert valid(content, schema("certificate"))
    told = content["predicate"]["target"]["tensors"]
    for name, one in trained(DISTINCT).items():
        assert told[name]["sha256"] == reference.tensor_digest(one)
    root = reference.model_digest({name: one["sha256"] for name, one in told.items()})
    assert content["subject"] == [{"name": "target", "digest": {"sha256": root}}]


def test_a_certificate_is_checked_again_in_any_container(run, valid, tmp_path, pair, certified):
    for form in ("t5x", "orbax"):
        converted(pair[1], tmp_path / form, form)
        found = run(
            "verify", "--certificate", certified, tmp_path / form, "--json", tmp_path / "again.json"
        )
        assert found.code == 0, found
        assert "HOLDS: the target is what was certified" in found.stdout
        assert valid(json.loads((tmp_path / "again.json").read_text()), schema("recheck"))
    assert run("verify", "--certificate", certified, *pair).code == 0


def test_a_certificate_finds_what_changed_since(run, pair, certified):
    file = pair[1] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = run("verify", "--certificate", certified, pair[1])
    assert found.code == 1
    assert "token_embedder/embedding: its values are not those that were certified" in found.stdout
    assert "DOES NOT HOLD: the files are not those of the certificate" in found.stdout


def test_a_certificate_of_a_difference_certifies_none(run, tmp_path, pair):
    changed(pair[1], lambda w: w.update({"lm_head.weight": w["lm_head.weight"] * 2}))
    path = tmp_path / "certificate.json"
    assert run("verify", *pair, *QUICK, "--certify", path).code == 1
    found = run("verify", "--certificate", path, *pair)
    assert found.code == 1
    assert "it says they differ" in found.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["predicate"]["target"]["tensors"].popitem(), "was changed"),
        (lambda c: c["subject"][0]["digest"].update(sha256="0" * 64), "was changed"),
        (lambda c: c.update(predicateType="other"), "no certificate of this kind"),
        (lambda c: c["predicate"].pop("source"), "lacks 'source'"),
        (lambda c: c["predicate"]["verdicts"]["bitwise"].update(verdict="perhaps"), "verdict"),
        (lambda c: c["predicate"].update(verdicts={}), "verdicts"),
        (lambda c: c["predicate"]["verdicts"]["numeric"].pop("summary"), "lacks 'summary'"),
    ],
    ids=range(7),
)
def test_a_certificate_that_was_changed_is_refused(complains, pair, certified, change, words):
    content = json.loads(certified.read_text())
    change(content)
    certified.write_text(json.dumps(content))
    complains("verify", "--certificate", certified, pair[1], words=["certificate.json", words])


def test_a_certificate_that_leaves_a_tier_open_is_incomplete(run, pair, certified):
    content = json.loads(certified.read_text())
    content["predicate"]["verdicts"]["functional"]["verdict"] = "incomplete"
    certified.write_text(json.dumps(content))
    assert run("verify", "--certificate", certified, pair[1]).code == 2


def test_a_certificate_is_not_written_over(complains, pair, certified):
    ask = ("verify", "--certificate", certified, pair[1])
    complains(*ask, "--json", certified, words=["which is read"])
    complains(*ask, "--html", "page.html", words=["--html", "--certificate"])


# ---- digests, extras, wrong requests -------------------------------------------------------------


def test_digests_do_not_depend_on_container_layout_or_chunks(tmp_path, monkeypatch):
    from openmoe_tools.checkpoints.containers import writers

    source = made(tmp_path / "source")
    wanted = {name: reference.tensor_digest(one) for name, one in trained(DISTINCT).items()}
    for number, chunk in enumerate((1, 300, 1000)):
        monkeypatch.setattr(writers, "CHUNK", chunk)
        for form in ("t5x", "orbax"):
            there = converted(source, tmp_path / f"{form}{number}", form)
            for limit in (400, 10**9):
                budget = working.Budget(8 * limit, 1)
                found = digests.all_digests(opening.open_checkpoint(there), budget)
                assert {name: one.digest for name, one in found.items()} == wanted


def test_neither_jax_nor_torch_nor_t5x_is_needed(tmp_path):
    source = made(tmp_path / "source")
    program = (
        "import sys\n"
        "for name in ('jax', 'jaxlib', 'torch', 't5x', 'flax', 'orbax', 'tensorflow'):\n"
        "    sys.modules[name] = None\n"
        "from openmoe_tools.command_line import main\nmain()"
    )
    for arguments in (
        ("convert", source, tmp_path / "t5x", "--to", "t5x"),
        ("convert", tmp_path / "t5x", tmp_path / "orbax", "--to", "orbax"),
        ("convert", tmp_path / "orbax", tmp_path / "hf", "--to", "hf"),
        ("verify", tmp_path / "t5x", tmp_path / "hf"),
        ("inspect", tmp_path / "t5x"),
    ):
        command = [sys.executable, "-c", program, *arguments]
        made_ = subprocess.run(command, check=False, capture_output=True, text=True)
        assert made_.returncode == 0, made_.stderr


def test_a_missing_extra_is_named(complains, tmp_path, pair, monkeypatch):
    there = converted(pair[0], tmp_path / "t5x", "t5x")
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    complains("verify", pair[0], there, *QUICK, words=["tensorstore", "checkpoints]"])


def test_wrong_requests_are_one_line(complains, tmp_path, pair):
    source, target = pair
    complains("verify", source, words=["takes two checkpoints"])
    complains("verify", source, target, source, words=["takes two checkpoints, got 3"])
    complains("verify", source, tmp_path / "no", words=["no", "is not there"])
    complains("verify", *pair, "--cast", "int8", words=["--cast int8"])
    complains("verify", *pair, "--memory", "1MB", words=["--memory 1MB"])
    complains("verify", *pair, "--json", tmp_path / "no" / "x", words=["folder does not exist"])
    complains("verify", *pair, "--json", target / "model.safetensors", words=["which is read"])
    complains("verify", *pair, "--dialect", "mine", "--functional", words=["mine", "torch_port"])
    complains(
        "verify", "--certificate", tmp_path / "no.json", target, words=["no.json", "cannot be read"]
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    complains("verify", empty, target, words=["empty", "holds no checkpoint"])
