"""`openmoe generate`: prompts continued with a model's own weights.

The report's schema is `generate.schema.json`, beside this file.
Spec: DEC-01..DEC-13, DIAL-02.
"""

from __future__ import annotations

import json as json_module
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.decoding import END
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_tools import continuing, files, models
from openmoe_tools.checkpoints import loading
from openmoe_tools.continuing import START, Choice, Prompts
from openmoe_tools.data.tokenizer import UNKNOWN, MissingExtraError, Tokenizer, TokenizerError
from openmoe_tools.runs import devices, restoring
from openmoe_tools.terminal import console, say

SCHEMA = "openmoe-generation/1"


@dataclass(frozen=True)
class Request:
    """The options of `openmoe generate`."""

    model: str
    tokens: tuple[str, ...]
    text: tuple[str, ...]
    tokenizer: Path | None
    random: int | None
    max_new_tokens: int
    choice: Choice
    implementation: str | None
    dialect: str
    dtype: str
    mesh: str | None
    cpu_devices: int | None
    json: Path | None


def generate(request: Request) -> int:
    """Continue the prompts, print and write what came; return 0. Errors: UsageError."""
    files.writable(request.json)
    implementation = _implementation(request)
    _check_choice(request.choice)
    _begin(request, implementation)
    tokenizer = _tokenizer(request)
    prompts = [_ids(given) for given in request.tokens]
    prompts += [_encoded(tokenizer, given) for given in request.text if tokenizer]
    if not prompts:
        raise UsageError('no prompt: give --tokens "14 77 49", or --text with --tokenizer')
    model, weights, step = _model(request)
    _check_prompts(request, prompts, model)
    started = time.perf_counter()
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            new = _run(implementation, request, prompts, model, weights)
    except RejectedError as error:
        raise UsageError(f"{request.model}: {error}") from error
    seconds = time.perf_counter() - started
    rows = [
        _row(prompt, ids.tolist()[: request.max_new_tokens], tokenizer)
        for prompt, ids in zip(prompts, new, strict=True)
    ]
    made = _report(request, implementation, rows, step, seconds)
    _render(made, request.choice)
    files.write(request.json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    return 0


# ---- what is refused before anything is loaded --------------------------------------------------


def _implementation(request: Request) -> str:
    if request.dialect not in {"t5x", "torch_port"}:
        raise UsageError(f"--dialect {request.dialect}: must be t5x or torch_port")
    port = request.dialect == "torch_port"
    name = request.implementation or ("reference" if port else "production")
    if name not in {"production", "reference"}:
        raise UsageError(f"--implementation {name}: must be production or reference")
    if request.dtype not in {"float32", "bfloat16"}:
        raise UsageError(f"--dtype {request.dtype}: must be float32 or bfloat16")
    choice = request.choice
    best = choice.greedy and not choice.top_k and not choice.top_p
    if port and not (name == "reference" and request.dtype == "float32" and best):
        raise UsageError(
            "--dialect torch_port: is greedy, in float32, on the reference; leave out "
            "--implementation, --dtype, --temperature, --top-k and --top-p"
        )
    if name == "production":
        from openmoe_tools import conforming  # noqa: PLC0415 - only production needs JAX

        conforming.require_jax("--implementation production (reference needs none)")
    return name


def _begin(request: Request, implementation: str) -> None:
    if request.mesh is not None:
        devices.sizes(request.mesh)
    if implementation == "production":
        devices.begin(devices.Devices(cpu=request.cpu_devices))
    elif request.mesh is not None or request.cpu_devices is not None:
        raise UsageError("--mesh and --cpu-devices: are of --implementation production")


def _check_choice(choice: Choice) -> None:
    if not math.isfinite(choice.temperature):
        raise UsageError(f"--temperature {choice.temperature}: must be a finite number")
    if choice.top_k and choice.top_p:
        raise UsageError("--top-k and --top-p: one of them, not both (DEC-10)")
    if choice.greedy and (choice.top_k or choice.top_p):
        raise UsageError("--top-k and --top-p: cut a draw; give a --temperature above 0")


def _tokenizer(request: Request) -> Tokenizer | None:
    path = request.tokenizer
    if path is None and request.text:
        path = restoring.tokenizer_of(Path(request.model))
    elif path is None:
        return _shown_by(Path(request.model))
    if path is None:
        if request.text:
            raise UsageError("--text: needs --tokenizer FILE, a SentencePiece model")
        return None
    try:
        return Tokenizer(path)
    except MissingExtraError as error:
        raise UsageError(f"--tokenizer: {error}") from error
    except TokenizerError as error:
        raise UsageError(f"--tokenizer {str(error).removeprefix(f'{path}: ')}: {path}") from error


def _shown_by(model: Path) -> Tokenizer | None:
    """Return a run's own tokeniser to show new text with, where it can be used."""
    path = restoring.tokenizer_of(model)
    try:
        return None if path is None else Tokenizer(path)
    except (MissingExtraError, TokenizerError):
        return None


def _ids(given: str) -> list[int]:
    words = given.split()
    if not words:
        raise UsageError('--tokens "": an empty prompt; give ids, as "14 77 49"')
    for word in words:
        if not re.fullmatch(r"-?[0-9]{1,18}", word):
            raise UsageError(f'--tokens "{given}": {word} is no id; give ids, as "14 77 49"')
    return [int(word) for word in words]


def _encoded(tokenizer: Tokenizer, given: str) -> list[int]:
    ids: list[int] = tokenizer.encode(given).tolist()
    if not ids:
        raise UsageError(f'--text "{given}": an empty prompt; it has no tokens')
    return ids


# ---- the model and its prompts -----------------------------------------------------------------


def _model(request: Request) -> tuple[Configuration, Mapping[str, ndarray], int | None]:
    """Return a model, its weights, and the step of a run that they are of."""
    if request.random is None:
        path = Path(request.model)
        return restoring.load(path) if restoring.is_run(path) else loading.load(path)
    model = models.configuration(request.model, request.dialect)
    return model, models.draw(model, request.random), None


def _check_prompts(request: Request, prompts: Prompts, model: Configuration) -> None:
    last = model.vocabulary_size - 1
    for number, prompt in enumerate(prompts, start=1):
        for place, token in enumerate(prompt, start=1):
            if not 1 <= token <= last:
                hint = "; the start token 0 is put in front by itself" if token == START else ""
                raise UsageError(
                    f"prompt {number}, token {place}: {token} is no id of {request.model}; "
                    f"ids go from 1 to {last}{hint}"
                )
    top_k = request.choice.top_k
    if top_k > model.vocabulary_size:
        raise UsageError(f"--top-k {top_k}: {request.model} has {model.vocabulary_size} ids")
    longest = max(map(len, prompts))
    room = model.max_length - longest
    if continuing.row_length(prompts, request.max_new_tokens) > model.max_length:
        number = [len(prompt) for prompt in prompts].index(longest) + 1
        raise UsageError(
            f"prompt {number}: its {longest} and {request.max_new_tokens} new tokens are more than "
            f"the {model.max_length} of a row; "
            + (f"--max-new-tokens {room} fits" if room > 1 else "shorten it")
        )


def _run(
    implementation: str,
    request: Request,
    prompts: Prompts,
    model: Configuration,
    weights: Mapping[str, ndarray],
) -> ndarray:
    new_tokens = request.max_new_tokens
    if request.dialect == "torch_port":
        return continuing.with_port(prompts, model, weights, new_tokens=new_tokens)
    options: dict[str, Any] = {
        "new_tokens": new_tokens,
        "choice": request.choice,
        "dtype": request.dtype,
    }
    if implementation == "reference":
        return continuing.with_reference(prompts, model, weights, **options)
    mesh = None if request.mesh is None else devices.sizes(request.mesh)
    return continuing.with_production(prompts, model, weights, mesh=mesh, **options)


# ---- the report --------------------------------------------------------------------------------


def _row(prompt: list[int], new: list[int], tokenizer: Tokenizer | None) -> dict[str, Any]:
    ended = END in new
    tokens = new[: new.index(END) + 1] if ended else new
    return {
        "prompt": prompt,
        "tokens": tokens,
        "ended": ended,
        "text": None if tokenizer is None else _decoded(tokenizer, tokens),
    }


def _decoded(tokenizer: Tokenizer, tokens: list[int]) -> str:
    # A model may have more ids than its tokeniser has pieces.
    known = tokenizer.vocabulary_size
    return tokenizer.decode(token if token < known else UNKNOWN for token in tokens)


def _report(
    request: Request,
    implementation: str,
    rows: list[dict[str, Any]],
    step: int | None,
    seconds: float,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "model": request.model,
        "step": step,
        "random": request.random,
        "dialect": request.dialect,
        "implementation": implementation,
        "dtype": request.dtype,
        "mesh": request.mesh,
        **asdict(request.choice),
        "max_new_tokens": request.max_new_tokens,
        "rows": rows,
        "seconds": seconds,
    }


def _render(report: Mapping[str, Any], choice: Choice) -> None:
    to = console()
    drawn = "" if report["random"] is None else f", fresh weights of seed {report['random']}"
    say(
        to,
        f"openmoe generate: {report['model']}{drawn}, dialect {report['dialect']}, "
        f"{report['implementation']}, {report['dtype']}, "
        f"{'greedy' if choice.greedy else 'drawn'}",
        "bold",
    )
    for number, row in enumerate(report["rows"], start=1):
        say(to, f"prompt {number}: {' '.join(map(str, row['prompt']))}")
        tokens = row["tokens"]
        early = len(tokens) < report["max_new_tokens"]
        ended = f"  (ended early, after {len(tokens)} of {report['max_new_tokens']} tokens)"
        say(to, f"     new: {' '.join(map(str, tokens))}{ended if early else ''}")
        if row["text"] is not None:
            # Quoted: what a model writes may hold the terminal's own commands.
            say(to, f"    text: {json_module.dumps(row['text'], ensure_ascii=False)}")
    made = sum(len(row["tokens"]) for row in report["rows"])
    say(
        to,
        f"{made} tokens in {report['seconds']:.2f} s, {made / report['seconds']:.1f} a second, "
        "starting and compiling included",
        "dim",
    )
