"""Docstrings as a corpus. Run: pytest tests/corpora/test_pydocs.py"""

import gc
import subprocess
import sys

import pytest

from dream.corpora import pydocs
from dream.corpora.pydocs import PyDocsCorpus, split_summary
from dream.utils.errors import ConfigError

BODY = "The rest of the docstring explains at length what the function does, to whom, and why anybody would call it."


def test_summary_and_rest():
    assert split_summary(f"Return the number of things.\n\n{BODY}") == ("Return the number of things.", BODY)


@pytest.mark.parametrize(
    "docstring",
    [
        f"Too short.\n\n{BODY}",
        f"This summary continues\nover two lines of text.\n\n{BODY}",
        "Return the number of things.\n\nShort body.",
        f"Return the number of things.\n{BODY}",
        f"signature(of, a, builtin, function)\n\n{BODY}",
        f">>> not_a_summary but some code here\n\n{BODY}",
        f"{'Very long summary line ' * 8}\n\n{BODY}",
    ],
)
def test_docstrings_without_a_usable_summary_stay_whole(docstring):
    assert split_summary(docstring) == ("", docstring)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `toyhouse` with 40 documented functions, installed in `tmp_path`."""
    folder = tmp_path / "site" / "toyhouse"
    (folder / "tests").mkdir(parents=True)
    (tmp_path / "site" / "toyhouse-1.2.dist-info").mkdir()
    (tmp_path / "site" / "toyhouse-1.2.dist-info" / "METADATA").write_text("Name: toyhouse\nVersion: 1.2\n")
    (tmp_path / "site" / "toyhouse-1.2.dist-info" / "top_level.txt").write_text("toyhouse\n")
    functions = [
        f'def f{n}():\n    """Return the thing of kind {n}.\n\n    {BODY}\n    Number {n}.\n    """\n'
        for n in range(40)
    ]
    (folder / "__init__.py").write_text(f'"""Houses for toys, large and small.\n\n{BODY}"""\n' + "\n".join(functions))
    (folder / "rooms.py").write_text(
        f'class Room:\n    """A place to play in."""\n    async def enter(self):\n        """{BODY} Enter."""\n'
        f'    @property\n    def size(self):\n        """{BODY} Get."""\n    @size.setter\n'
        f'    def size(self, value):\n        """{BODY} Set."""\n'
    )
    (folder / "broken.py").write_text("def :\n")
    (folder / "tests" / "test_it.py").write_text(f'"""{BODY}"""\n')
    monkeypatch.setattr(pydocs, "MIN_CHARACTERS", 100)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def toyhouse(folder, fraction=0.25) -> PyDocsCorpus:
    return PyDocsCorpus("pydocs", ["toyhouse"], False, fraction, str(folder / "cache"), None)


def test_documents_are_named_and_cleaned(package):
    texts = {d.id: d.text for d in toyhouse(package).documents()}
    assert texts["toyhouse.rooms.Room.enter"] == f"{BODY} Enter."
    assert texts["toyhouse.rooms.Room.size"] == f"{BODY} Get."
    assert texts["toyhouse.rooms.Room.size#2"] == f"{BODY} Set."
    assert "toyhouse.rooms.Room" not in texts  # shorter than the minimum
    assert len(texts) == 1 + 40 + 3  # neither tests nor what is not Python
    assert texts["toyhouse.f3"].endswith(f"{BODY}\nNumber 3.")


def test_held_out_summaries_are_queries_and_not_in_the_corpus(package):
    corpus = toyhouse(package)
    texts = {d.id: d.text for d in corpus.documents()}
    assert corpus.splits() == ["dev", "test"]
    both = [corpus.labels(split) for split in corpus.splits()]
    assert not set(both[0].queries.values()) & set(both[1].queries.values())
    held_out = 0
    for labels in both:
        assert len(labels.queries) >= 3  # 41 summaries, a quarter each
        for query, relevant in labels.qrels.items():
            for name in relevant:
                held_out += 1
                assert texts[name].startswith(BODY)
            assert not any(labels.queries[query] in text for text in texts.values())
    assert sum("Return the thing" in text for text in texts.values()) >= 40 - held_out


def test_the_cache_is_read_and_settings_have_their_own(package, monkeypatch):
    first = toyhouse(package)
    assert gc.isenabled()
    monkeypatch.setattr(pydocs, "SEED", 1)
    other = toyhouse(package)
    assert other.path != first.path
    assert other.labels("dev").queries != first.labels("dev").queries
    monkeypatch.setattr(pydocs, "SEED", 0)
    assert toyhouse(package, fraction=0.2).path not in (first.path, other.path)
    monkeypatch.setattr(pydocs, "_docstrings", None)
    assert toyhouse(package).path == first.path


def test_every_process_extracts_the_same(package):
    contents = [toyhouse(package).path.read_bytes()]
    code = (
        f"import sys; sys.path.insert(0, {str(package / 'site')!r})\n"
        "from dream.corpora import pydocs\n"
        "pydocs.MIN_CHARACTERS = 100\n"
        f"c = pydocs.PyDocsCorpus('pydocs', ['toyhouse'], False, 0.25, {str(package / 'elsewhere')!r}, None)\n"
        "sys.stdout.buffer.write(b'PATH ' + str(c.path).encode())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.decode()
    path = package / "elsewhere" / toyhouse(package).path.parent.name / "corpus.jsonl"
    assert said.endswith(str(path))
    assert path.read_bytes() == contents[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packages": ["no_such_package"]}, "corpus.packages=no_such_package: this package is not installed"),
        ({"packages": [], "stdlib": False}, "corpus.packages"),
        ({"heldout_fraction": 0.5}, "corpus.heldout_fraction=0.5"),
        ({"language": "klingon"}, "corpus.language=klingon: choose null for plain words, or arabic, "),
    ],
)
def test_bad_settings_name_their_key(tmp_path, changes, message):
    settings = {
        "name": "pydocs",
        "packages": ["torch"],
        "stdlib": False,
        "heldout_fraction": 0.1,
        "cache_dir": str(tmp_path),
        "language": "english",
    }
    with pytest.raises(ConfigError, match=message):
        PyDocsCorpus(**(settings | changes))
    assert list(tmp_path.iterdir()) == []
