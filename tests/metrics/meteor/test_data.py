"""Where METEOR's tables are found, and what is said when they are not."""

import gzip
import re
import sys
import types
import zipfile

import pytest

from hf_captioners.metrics.meteor.data import MeteorData, MeteorDataError, SynonymSets, find_meteor_folder
from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable

TABLES = {
    "function/english.words": "the\nof\n's\n",
    "nonbreaking/english.prefixes": "#comment\n\nMr\nNo #NUMERIC_ONLY# \n",
    "synonym/english.synsets": "sofa\n0001\ncouch\n0001 0002\ngoose\n0003\n",
    "synonym/english.exceptions": "goose\ngeese geeses\ngander\ngeese\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of tiny tables, as pycocoevalcap has them."""
    monkeypatch.delenv("HF_CAPTIONERS_METEOR", raising=False)
    home = tmp_path / "with spaces" / "meteor"
    (home / "data").mkdir(parents=True)
    with zipfile.ZipFile(home / "meteor-1.5.jar", "w") as jar:
        for name, text in TABLES.items():
            jar.writestr(name, text)
    (home / "data" / "paraphrase-en.gz").write_bytes(gzip.compress(b"0.1\na lot of\nmany\n"))
    return home


@pytest.fixture
def stemmer(monkeypatch):
    """A stemmer in place of snowballstemmer, and a way to change its stems."""
    stems = {"biologist": "biologist", "organization": "organ", "runs": "run"}
    fake = types.ModuleType("snowballstemmer")
    fake.EnglishStemmer = lambda: types.SimpleNamespace(stemWord=lambda word: stems.get(word, word))
    monkeypatch.setitem(sys.modules, "snowballstemmer", fake)
    return stems


def test_loads_the_tables(folder, stemmer, tmp_path):
    data = MeteorData.load(folder, tmp_path / "cache")
    assert data.function_words == {"the", "of", "'s"}
    assert data.normalizer.abbreviations == {"Mr"}
    assert data.normalizer.before_numbers == {"No"}
    assert data.stem("runs") == "run"
    assert data.synonyms.of("geese") == {"0003"}
    assert isinstance(data.paraphrases, ParaphraseTable)


def test_environment_variable_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("HF_CAPTIONERS_METEOR", str(folder))
    assert find_meteor_folder() == folder


def test_finds_pycocoevalcap_without_importing_it(folder, tmp_path, monkeypatch):
    package = tmp_path / "site" / "pycocoevalcap"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    folder.rename(package / "meteor")
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.delitem(sys.modules, "pycocoevalcap")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_meteor_folder() == package / "meteor"


def test_says_what_to_install_without_pycocoevalcap(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MeteorDataError, match=re.escape('not installed: pip install -e ".[eval]"')):
        MeteorData.load()


@pytest.mark.parametrize("name", ["meteor-1.5.jar", "data/paraphrase-en.gz"])
def test_says_which_file_is_missing(folder, name):
    (folder / name).unlink()
    with pytest.raises(MeteorDataError, match=re.escape(str(folder / name))):
        MeteorData.load(folder)


def test_says_that_the_archive_is_broken(folder):
    (folder / "meteor-1.5.jar").write_bytes(b"not a jar")
    with pytest.raises(MeteorDataError, match=r"meteor-1\.5\.jar: METEOR's tables cannot be read"):
        MeteorData.load(folder)


def test_says_what_to_install_without_a_stemmer(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    with pytest.raises(MeteorDataError, match=r'snowballstemmer, .* pip install -e "\.\[eval\]"'):
        MeteorData.load(folder)


def test_refuses_a_stemmer_of_another_version(folder, stemmer):
    stemmer["biologist"] = "biolog"  # snowballstemmer 3
    with pytest.raises(MeteorDataError, match=r"snowballstemmer>=2\.2,<3"):
        MeteorData.load(folder)


# What the published program matched, with a table of these words (its option -d).
BASES = ["blag", "blage", "blagy", "blags", "blagx", "blagch", "blagman", "b", "bl", "e", "s", "i", "xe", "in", "ess"]


@pytest.mark.parametrize(
    ("word", "bases"),
    [
        ("blags", {"blag", "blags"}),
        ("blages", {"blage"}),  # the first rule that leads to a word, not all
        ("blaged", {"blage"}),
        ("blager", {"blag"}),
        ("blagest", {"blag"}),
        ("blagies", {"blagy"}),
        ("blagxes", {"blagx"}),
        ("blagches", {"blagch"}),
        ("blagmen", {"blagman"}),
        ("blaging", {"blage"}),
        ("blagss", set()),
        ("bs", set()),  # words of two letters stay
        ("is", set()),
        ("es", set()),
        ("bls", {"bl"}),
        ("bes", {"b"}),
        ("ied", {"i"}),
        ("xes", {"xe"}),
        ("ing", {"e"}),
        ("esses", {"ess"}),
        ("sss", set()),
        ("blagonia", {"blag", "in"}),
        ("inned", {"bl"}),  # an irregular form has no other base
    ],
)
def test_base_forms_are_those_of_the_program(word, bases):
    irregular = {"blagonia": ["blag", "in", "unknown"], "inned": ["bl"]}
    assert SynonymSets({base: base for base in BASES}, irregular).of(word) == bases
