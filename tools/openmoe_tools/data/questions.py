"""Questions and answers to fine-tune on, of the standard library's docstrings; nothing is imported.

A question asks about a module, a class, a function or a method that is public; the answer is the first
paragraph of what its docstring says.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.data import gathering
from openmoe_tools.data.gathering import HELD_OUT, MANIFEST, TRAIN, fraction

SCHEMA = "openmoe-questions/1"
TASK = "orca_sft"
"""The task whose examples end, so that a model learns to stop (DATA-10)."""
SYSTEM_PROMPTS = ("", "You know the library of Python. ", "Answer as its documentation does. ")
QUESTIONS: Mapping[str, Sequence[str]] = {
    "module": (
        "What is the module `{name}` for?",
        "What does the module `{name}` hold?",
        "Describe the module `{name}`.",
    ),
    "class": (
        "What is the class `{name}`?",
        "What is `{name}` for?",
        "Describe the class `{name}`.",
        "When do I need `{name}`?",
    ),
    "function": (
        "What does `{name}` do?",
        "Explain `{name}`.",
        "What is `{name}` for?",
        "What happens when I call `{name}`?",
        "Describe `{name}` in a sentence or two.",
    ),
}
"""Forms of a question, by what it is about."""
_FIELDS: Mapping[str, tuple[str, str, str | None]] = {
    "orca_sft": ("question", "response", "system_prompt"),
    "wildchat_gpt4_sft": ("input", "output", None),
}
"""Names of question, answer and system prompt in a record, by task. Spec: DATA-10."""
_SHORTEST, _LONGEST = 20, 600
"""Characters of an answer."""
_MOST_ARGUMENTS = 60
"""Characters of a call's arguments: more are not asked with."""
_LEFT_OUT = frozenset(
    (
        "dist-packages",
        "encodings",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    )
)


@dataclass(frozen=True)
class Subject:
    """Something public that has a docstring: `textwrap`, or `textwrap.dedent(text)`.

    kind    a key of `QUESTIONS`
    module  the first name, by which pairs are held out
    """

    kind: str
    module: str
    name: str
    answer: str


def subjects() -> list[Subject]:
    """Return what the standard library documents, in the order of names; no two have one answer.

    Errors: UsageError when there is nothing.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Subject] = {}
    for path in sorted(root.rglob("*.py")):
        names = path.relative_to(root).with_suffix("").parts
        names = names[:-1] if names[-1] == "__init__" else names
        if not names or any(one in _LEFT_OUT or one.startswith("_") for one in names):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, SyntaxError):
            continue  # examples of other encodings and of other versions
        for one in _subjects(tree, ".".join(names), names[0]):
            found.setdefault(one.answer, one)
    if not found:
        raise UsageError(f"{root}: holds no documented Python sources to make questions of")
    return list(found.values())


def _subjects(node: ast.AST, name: str, module: str) -> Iterator[Subject]:
    """Yield what a module or a class is said to be, and its public parts; some stand under an `if`."""
    if isinstance(node, ast.Module | ast.ClassDef):
        kind = "module" if isinstance(node, ast.Module) else "class"
        if answer := _answer(ast.get_docstring(node)):
            yield Subject(kind, module, name, answer)
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If() | ast.Try():
                yield from _subjects(child, name, module)
            case ast.ClassDef() if not child.name.startswith("_"):
                yield from _subjects(child, f"{name}.{child.name}", module)
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not child.name.startswith("_"):
                if answer := _answer(ast.get_docstring(child)):
                    call = f"{name}.{child.name}({_arguments(child)})"
                    yield Subject("function", module, call, answer)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the names of a function's arguments as they are called, `...` where they are many."""
    given = node.args
    names = [one.arg for one in (*given.posonlyargs, *given.args)]
    names = names[1:] if names[:1] in (["self"], ["cls"]) else names
    names += [f"*{given.vararg.arg}"] if given.vararg else ["*"] if given.kwonlyargs else []
    names += [one.arg for one in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    shown = ", ".join(names)
    return shown if len(shown) <= _MOST_ARGUMENTS else "..."


def _answer(docstring: str | None) -> str:
    """Return the first paragraph of a docstring that says something, in one line; else nothing."""
    for paragraph in re.split(r"\n\s*\n", docstring or ""):
        if re.search(r"^\s*(>>>|[-=~]{3,}|\.\. )", paragraph, re.MULTILINE):
            return ""  # an example, a heading, a directive: no sentence
        text = re.sub(r":[a-z:]+:`~?\.?([^`]*)`", r"`\1`", paragraph).replace("``", "`")
        # Many begin with their own signature, and may say what they do behind it.
        text = re.sub(
            r"^[\w.]+\([^\n]*\)(\s*->\s*[\w.\[\]]+)?([,.:]?\s+(--?\s)?|$)", "", text.strip()
        )
        text = " ".join(text.split())
        if len(text) >= _SHORTEST:
            whole = re.fullmatch(r"[^a-z].*[.!?)]", text)
            return text if whole and len(text) <= _LONGEST else ""
    return ""


# ---- writing them ------------------------------------------------------------------------------


def record(subject: Subject, *, task: str = TASK, seed: int = 0) -> dict[str, str]:
    """Return the fields that a fine-tuning task takes, with a question that a seed draws.

    Errors: UsageError. Spec: DATA-10.
    """
    if task not in _FIELDS:
        raise UsageError(f"task {task}: is none of {', '.join(_FIELDS)}")
    question, answer, system_prompt = _FIELDS[task]

    def drawn(forms: Sequence[str], of: str) -> str:
        return forms[int(fraction(f"{seed} {of} {subject.name}") * len(forms))]

    asked = drawn(QUESTIONS[subject.kind], "question").format(name=subject.name)
    told = {} if system_prompt is None else {system_prompt: drawn(SYSTEM_PROMPTS, "system prompt")}
    return told | {question: asked, answer: subject.answer}


def write(
    folder: Path,
    *,
    count: int | None = None,
    held_out: float = 0.05,
    task: str = TASK,
    seed: int = 0,
) -> dict[str, Any]:
    """Write questions and answers into a folder, to train on and held out; return their manifest.

    count     pairs at most, which a seed draws; all where there is none
    held_out  share of the pairs that are not trained on, about: all those of some modules
    A line of `train.jsonl` or `held_out.jsonl` is a record of the task, read as
    `sources.open_documents([path], field=None)`. The same library and options give the same bytes.
    Modules are held out whole, so that what is asked about is new; a corpus of the same machine may hold
    the docstrings themselves. Errors: UsageError.
    """
    gathering.check_held_out(held_out)
    if count is not None and count < 2:
        raise UsageError(f"count {count}: must be 2 at least, one of them to hold out")
    gathering.make_folder(folder)
    targets = {name: folder / name for name in (TRAIN, HELD_OUT, MANIFEST)}
    files.writable(*targets.values())
    asked = sorted(subjects(), key=lambda one: fraction(f"{seed} {one.name}"))[:count]
    apart = _apart(asked, held_out, seed)
    pairs = {
        TRAIN: [one for one in asked if one.module not in apart],
        HELD_OUT: [one for one in asked if one.module in apart],
    }
    made = {
        name: "".join(
            json.dumps(record(one, task=task, seed=seed), ensure_ascii=False) + "\n" for one in some
        ).encode()
        for name, some in pairs.items()
    }
    manifest = {
        "schema": SCHEMA,
        "options": {"count": count, "held_out": held_out, "task": task, "seed": seed},
        "files": {
            name: {
                "pairs": len(some),
                "modules": len({one.module for one in some}),
                "bytes": len(made[name]),
                "sha256": hashlib.sha256(made[name]).hexdigest(),
            }
            for name, some in pairs.items()
        },
        "held_out_modules": sorted(apart),
    }
    made[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    for name, path in targets.items():
        files.write(path, partial(made.__getitem__, name))
    return manifest


def _apart(asked: Sequence[Subject], share: float, seed: int) -> set[str]:
    """Return modules that have about a share of the pairs, one at least. Errors: UsageError."""
    sizes = Counter(one.module for one in asked)
    if len(sizes) < 2:
        raise UsageError(f"pairs of {len(sizes)} modules: 2 are needed, one of them to hold out")
    apart: set[str] = set()
    room = share * len(asked)
    for module in sorted(sizes, key=lambda one: fraction(f"{seed} {one}")):
        if sizes[module] <= room:
            apart.add(module)
            room -= sizes[module]
    return apart or {min(sizes, key=lambda one: (sizes[one], one))}


def write_small(folder: Path, *, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write some of the library's text into `text` and 600 pairs into `questions`, for tests.

    Returns both manifests. It takes seconds, needs nothing but Python's own library, and gives each of
    the six objectives documents to train on (DATA-04).
    Errors: UsageError.
    """
    text = gathering.gather(
        folder / "text", kinds=("library",), megabytes=0.4, held_out=0.1, longest=500, seed=seed
    )
    return text, write(folder / "questions", count=600, held_out=0.1, seed=seed)
