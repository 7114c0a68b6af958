"""`openmoe generate`: every form of a model, both implementations, one line for every mistake."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from openmoe_production import decoding as production
from openmoe_reference import decoding, initialisation, port_decoding
from openmoe_reference.model import Call
from openmoe_spec.config import Configuration
from openmoe_spec.layouts import port_name
from openmoe_tools import generating
from openmoe_tools.checkpoints import loading
from openmoe_tools.data import tokenizer as tokenizers

SCHEMA = json.loads(
    Path(generating.__file__).with_name("generate.schema.json").read_text(encoding="utf-8")
)
PORT = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "moe_layer_interval": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_experts": 4,
    "router_topk": 2,
    "max_position_embeddings": 32,
    "vocab_size": 31,
}
FIELDS = {
    "num_layers": 4,
    "num_moe_layers": 2,
    "embed_dim": 8,
    "mlp_dim": 12,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 4,
    "num_experts": 4,
    "max_length": 32,
    "vocabulary_size": 31,
}
MODEL = Configuration(name="model", **FIELDS)
WEIGHTS = initialisation.initialise(MODEL, np.random.default_rng(5))
# As they are drawn, small kernels leave the embedding to decide alone: attention and experts count.
WEIGHTS = {name: value * (3 if value.ndim > 1 else 1) for name, value in WEIGHTS.items()}
PROMPTS = ([14, 7, 9, 30, 2], [4, 8])
ROUTER = "mlp/router/router_weights/w/kernel"


def of_port(weights):
    """Return tensors as the port has them."""
    found = {}
    for name, value in weights.items():
        there, transposed = port_name(name)
        found[there] = np.ascontiguousarray(value.T if transposed else value)
    return found


def folder(path, tensors, fields=PORT, files=1):
    """Write a model's folder, its weights in one file or several with an index."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    if files == 1:
        save_file(tensors, path / "model.safetensors")
        return path
    places = {}
    for number in range(files):
        file = f"model-{number}.safetensors"
        part = dict(list(tensors.items())[number::files])
        save_file(part, path / file)
        places |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return path


@pytest.fixture
def generate(run, tmp_path):
    """Return the rows of `openmoe generate` with the two prompts."""

    def call(model, *arguments, prompts=PROMPTS):
        given = [word for one in prompts for word in ("--tokens", " ".join(map(str, one)))]
        found = run("generate", model, *given, *arguments, "--json", tmp_path / "made.json")
        assert found.code == 0, found.stderr
        return json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))["rows"]

    return call


def tokens(rows):
    return [row["tokens"] for row in rows]


def expected(new, length, *, prompts=PROMPTS, call=None):
    """Return greedy ids of the reference over rows of a length, cut behind the end id."""
    inputs, attention = (np.zeros((len(prompts), length), np.int32) for _ in range(2))
    for row, prompt in enumerate(prompts):
        inputs[row, 1 : 1 + len(prompt)] = prompt
        attention[row, : 1 + len(prompt)] = 1
    batch = {"decoder_input_tokens": inputs, "decoder_causal_attention": attention}
    made = decoding.generate(
        WEIGHTS, batch, MODEL, lambda logits, _: logits.argmax(axis=-1), call=call
    )
    return [cut(row[:new].tolist()) for row in made]


def cut(ids):
    return ids[: ids.index(1) + 1] if 1 in ids else ids


# ---- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["production", "reference"])
def test_both_implementations_continue_a_folder_of_the_port(generate, tmp_path, implementation):
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    rows = generate(path, "--implementation", implementation, "--max-new-tokens", 6)
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    assert tokens(rows) == expected(6, 11)


@pytest.mark.parametrize("form", ["ours", "sharded", "sharded ours", "half"])
def test_every_form_of_weights_is_the_same_model(tmp_path, form):
    ours = form.endswith("ours")
    tensors = WEIGHTS if ours else of_port(WEIGHTS)
    if form == "half":
        # Half of the tensors float16, half bfloat16: both are widened.
        kinds = (np.float16, ml_dtypes.bfloat16)
        tensors = {
            name: value.astype(kinds[number % 2])
            for number, (name, value) in enumerate(tensors.items())
        }
    files = 3 if form.startswith("sharded") else 1
    path = folder(tmp_path / "model", tensors, FIELDS if ours else PORT, files)
    model, found, _ = loading.load(path)
    assert model == MODEL
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous
        if form == "half":
            np.testing.assert_allclose(found[name], value, rtol=2**-8, atol=2**-24)
        else:
            np.testing.assert_array_equal(found[name], value)


def test_fresh_weights_are_those_of_their_seed(generate, tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(FIELDS), encoding="utf-8")
    options = ("--implementation", "reference", "--max-new-tokens", 9)
    first = generate(path, "--random", 1, *options)
    assert first == generate(path, "--random", 1, *options)
    assert first != generate(path, "--random", 2, *options)


def test_the_port_pads_on_the_left_and_hides_its_start_token(generate, tmp_path):
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    ids = np.array([[0, *PROMPTS[0]], [0, 0, 0, 0, *PROMPTS[1]]], np.int32)
    made = port_decoding.greedy(WEIGHTS, ids, MODEL, new_tokens=7)[:, 6:]
    rows = generate(path, "--dialect", "torch_port", "--max-new-tokens", 7)
    assert tokens(rows) == [cut(row.tolist()) for row in made]


# ---- choosing tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["production", "reference"])
def test_draws_follow_the_seed_and_cuts(generate, tmp_path, implementation):
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    options = ("--implementation", implementation, "--max-new-tokens", 12, "--temperature", 5)
    one = tokens(generate(path, *options, "--seed", 1))
    assert one == tokens(generate(path, *options, "--seed", 1))
    assert one != tokens(generate(path, *options, "--seed", 2))
    best = expected(12, 17)
    assert one != best
    assert tokens(generate(path, *options, "--top-k", 1)) == best
    assert tokens(generate(path, *options, "--top-p", 1e-6)) == best


def test_bfloat16_is_the_activations_dtype(generate, tmp_path, monkeypatch):
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    options = ("--max-new-tokens", 12, "--dtype", "bfloat16", "--implementation")
    made = tokens(generate(path, *options, "reference"))
    assert made == expected(12, 17, call=Call(dtype="bfloat16"))
    seen = []
    stream = production.stream

    def recorded(*arguments, dtype):
        seen.append(dtype)
        return stream(*arguments, dtype=dtype)

    monkeypatch.setattr(production, "stream", recorded)
    assert all(1 <= len(row) <= 12 for row in tokens(generate(path, *options, "production")))
    assert seen == ["bfloat16"]


def ending(weights):
    """Return weights that end every row at once: all ids look alike, and like the end."""
    changed = {name: value.copy() for name, value in weights.items()}
    changed["token_embedder/embedding"][:] = 100
    changed["decoder/logits_dense/kernel"][:] = 0
    changed["decoder/logits_dense/kernel"][:, 1] = 1
    return changed


def test_a_row_that_ends_early_says_so(run, tmp_path):
    arguments = ("--tokens", "5 6", "--implementation", "reference", "--max-new-tokens")
    path = folder(tmp_path / "model", of_port(ending(WEIGHTS)))
    assert (
        "new: 1  (ended early, after 1 of 4 tokens)\n"
        in run("generate", path, *arguments, 4).stdout
    )
    assert "new: 1\n" in run("generate", path, *arguments, 1).stdout
    whole = run("generate", folder(tmp_path / "other", of_port(WEIGHTS)), *arguments, 4)
    assert "ended" not in whole.stdout


# ---- text --------------------------------------------------------------------------------------

TEXTS = [f"the quick brown fox number {n} jumps over {n * n} lazy dogs" for n in range(200)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    path.write_bytes(tokenizers.train(TEXTS, vocabulary_size=300))
    return path


def test_text_goes_in_and_comes_out(generate, tmp_path, vocabulary):
    # More ids than pieces: some of what fresh weights draw is none.
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**FIELDS, "vocabulary_size": 600}), encoding="utf-8")
    options = ("--random", 1, "--implementation", "reference", "--temperature", 50)
    options += ("--max-new-tokens", 12, "--tokenizer", vocabulary, "--text", "the lazy fox")
    ids, text = generate(path, *options, prompts=[[5, 6]])
    tokenizer = tokenizers.Tokenizer(vocabulary)
    assert ids["prompt"] == [5, 6]
    assert text["prompt"] == tokenizer.encode("the lazy fox").tolist()
    assert max(text["tokens"]) >= 300
    for row in (ids, text):
        known = [token if token < 300 else 3 for token in row["tokens"]]
        assert row["text"] == tokenizer.decode(known)


# ---- the report --------------------------------------------------------------------------------


def test_the_report_obeys_the_schema(run, valid, tmp_path):
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    run(
        *("generate", path, "--tokens", "5", "--implementation", "reference"),
        *("--max-new-tokens", 2, "--json", tmp_path / "made.json"),
    )
    made = json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))
    assert valid(made, SCHEMA)
    assert not valid(made | {"dtype": "float64"}, SCHEMA)
    assert not valid({**made, "rows": [{**made["rows"][0], "text": 1}]}, SCHEMA)
    del made["rows"][0]["ended"]
    assert not valid(made, SCHEMA)


# ---- what is refused ---------------------------------------------------------------------------

REFERENCE = ("--implementation", "reference")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no prompt", "--tokens")),
        (("--tokens", ""), ("empty prompt",)),
        (("--tokens", "5 x"), ("x is no id",)),
        (("--tokens", "5 31"), ("prompt 1, token 2", "31", "1 to 30")),
        (("--tokens", "5", "--tokens", "-1"), ("prompt 2, token 1", "-1")),
        (("--tokens", "0 5"), ("start token 0 is put in front",)),
        (("--tokens", "5 6", "--max-new-tokens", "31"), ("its 2 and 31", "32", "tokens 30 fits")),
        (("--tokens", " 5" * 31, "--max-new-tokens", "1"), ("its 31 and 1", "shorten it")),
        (("--text", "fox"), ("--text", "--tokenizer FILE")),
        (("--text", "fox", "--tokenizer", "no.model"), ("no.model", "No such file")),
        (("--text", "fox", "--tokenizer", "wrong.model"), ("wrong.model", "SentencePiece")),
        (("--tokens", "5", "--top-k", "2"), ("--top-k", "--temperature above 0")),
        (("--tokens", "5", "--temperature", "inf"), ("--temperature inf", "finite")),
        (("--tokens", "5", "--temperature", "nan"), ("temperature",)),
        (
            ("--tokens", "5", "--temperature", "1", "--top-k", "2", "--top-p", "0.5"),
            ("--top-k and --top-p", "not both"),
        ),
        (("--tokens", "5", "--temperature", "1", "--top-k", "32"), ("--top-k 32", "31 ids")),
        (("--tokens", "5", "--temperature", "-1"), ("temperature",)),
        (("--tokens", "5", "--top-p", "1.5"), ("top-p",)),
        (("--tokens", "5", "--max-new-tokens", "0"), ("max-new-tokens",)),
        (("--tokens", "5", "--dtype", "float16"), ("--dtype float16", "bfloat16")),
        (("--tokens", "5", "--dialect", "paper"), ("--dialect paper", "torch_port")),
        (("--tokens", "5", "--dialect", "torch_port", "--temperature", "1"), ("greedy",)),
        (("--tokens", "5", "--dialect", "torch_port", "--dtype", "bfloat16"), ("float32",)),
        (("--tokens", "5", "--json", "no/where.json"), ("no/where.json", "folder")),
    ],
    ids=str,
)
def test_a_wrong_request_is_one_line(complains, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "model", of_port(WEIGHTS))
    Path("wrong.model").write_bytes(b"nothing of the kind")
    given = () if "torch_port" in arguments else REFERENCE
    complains("generate", "model", *arguments, *given, words=words)


def test_other_implementations_are_refused(complains):
    complains("generate", "x", "-i", "reference", words=["-i"])
    complains("generate", "x", "--implementation", "mine", words=["mine", "production"])
    port = ("--dialect", "torch_port", "--implementation", "production")
    complains("generate", "x", *port, words=["torch_port", "on the reference"])


def replaced(name, value):
    return lambda tensors: tensors | {name: value}


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


NOT_FINITE = np.full((31, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            replaced("model.layers.0.mlp.up_proj.weight", np.zeros((8, 12), np.float32)),
            ("model.layers.0.mlp.up_proj.weight", "(12, 8)", "got (8, 12)"),
        ),
        (
            replaced("model.layers.0.mlp.up_proj.bias", np.zeros(12, np.float32)),
            ("model.layers.0.mlp.up_proj.bias", "(12,)", "no tensor of an OpenMoE model"),
        ),
        (
            replaced("model.layers.9.input_layernorm.weight", np.zeros(8, np.float32)),
            ("model.layers.9.input_layernorm.weight", "(8,)", "config.json"),
        ),
        (without("lm_head.weight"), ("lacks the tensor lm_head.weight", "(31, 8)")),
        (replaced("lm_head.weight", NOT_FINITE), ("lm_head.weight", "not finite")),
        (replaced("lm_head.weight", np.zeros((31, 8))), ("lm_head.weight", "got float64")),
    ],
    ids=range(6),
)
def test_a_wrong_tensor_is_named_with_its_shapes(complains, tmp_path, change, words):
    path = folder(tmp_path / "model", change(of_port(WEIGHTS)))
    complains("generate", path, "--tokens", "5", *REFERENCE, words=words)


def test_names_and_configuration_may_be_of_two_forms(tmp_path):
    model, found, _ = loading.load(folder(tmp_path / "model", of_port(WEIGHTS), FIELDS))
    assert (model, found.keys()) == (MODEL, WEIGHTS.keys())


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": []}, ["must have a weight_map"]),
        ({"weight_map": {"a": "../other.safetensors"}}, ["../other.safetensors", "in its folder"]),
        ({"weight_map": {"a": "none.safetensors"}}, ["none.safetensors", "no file of"]),
        ({"weight_map": {"a": "broken.safetensors"}}, ["broken.safetensors", "no whole"]),
        ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}, ["stands in", "one."]),
    ],
    ids=str,
)
def test_a_wrong_index_is_one_line(complains, tmp_path, index, words):
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    (path / "model.safetensors").rename(path / "one.safetensors")
    (path / "two.safetensors").write_bytes((path / "one.safetensors").read_bytes())
    (path.parent / "other.safetensors").write_bytes((path / "one.safetensors").read_bytes())
    (path / "broken.safetensors").write_bytes((path / "one.safetensors").read_bytes()[:1000])
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    code = 2 if "no file of" in words else 3  # incomplete, and unreadable
    complains("generate", path, "--tokens", "5", *REFERENCE, words=words, code=code)


def test_a_folder_that_is_no_model_is_one_line(complains, tmp_path):
    prompt = ("--tokens", "5", *REFERENCE)
    complains("generate", tmp_path / "no", *prompt, words=["is not there"])
    complains("generate", "base", *prompt, words=["base", "is not there"])
    complains("generate", tmp_path, *prompt, words=["holds no checkpoint", "model.safetensors"])
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    (path / "config.json").unlink()
    complains("generate", path, *prompt, words=["holds no config.json"])


def test_large_models_are_not_drawn(complains):
    words = ["base: has 799,663,104 elements", "at most 100,000,000"]
    complains("generate", "base", "--random", 1, "--tokens", "5", *REFERENCE, words=words)


@pytest.mark.parametrize("implementation", ["production", "reference"])
def test_logits_that_are_not_finite_give_no_token(complains, tmp_path, implementation):
    changed = {name: value.copy() for name, value in WEIGHTS.items()}
    changed["decoder/logits_dense/kernel"][:] = 3e38
    path = folder(tmp_path / "model", of_port(changed))
    options = ("--max-new-tokens", 3, "--implementation", implementation)
    complains("generate", path, "--tokens", "5", *options, words=["logits", "[DEC-10]"])


@pytest.mark.parametrize(
    ("package", "arguments", "words"),
    [
        (
            "sentencepiece",
            (*REFERENCE, "--text", "a", "--tokenizer", __file__),
            ["sentencepiece", "openmoe-spec[text]"],
        ),
        ("jax", (), ["JAX", "reference needs none", "openmoe-spec[production]"]),
    ],
)
def test_a_missing_extra_is_named(complains, tmp_path, monkeypatch, package, arguments, words):  # noqa: PLR0917
    path = folder(tmp_path / "model", of_port(WEIGHTS))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    complains("generate", path, "--tokens", "5", *arguments, words=words)
