"""One pass over text: the same whole numbers by every backend, mesh, share, and after every interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import model
from safetensors.numpy import save_file

from openmoe_reference import audit, audit_drops
from openmoe_spec.layouts import port_name
from openmoe_tools.audit import folder
from openmoe_tools.audit.counting import layout
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.passing import progress, recording, running, streaming

ROUNDED = ("margin", "gate", "entropy", "probability", "log_sum", "lost_gate")
"""Tables of rounded numbers: their last places are those of an arithmetic."""
LENGTH = 48


def texts(trained):
    """Return options of two slices: held-out text, and a part of what was trained on."""
    train = trained / "part.jsonl"
    if not train.exists():
        lines = (trained / "train.jsonl").read_text(encoding="utf-8").splitlines()[:12]
        train.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ("--text", f"held={trained / 'held_out.jsonl'}", "--text", f"train={train}")


@pytest.fixture(scope="module")
def arguments(trained):
    more = ("--length", LENGTH, "--rows", 4, "--tokens", 1500)
    return ("audit", "run", trained, *texts(trained), *more)


@pytest.fixture
def audited(run, arguments, tmp_path):
    """Run an audit with more options; return its folder's content."""
    numbers = iter(range(10))

    def call(*more):
        out = tmp_path / f"audit{next(numbers)}"
        found = run(*arguments, "--out", out, *more)
        assert found.code == 0, found
        return folder.read(out)

    return call


def different(one, other):
    """Return the names of tables that differ."""
    return {
        name for name, table in one.arrays.items() if not np.array_equal(table, other.arrays[name])
    }


def test_production_reference_and_every_mesh_count_the_same(audited):
    production = audited()
    assert production.manifest["totals"]["tokens"] > 2500
    for more in (("--backend", "reference"), ("--mesh", "2x2x2"), ("--mesh", "4x1x2")):
        other = audited(*more)
        assert different(production.tables, other.tables) <= set(ROUNDED), more
        scale = 2.0**layout.FIXED_POINT
        for name in ("probability", "lost_gate"):
            one, two = (found.tables.arrays[name] / scale for found in (production, other))
            assert np.allclose(one, two, rtol=1e-5, atol=1e-3), (more, name)


def test_the_tables_are_what_the_reference_counts_of_the_trace(audited):
    from openmoe_tools.audit.trace import reading

    found = audited("--trace", "--tokens", "700")
    routed = list(reading.read(found.path / folder.TRACE))
    sizes, arrays = found.tables.sizes, found.tables.arrays
    expert = np.concatenate([one.expert for one in routed])
    for name, keys, number in (
        ("token", np.concatenate([one.token for one in routed]), sizes.vocabulary),
        ("position", np.concatenate([one.position for one in routed]), sizes.length),
        ("slice", np.concatenate([one.slice for one in routed]), sizes.slices),
    ):
        for layer in range(sizes.layers):
            counted = audit.count_choices(
                keys.astype(np.int64),
                expert[:, layer].astype(np.int64),
                num_keys=number,
                num_experts=sizes.experts,
            )
            assert np.array_equal(arrays[name].sum(axis=0)[:, layer], counted), name
    dropped = np.concatenate([one.dropped for one in routed], axis=1)
    position = np.concatenate([one.position for one in routed]).astype(np.int64)
    for rule in range(len(sizes.rules)):
        for layer in range(sizes.layers):
            counted = audit_drops.drop_counts(
                dropped[rule, :, layer], position, num_keys=sizes.length
            )
            assert np.array_equal(arrays["drop"][rule].sum(axis=0)[:, layer], counted)


def test_what_a_replay_drops_at_the_passes_own_rule_is_what_the_pass_dropped(audited):
    found = audited()
    sizes, arrays = found.tables.sizes, found.tables.arrays
    rule = found.manifest["recipe"]["rules"][0]
    own = [
        number
        for number, one in enumerate(sizes.what_if)
        if one[:2] == ("choices", rule["group_size"]) and one.capacity == rule["capacity"]
    ]
    assert own
    whole = arrays["drop"][0].sum(axis=(0, 1))
    for number in own:
        assert np.array_equal(arrays["what_if"][number].sum(axis=0), whole)
    assert whole[..., 3].any(), "nothing was dropped, so that nothing was compared"


def test_shares_merge_to_the_whole_bit_for_bit(audited, run, tmp_path):
    whole = audited()
    parts = [audited("--share", f"{i}/3") for i in (1, 2, 3)]
    paths = [one.path for one in reversed(parts)]
    merged = run("audit", "merge", tmp_path / "merged", *paths)
    assert merged.code == 0, merged
    found = folder.read(tmp_path / "merged")
    assert different(whole.tables, found.tables) == set()
    assert (tmp_path / "merged" / folder.TABLES).read_bytes() == (
        whole.path / folder.TABLES
    ).read_bytes()
    assert found.manifest["totals"]["tokens"] == whole.manifest["totals"]["tokens"]


def test_an_interrupted_pass_goes_on_and_ends_the_same(
    audited, arguments, run, tmp_path, monkeypatch
):
    whole = audited("--trace")
    calls = whole.manifest["totals"]["calls"]
    monkeypatch.setattr(progress, "EVERY", 0.0)
    out = tmp_path / "interrupted"
    for last in (2, 5, calls - 1):
        with monkeypatch.context() as broken:
            kept = streaming.Pass._count

            def count(self, state, call, *more, last=last, kept=kept):
                if call.number == last:
                    raise OSError(28, "No space left on device")
                kept(self, state, call, *more)

            broken.setattr(streaming.Pass, "_count", count)
            found = run(*arguments, "--out", out, "--trace")
            assert found.code == 3
            assert "No space left" in found.stderr
        refused = run("audit", "summary", out)
        assert refused.code == 3
        assert "did not end" in refused.stderr
    found = run(*arguments, "--out", out, "--trace")
    assert found.code == 0, found
    again = folder.read(out)
    assert different(whole.tables, again.tables) == set()
    assert again.sample == whole.sample
    from openmoe_tools.audit.trace import reading

    one, other = (
        [
            np.concatenate(parts)
            for parts in zip(*((r.token, r.expert[:, 0, 0]) for r in made), strict=True)
        ]
        for made in (list(reading.read(a.path / folder.TRACE)) for a in (whole, again))
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not (out / progress.FOLDER).exists()


def test_an_interrupted_pass_of_another_kind_is_not_gone_on_with(
    arguments, complains, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    out = tmp_path / "interrupted"

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(folder, "write", lambda *_, **__: fails())
        assert run(*arguments, "--out", out).code == 3
    complains(*arguments, "--out", out, "--rows", 2, words=["interrupted", "of another model"])


def test_checkpoints_are_compared_with_the_audited_one(audited, trained):
    found = audited("--series", "--against", f"same={trained / 'checkpoints' / '12'}")
    described = found.manifest["checkpoints"]
    assert [one["step"] for one in described] == [1, 4, 8, 12, 12]
    assert [one["kind"] for one in described] == ["step", "step", "step", "other", "audited"]
    tokens, shared, first = np.moveaxis(found.pairs["agreement"], -1, 0)
    assert (tokens == tokens[0]).all()
    assert (tokens > 0).all()
    choices = found.tables.sizes.choices
    # The last two are the same weights: everything agrees.
    assert np.array_equal(shared[-2:], choices * tokens[-2:])
    assert np.array_equal(first[-2:], tokens[-2:])
    assert (shared[0] < choices * tokens[0]).all()
    assert (shared[2] >= shared[0]).all()
    table = found.pairs["checkpoint_token"]
    assert np.array_equal(table.sum(axis=(1, 2, 4)), np.repeat(tokens[..., None], choices, axis=-1))
    assert found.pairs["checkpoint_drop"][:, 0, :, :, 0].sum() == tokens.sum()


def test_an_audit_that_has_ended_is_not_written_over(audited, arguments, complains):
    found = audited()
    complains(*arguments, "--out", found.path, words=["holds an audit that has ended"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--text", "held"), ["--text held", "SLICE=PATH"]),
        (("--text", "a=no_such_file"), ["no_such_file", "does not exist"]),
        (("--text", "held=HELD"), ["named twice"]),
        (("--tokenizer", "no.model"), ["no.model", "does not exist"]),
        (("--length", "100000"), ["--length 100000", "longest row"]),
        (("--share", "3/2"), ["--share 3/2"]),
        (("--share", "0/2"), ["--share 0/2"]),
        (("--mesh", "2x2"), ["--mesh 2x2"]),
        (("--mesh", "3x1x1"), ["--rows and --mesh", "3 parts"]),
        (("--backend", "torch"), ["--backend torch"]),
        (("--dtype", "float8"), ["--dtype float8"]),
        (("--capacity", "none"), ["--capacity none"]),
        (("--backend", "reference", "--mesh", "1x1x1"), ["--backend production"]),
        (("--gates",), ["--gates", "--trace"]),
        (("--against", "chat"), ["--against chat", "LABEL=CHECKPOINT"]),
        (("--against", "chat=nowhere"), ["nowhere"]),
        (("--certificate", "none.json"), ["none.json"]),
        (("--corpus", "nowhere"), ["--corpus nowhere"]),
    ],
)
def test_wrong_options_are_one_line(arguments, trained, complains, tmp_path, options, words):  # noqa: PLR0917
    given = [one.replace("HELD", str(trained / "held_out.jsonl")) for one in options]
    complains(*arguments, "--out", tmp_path / "out", *given, words=words)
    assert not (tmp_path / "out" / folder.MANIFEST).exists()


def test_a_slice_without_text_is_refused(trained, complains, tmp_path):
    for name, content in (("empty.jsonl", ""), ("blank.jsonl", '{"text": ""}\n')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        complains(
            *("audit", "run", trained, "--out", tmp_path / "out"),
            *("--text", f"nothing={tmp_path / name}"),
            words=["--text nothing", "has no text"],
        )


def test_another_models_tokeniser_is_refused(trained, complains, tmp_path):
    from openmoe_tools.data import tokenizer

    text = (trained / "train.jsonl").read_text(encoding="utf-8")
    model = tokenizer.train(text.splitlines(), vocabulary_size=3000, exact=False)
    (tmp_path / "other.model").write_bytes(model)
    complains(
        *("audit", "run", trained, *texts(trained), "--out", tmp_path / "out"),
        *("--tokenizer", tmp_path / "other.model"),
        words=["other.model", "rows of embedding", "not this model's tokeniser"],
    )


def test_routers_that_give_no_numbers_are_refused(arguments, complains, tmp_path, monkeypatch):
    kept = recording._stacked

    def spoilt(decisions, logits):
        found = kept(decisions, logits)
        found.logits.flat[7] = np.nan
        return found

    monkeypatch.setattr(recording, "_stacked", spoilt)
    complains(*arguments, "--out", tmp_path / "out", words=["the router of layer 1", "not finite"])


def test_what_cannot_be_merged_is_refused(audited, complains, tmp_path):
    one, other = audited("--share", "1/2"), audited("--share", "2/2", "--rows", "2")
    complains("audit", "merge", tmp_path / "m", one.path, other.path, words=["other recipes"])
    again = audited("--share", "1/2")
    complains(
        "audit", "merge", tmp_path / "m", one.path, again.path, words=["both have the share 1/2"]
    )
    complains("audit", "merge", tmp_path / "m", one.path, words=["two audits"])
    third = audited("--share", "1/3")
    complains("audit", "merge", tmp_path / "m", one.path, third.path, words=["numbers of parts"])
    whole = audited()
    complains("audit", "merge", tmp_path / "m", one.path, whole.path, words=["of the whole text"])
    changed = tmp_path / "changed"
    shutil.copytree(audited("--share", "2/2").path, changed)
    told = json.loads((changed / folder.MANIFEST).read_text(encoding="utf-8"))
    told["model"]["digest"] = "0" * 64
    (changed / folder.MANIFEST).write_text(json.dumps(told), encoding="utf-8")
    complains("audit", "merge", tmp_path / "m", one.path, changed, words=["models (by digest)"])


def test_tables_of_a_pass_are_those_of_the_layout(audited):
    found = audited()
    loaded = Tables.load(found.path / folder.TABLES)
    forms = layout.forms(loaded.sizes)
    assert {name: form.shape for name, form in forms.items()} == {
        name: table.shape for name, table in loaded.arrays.items()
    }
    assert Path(found.path / folder.PIECES).exists()
    assert running.ROWS == 8


def schema(name):
    return json.loads(Path(folder.__file__).with_name(name).read_text(encoding="utf-8"))


def test_a_manifest_obeys_its_schema(audited, valid, trained):
    for more in ((), ("--series", "--against", f"same={trained}")):
        assert valid(audited(*more).manifest, schema("audit.schema.json"))


def test_backends_are_compared_token_by_token(audited, run, tmp_path, complains, valid):
    one = audited("--trace", "--gates")
    other = audited("--trace", "--gates", "--backend", "reference")
    report = tmp_path / "report.json"
    found = run("audit", "compare", one.path, other.path, "--json", report)
    assert found.code == 0, found
    assert found.stdout.startswith("EQUAL")
    assert json.loads(report.read_text())["tokens"] == one.manifest["totals"]["tokens"]
    narrow = audited("--trace", "--gates", "--dtype", "bfloat16")
    found = run("audit", "compare", one.path, narrow.path, "--json", report)
    told = json.loads(report.read_text())
    assert sum(row["near-tie"] for row in told["layers"]) > 0, "bfloat16 changed no choice"
    assert found.code == int(any(row["not explained"] for row in told["layers"]))
    assert all(row["one"] != row["other"] for row in told["listed"] if row["why"] == "near-tie")
    assert valid(told, schema("comparison.schema.json"))
    plain = audited("--trace")
    complains("audit", "compare", one.path, plain.path, words=["both margins", "--gates"])
    short = audited("--trace", "--gates", "--length", "32")
    complains("audit", "compare", one.path, short.path, words=["of other sizes"])


def test_another_models_routing_is_not_explained_by_near_ties(
    audited, run, arguments, trained, tmp_path
):
    one = audited("--trace", "--gates")
    early = tmp_path / "early"
    step = ("audit", "run", trained / "checkpoints" / "4", *arguments[3:])
    assert run(*step, "--out", early, "--trace", "--gates").code == 0
    found = run("audit", "compare", one.path, early)
    assert found.code == 1
    assert found.stdout.startswith("DIFFER")
    assert "not explained" in found.stdout


def test_a_model_without_routers_is_refused(trained, complains, tmp_path):
    dense = {}
    for name, value in model().items():
        there, transposed = port_name(name)
        if "layers_1" not in name and "layers_3" not in name:
            dense[there] = np.ascontiguousarray(value.T if transposed else value)
    save_file(dense, tmp_path / "model.safetensors")
    complains(
        *("audit", "run", tmp_path, *texts(trained), "--out", tmp_path / "out"),
        *("--tokenizer", trained / "tokenizer.model"),
        words=["no mixture-of-experts layer"],
    )
