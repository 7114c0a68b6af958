"""`openmoe data corpus --recipe packages`: small packages that the tests make, and no network."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from openmoe_conformance.outcome import UsageError
from openmoe_tools.data.slices import archives, building, fetching, packages, reading
from openmoe_tools.data.slices.recipes import PACKAGES, Recipe, Source

SCHEMA = json.loads(
    Path(building.__file__).with_name("corpus.schema.json").read_text(encoding="utf-8")
)
COPYRIGHT = "Format: 1.0\n\nFiles: debian/*\nLicense: other\n\nFiles: *\nCopyright: some\nLicense: MPL-2.0\n"
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")


def prose(seed, count=120):
    """Return so many words that no other seed gives, in lines."""
    letters = np.random.default_rng(seed).integers(97, 123, (count, 6), np.uint8)
    words = [one.tobytes().decode() for one in letters]
    return "\n".join(" ".join(words[i : i + 8]) for i in range(0, count, 8)) + "\n"


def page(*paragraphs):
    body = "".join(f"<p class='a'>{one}</p>\n" for one in paragraphs)
    return (
        f"<html><head><title>t</title></head><body><nav>away</nav>{body}<footer>f</footer></body>"
    )


def deb(folder, package, version, given, *, told=COPYRIGHT):
    root = folder / f"of_{package}_{version}"
    control = f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@b.c>\n"
    given = {
        "DEBIAN/control": control + "Description: a test\n",
        f"usr/share/doc/{package}/copyright": told,
        **given,
    }
    for name, text in given.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    made = folder / f"{package}_{version}_all.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", root, made], check=True, capture_output=True
    )
    shutil.rmtree(root)
    return made


def tgz(path, given, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in given.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


def wheel(path, given):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in given.items():
            archive.writestr(name, text)
    return path


def of_npm(name, version="1.0.0"):
    return json.dumps({"name": name, "version": version, "license": "MIT"})


def lines(path):
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture
def recipe(monkeypatch):
    """Put these slices in the place of the real ones."""

    def put(given):
        monkeypatch.setattr(packages, "PACKAGES", given)

    return put


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


CODE = Source("npm", ["some"], r"package/(?P<name>lib/.+\.js)", version="1.0.0")
OTHER = Source("pypi", ["other"], r"(?P<name>other/.+\.py)", version="2.0")


def both(store):
    """Put a package of npm and one of PyPI into a folder; return a recipe of them."""
    code = {f"package/lib/{i}.js": f"// Copyright x\n\n{prose(i)}" for i in range(40)}
    tgz(store / "some-1.0.0.tgz", {"package/package.json": of_npm("some"), **code})
    told = (
        "Metadata-Version: 2.4\nName: other\nVersion: 2.0\nLicense-Expression: BSD-3-Clause\n\nx\n"
    )
    files = {f"other/{i}.py": prose(100 + i) for i in range(40)}
    name = "other-2.0-py3-none-any.whl"
    wheel(store / name, {"other-2.0.dist-info/METADATA": told, **files})
    return {"js": Recipe("code", "code", CODE), "py": Recipe("code", "code", OTHER)}


# ---- the recipe --------------------------------------------------------------------------------


def test_the_recipe_names_what_there_is_to_name():
    assert {one.category for one in PACKAGES.values()} >= {"code", "language", "prose", "reference"}
    for name, one in PACKAGES.items():
        assert name.replace("_", "").isalnum()
        assert one.reader in reading.READERS
        for source in filter(None, (one.source, one.without)):
            assert "name" in source.pattern.groupindex
            assert source.registry in {"debian", "npm", "pypi"}
            assert bool(source.version) == (source.registry != "debian"), name
            assert source.packages
        if one.without is not None:
            assert one.reader in reading.PAGES
    # The same document has one name in all languages.
    paths = {
        "language_en": "usr/share/libreoffice/help/en-US/text/a/b.html",
        "language_zh_tw": "usr/share/libreoffice/help/zh-TW/text/a/b.html",
        "language_de": "usr/share/libreoffice/help/de/text/a/b.html",
    }
    for name, path in paths.items():
        assert PACKAGES[name].source.pattern.fullmatch(path)["name"] == "a/b"
    for language in ("de", "zh-cn"):
        path = f"usr/share/debian-reference/ch01.{language}.html"
        found = PACKAGES[f"reference_{language.replace('-', '_')}"].source.pattern.fullmatch(path)
        assert found["name"] == "ch01"


@needs_dpkg
def test_languages_are_aligned_and_without_what_was_left_in_english(tmp_path, store, recipe, valid):
    english, german = {}, {}
    for i in range(30):
        ours, same = (prose(seed, 50) for seed in (i, 100 + i))
        english[f"usr/help/en/{i}.html"] = page(ours, same)
        german[f"usr/help/de/{i}.html"] = page(f"Ä {prose(200 + i, 50)}", same)
    deb(store, "help-en", "1:2.0", english)
    made = deb(store, "help-de", "1:2.0", german)
    en = Source("debian", ["help-en"], r"usr/help/en/(?P<name>.+)\.html")
    de = Source("debian", ["help-of-old", "help-de"], r"usr/help/de/(?P<name>.+)\.html")
    recipe({"en": Recipe("language", "page", en), "de": Recipe("language", "page", de, en)})
    request = building.Request(tmp_path / "out", "packages", (), 0.006, store)
    assert building.build(request) == 0
    found = {name: lines(tmp_path / "out" / f"{name}.jsonl") for name in ("en", "de")}
    names = {name: [one["name"] for one in some] for name, some in found.items()}
    assert names["en"] == names["de"][: len(names["en"])]  # whose text is twice as long
    assert len(names["en"]) > 5
    for one in found["de"]:
        assert one["text"] == "Ä " + " ".join(prose(200 + int(one["name"]), 50).split()) + "\n"
    told = manifest(tmp_path / "out")
    assert valid(told, SCHEMA)
    of_german = told["slices"][1]
    assert of_german["sources"][0] == {
        "registry": "debian",
        "package": "help-de",
        "version": "1:2.0",
        "sha256": hashlib.sha256(made.read_bytes()).hexdigest(),
        "licence": "MPL-2.0",
        "use": "text",
    }
    assert [(one["package"], one["use"]) for one in of_german["sources"]] == [
        ("help-de", "text"),
        ("help-en", "compared"),
    ]


def test_npm_and_pypi(tmp_path, store, recipe, run):
    recipe(both(store))
    out = tmp_path / "out"
    options = ("--recipe", "packages", "--downloads", store, "--megabytes", "0.02")
    found = run("data", "corpus", out, *options)
    assert found.code == 0, found
    assert "BSD-3-Clause" in found.stdout
    assert f"openmoe audit run CHECKPOINT --corpus {out} --out DIR" in found.stdout
    for one in lines(out / "js.jsonl"):
        assert one["text"] == prose(int(one["name"][4:-3]))  # without its licence
        assert one["slice"] == "js"
    told = {one["name"]: one["sources"][0] for one in manifest(out)["slices"]}
    facts = ("registry", "package", "version", "licence")
    assert [told["js"][one] for one in facts] == ["npm", "some", "1.0.0", "MIT"]
    assert [told["py"][one] for one in facts] == ["pypi", "other", "2.0", "BSD-3-Clause"]
    assert "://" not in (out / "manifest.json").read_text(encoding="utf-8")


def test_the_same_bytes_again_and_of_a_slice_alone(tmp_path, store, recipe):
    recipe(both(store))

    def build(name, slices=(), seed=0):
        request = building.Request(tmp_path / name, "packages", slices, 0.02, store, seed)
        assert building.build(request) == 0
        return {one.name: one.read_bytes() for one in (tmp_path / name).iterdir()}

    first = build("one")
    assert build("two") == first
    assert build("three", ("py",))["py.jsonl"] == first["py.jsonl"]
    assert build("four", seed=1)["py.jsonl"] != first["py.jsonl"]


def test_what_is_not_to_be_had_is_missing_with_its_reason(
    tmp_path, store, recipe, run, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without clients
    given = both(store)
    recipe({"gone": Recipe("prose", "page", Source("debian", ["gone"], "(?P<name>x)")), **given})
    options = ("--recipe", "packages", "--downloads", store, "--megabytes", "0.01")
    found = run("data", "corpus", tmp_path / "out", *options)
    assert found.code == 2
    reason = "gone: needs apt-get, which this machine has not"
    assert f"left out: gone ({reason})" in found.stdout
    assert manifest(tmp_path / "out")["missing"] == [{"name": "gone", "reason": reason}]
    assert run("data", "corpus", tmp_path / "two", *options, "--slice", "js").code == 0
    (store / "some-1.0.0.tgz").write_bytes(b"broken")
    found = run("data", "corpus", tmp_path / "three", *options, "--slice", "js", "--slice", "py")
    assert (found.code, "some-1.0.0.tgz: cannot be read" in found.stdout) == (2, True)


def test_wrong_options_are_one_line(tmp_path, store, recipe, complains):
    recipe(both(store))
    corpus = ("data", "corpus", tmp_path / "out", "--recipe", "packages")
    complains(*corpus, words=["--downloads: name a folder"])
    here = ("--downloads", store)
    complains(*corpus, *here, "--slice", "jss", words=["--slice jss", "did you mean js?"])
    (store / "some-1.0.0.tgz").unlink()
    tgz(store / "some-1.0.0.tgz", {"package/package.json": of_npm("some")})
    complains(*corpus, *here, "--slice", "js", words=["no slice large enough", "js: there is none"])
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    complains(*corpus, "--downloads", file, words=[f"{file}: is no folder"])
    assert not list((tmp_path / "out").iterdir())


# ---- archives ----------------------------------------------------------------------------------

ANY = packages.Source("", (), ".*").pattern


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "a\\..\\out"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
    path = tgz(tmp_path / "a.tgz", {"package/a": "x", name: "y"})
    with pytest.raises(archives.ArchiveError, match=r"a\.tgz: holds .*, which leads out of it"):
        archives.read(path, ANY)
    path = wheel(tmp_path / "a.whl", {"a": "x", name: "y"})
    with pytest.raises(archives.ArchiveError, match=r"a\.whl: holds .*, which leads out of it"):
        archives.read(path, ANY)


def test_links_are_passed_over_and_large_files_too(tmp_path, monkeypatch):
    path = tgz(tmp_path / "a.tgz", {"./a/b": "x" * 9, "c": "y" * 20}, [("d", "/etc/passwd")])
    assert archives.read(path, ANY) == {"a/b": b"x" * 9, "c": b"y" * 20}
    monkeypatch.setattr(archives, "_LARGEST", 10)
    assert archives.read(path, ANY) == {"a/b": b"x" * 9}
    monkeypatch.setattr(archives, "_MOST", 8)
    with pytest.raises(archives.ArchiveError, match="of such files"):
        archives.read(path, ANY)


@needs_dpkg
def test_archives_that_are_cut_off_are_refused(tmp_path):
    whole = deb(tmp_path, "a", "1", {"usr/b": prose(1, 3000)}).read_bytes()
    names = {"a_1_all.deb": whole, "a.tgz": b"", "a.whl": b"PK"}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(archives.ArchiveError, match=rf"{name}: cannot be read") as refused:
            archives.read(tmp_path / name, ANY)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (COPYRIGHT, "MPL-2.0"),
        ("Files:\n *\nLicense: A or B\n text\n", "A or B"),
        ("It is in\n/usr/share/common-licenses/GPL-2.\n", "GPL-2"),
        ("This text is in the public\n  domain.\n", "public domain"),
        ("Nothing is said.\n", "see the package"),
        (f"Files: *\nLicense: {'x' * 200}\n", "x" * 77 + "..."),
    ],
)
def test_licences_of_debian_in_few_words(text, licence):
    assert archives.licence_in(text) == licence


# ---- fetching ----------------------------------------------------------------------------------


def client(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


SOURCE = Source("debian", ["new", "old"], "x")


def test_the_first_package_that_is_to_be_had_is_fetched_once(tmp_path, store, monkeypatch):
    log = tmp_path / "log"
    script = f'echo "$*" >> {log}; [ "$3" = old ] || exit 100; echo x > old_1%3a2_all.deb'
    client(tmp_path, "apt-get", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(2):
        assert fetching.fetch(SOURCE, store) == store / "old_1%3a2_all.deb"
    assert log.read_text(encoding="utf-8") == "-qq download new\n-qq download old\n"
    assert [one.name for one in store.iterdir()] == ["old_1%3a2_all.deb"]
    (store / "new_7_all.deb").write_text("", encoding="utf-8")
    assert fetching.fetch(SOURCE, store) == store / "new_7_all.deb"


def test_what_a_failed_client_left_is_not_kept(tmp_path, store, monkeypatch):
    script = (
        "echo x > $3_1_all.deb; echo W: a >&2; echo E: Failed to fetch http://a.b/c 404 >&2; exit 1"
    )
    client(tmp_path, "apt-get", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fetching.MissingError) as missing:
        fetching.fetch(SOURCE, store)
    reasons = [f"{one}: cannot be had (Failed to fetch ... 404)" for one in ("new", "old")]
    assert str(missing.value) == "; ".join(reasons)
    assert not list(store.iterdir())
    client(tmp_path, "apt-get", "exit 0")
    with pytest.raises(fetching.MissingError, match="new: the download left no archive"):
        fetching.fetch(SOURCE, store)


def test_nothing_of_a_package_of_npm_or_pypi_is_run(tmp_path, store, monkeypatch):
    client(tmp_path, "npm", 'echo "$*" > some-1.0.0.tgz')
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = fetching.fetch(CODE, store).read_text(encoding="utf-8").split()
    assert arguments[:2] == ["pack", "some@1.0.0"]
    assert "--ignore-scripts" in arguments
    command = fetching._command(OTHER, "other", store)
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert command[-1] == "other==2.0"


# ---- readers -----------------------------------------------------------------------------------


def test_pages_lose_what_leads_elsewhere():
    text = (
        "<html><head><title>no</title><style>p {}</style></head><body><header><div>no</div></header>"
        '<div class="navheader"><div>no</div> no</div><h1>A &amp;\n <b>bold</b> title</h1>'
        "<p>One<br/>two <!-- <p>no</p> --> three</p><ul><li>four</li><li>five <i>5</i></li></ul>"
        "<pre class='x'>a  b\n  c &lt; d</pre><script>no()</script>end"
    )
    told = ["A & bold title", "One", "two three", "four", "five 5", "a  b\n  c < d", "end"]
    assert reading.paragraphs(text) == told
    assert reading.page_text(text, frozenset(("four", "end"))) == "\n\n".join(
        one for one in told if one not in {"four", "end"}
    )
    assert reading.paragraphs("<aside>never closed <p>no") == []


def test_sections_begin_at_headings():
    text = "<head></head><body><p>before</p><h1>A</h1><p>a</p><h2 class='x'>B</h2><p>b</p></body>"
    found = reading.READERS["sections"].split("ch1", text.encode())
    assert {name: reading.page_text(one) for name, one in found.items()} == {
        "ch1/001": "A\n\na",
        "ch1/002": "B\n\nb",
    }


@pytest.mark.parametrize("order", "<>")
def test_messages_of_a_catalogue(order):
    long = "a translated sentence of some length, of which there are ~many"
    given = {
        "": "Content-Type: text/plain; charset=UTF-8",
        "context\4an original": long,
        "one\0many": f"{long} forms\0none",
        "short": "short",
        long: long,
    }
    content = catalogue(given, order)
    expected = [long.replace("~", ""), long.replace("~", "") + " forms"]
    assert list(reading.messages(content)) == expected
    for broken in (b"", b"some text", content[:40], content[:4] + b"\xff" * 24):
        with pytest.raises(reading.UnreadableError, match="no catalogue"):
            list(reading.messages(broken))


def catalogue(messages, order):
    """Return a compiled catalogue, as GNU gettext's manual describes it."""
    start = 28 + 16 * len(messages)
    tables, texts = [[], []], b""
    for pair in messages.items():
        for table, text in zip(tables, pair, strict=True):
            table += [len(text.encode()), start + len(texts)]
            texts += text.encode() + b"\0"
    head = [0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, start]
    numbers = [*head, *tables[0], *tables[1]]
    return struct.pack(f"{order}{len(numbers)}I", *numbers) + texts


def packed(content):
    """Return a block as the program `bible` packs one, written from the algorithm's description."""
    codes, table, held = [], {bytes([i]): i for i in range(256)}, b""
    free, width, bits, number = 257, 9, 0, 0

    def emit(code):
        nonlocal number, bits
        number |= code << bits
        bits += width
        codes.append(code)

    for i in range(len(content)):
        longer = held + content[i : i + 1]
        if longer in table:
            held = longer
            continue
        emit(table[held])
        # Who unpacks knows an entry one code later than who packs.
        if len(codes) > 1 and 257 + len(codes) - 1 == 1 << width and width < 16:
            width += 1
        table[longer] = free
        free += 1
        held = content[i : i + 1]
    emit(table[held])
    return number.to_bytes((bits + 7) // 8, "little") + b"\0" * 7


def test_the_chapters_of_a_book():
    verses = [("Ge", 1, 12), ("Ge", 2, 9), ("1Sa", 10, 30)]
    text, expected = "A title\n", {}
    for seed, (book, chapter, count) in enumerate(verses):
        told = [" ".join(prose(100 * seed + i, 40).split()) for i in range(count)]
        text += "".join(f"{book}{chapter}:{i + 1} {one}\n" for i, one in enumerate(told))
        expected[f"{book}/{chapter:03}"] = "\n".join(told)
    most = 9000
    parts = [text.encode()[i : i + most] for i in range(0, len(text), most)]
    assert len(parts) > 1
    stored = [packed(one) for one in parts]
    offsets = np.cumsum([0x5C + 4 * (len(parts) + 1), *map(len, stored)]).tolist()
    head = b"EC02".ljust(0x54, b"\0") + struct.pack(">2I", most, len(parts))
    content = head + struct.pack(f">{len(offsets)}I", *offsets) + b"".join(stored)
    assert reading.READERS["chapters"].split("book", content) == expected
    for broken in (b"", content[:100], head + b"\xff" * 40):
        with pytest.raises(reading.UnreadableError, match="cannot be read"):
            reading.READERS["chapters"].split("book", broken)


def test_short_paragraphs_are_put_together():
    entry = "00005930 03 n 02 dwarf 0 big_tree 1 001 @ 00004475 n 0000 | what a word means  \n"
    found = reading.READERS["glosses"].split("noun", ("  1 a licence\n" + entry * 300).encode())
    assert list(found) == [f"noun/{i:05}" for i in range(len(found))]
    assert len(found) > 2
    told = "\n\n".join(found.values()).split("\n\n")
    assert told == ["dwarf, big tree: what a word means"] * 300
    found = reading.READERS["fortunes"].split("f", b"one\n%\ntwo\n  lines\n%\n%\nthree\n")
    assert found == {"f/00000": "one\n\ntwo\n  lines\n\nthree"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("# Copyright x\n# y\n\ncode\n", "code\n"),
        ("%% License: z\n-module(a).\n", "-module(a).\n"),
        ("/* Copyright\n * x */\n\ncode\n", "code\n"),
        ("// What it does\ncode\n", "// What it does\ncode\n"),
        ("code\n# Copyright\n", "code\n# Copyright\n"),
    ],
)
def test_licences_of_code_are_left_out(text, kept):
    assert reading.without_licence(text) == kept


def test_other_encodings_and_broken_files_are_counted(tmp_path, store, recipe):
    given = both(store)
    files = {f"package/lib/{i}.js": prose(i) for i in range(20)}
    path = store / "some-1.0.0.tgz"
    tgz(path, {"package/package.json": of_npm("some"), **files})
    with tarfile.open(store / "new.tgz", "w:gz") as new, tarfile.open(path) as old:
        for member in old:
            new.addfile(member, old.extractfile(member))
        for name, content in {"latin.js": b"caf\xe9" * 99, "z.js": b"\x1f\x8bbroken"}.items():
            member = tarfile.TarInfo(f"package/lib/{name}")
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    (store / "new.tgz").replace(path)
    recipe(given)
    request = building.Request(tmp_path / "out", "packages", ("js",), 0.02, store)
    assert building.build(request) == 0
    assert manifest(tmp_path / "out")["slices"][0]["left_out"] == {
        "cannot be read": 1,
        "no UTF-8": 1,
    }


def test_a_recipe_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="must be one of machine, packages"):
        building.build(building.Request(tmp_path / "out", "web"))
