"""The tables of METEOR 1.5 for English (function words, abbreviations, synonyms, paraphrases), and the stemmer.

The tables are those that the pycocoevalcap distribution carries, inside `meteor-1.5.jar` (an archive; no Java is run)
and beside it. The stemmer is Snowball's English one as it was until 2025: snowballstemmer 3 cuts some words otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...extras import install
from .normalizer import MeteorNormalizer
from .paraphrases import MeteorDataError, ParaphraseTable, load_paraphrases

INSTALL = install("eval")
FOLDER_VARIABLE = "HF_CAPTIONERS_METEOR"
_JAR = "meteor-1.5.jar"
_PARAPHRASES = Path("data", "paraphrase-en.gz")

# WordNet's rules for the base form of a word; the first that leads to a word of WordNet counts
_ENDINGS = (
    *(
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    *(("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)
# how these words end tells the stemmers of snowballstemmer 2 and 3 apart
_STEMS = {"biologist": "biologist", "organization": "organ"}


@dataclass(frozen=True)
class SynonymSets:
    """WordNet's sets of synonyms.

    Attributes:
        sets (`Mapping[str, str]`): word -> names of its sets, joined by spaces.
        irregular (`Mapping[str, Sequence[str]]`): irregular form -> its base forms.
    """

    sets: Mapping[str, str]
    irregular: Mapping[str, Sequence[str]]

    def of(self, word: str) -> frozenset[str]:
        """The sets of a word or of its base forms.

        Args:
            word (`str`): in lower case.

        Returns:
            `frozenset[str]`: names of sets; two words that share one are synonyms.

        Example:

        ```python
        >>> from hf_captioners.metrics.meteor.data import SynonymSets
        >>> synonyms = SynonymSets({"sofa": "7", "couch": "7 9", "goose": "3"}, {"geese": ["goose"]})
        >>> sorted(synonyms.of("couches")), sorted(synonyms.of("geese"))
        (['7', '9'], ['3'])

        ```
        """
        forms = [word, *self.irregular.get(word, ())]
        if word not in self.irregular and len(word) > 2 and not word.endswith("ss"):
            shorter = (word[: -len(old)] + new for old, new in _ENDINGS if word.endswith(old))
            forms += [base for base in shorter if base in self.sets][:1]
        return frozenset(name for form in forms for name in self.sets.get(form, "").split())


@dataclass(frozen=True)
class MeteorData:
    """The tables of METEOR for English.

    Attributes:
        normalizer ([`MeteorNormalizer`]): cuts captions into words.
        function_words (`frozenset[str]`): words that count less.
        stem (`Callable[[str], str]`): word -> stem.
        synonyms ([`SynonymSets`]): WordNet.
        paraphrases ([`ParaphraseTable`]): phrases that mean the same.
    """

    normalizer: MeteorNormalizer
    function_words: frozenset[str]
    stem: Callable[[str], str]
    synonyms: SynonymSets
    paraphrases: ParaphraseTable

    @functools.cached_property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of a SHA-256 of the tables: other tables may give other scores."""
        normalizer = self.normalizer
        texts = [sorted(words) for words in (normalizer.abbreviations, normalizer.before_numbers, self.function_words)]
        texts.append([self.stem(word) for word in [*texts[-1], *_STEMS]])
        texts.append(list(map("\t".join, sorted(self.synonyms.sets.items()))))
        texts.append([f"{form}\t{' '.join(bases)}" for form, bases in sorted(self.synonyms.irregular.items())])
        digest = hashlib.sha256()
        for words in (*texts, [self.paraphrases.checksum]):
            digest.update("\n".join([str(len(words)), *words, ""]).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:12]

    @classmethod
    def load(cls, folder: str | Path | None = None, cache_dir: Path | None = None) -> MeteorData:
        """Load the tables.

        Args:
            folder (`str` or `Path`, *optional*): with `meteor-1.5.jar` and `data/paraphrase-en.gz`; by default that of
                the environment variable `HF_CAPTIONERS_METEOR`, or that of an installed pycocoevalcap.
            cache_dir (`Path`, *optional*): see [`load_paraphrases`]. The first call of all takes about 15 seconds.

        Returns:
            [`MeteorData`]

        Raises:
            MeteorDataError: the tables or the stemmer are missing or another version; the message says what to install.
        """
        home = find_meteor_folder(folder)
        texts = _read_jar(home / _JAR)
        forms = _pairs_of_lines(texts["synonym/english.exceptions"])
        irregular: dict[str, list[str]] = {}
        for base, inflections in forms:
            for form in inflections.split():
                irregular.setdefault(form, []).append(base)
        return cls(
            _normalizer(texts["nonbreaking/english.prefixes"]),
            frozenset(texts["function/english.words"].split()),
            _load_stemmer(),
            SynonymSets(dict(_pairs_of_lines(texts["synonym/english.synsets"])), irregular),
            load_paraphrases(home / _PARAPHRASES, cache_dir),
        )


def find_meteor_folder(folder: str | Path | None = None) -> Path:
    """The folder of METEOR's tables.

    Args:
        folder (`str` or `Path`, *optional*): see [`MeteorData.load`].

    Returns:
        `Path`

    Raises:
        MeteorDataError: they are not there.
    """
    chosen_folder = folder or os.environ.get(FOLDER_VARIABLE)
    if chosen_folder:
        home, advice = Path(chosen_folder), f"give a folder that has both {_JAR} and {_PARAPHRASES}"
    else:
        spec = importlib.util.find_spec("pycocoevalcap")  # found, not imported
        if spec is None or not spec.submodule_search_locations:
            raise MeteorDataError(f"METEOR needs the tables of pycocoevalcap, which is not installed: {INSTALL}")
        home, advice = Path(spec.submodule_search_locations[0], "meteor"), f"install it anew: {INSTALL}"
    for name in (_JAR, _PARAPHRASES):
        if not (home / name).is_file():
            raise MeteorDataError(f"{home / name}: METEOR's tables are not there; {advice}")
    return home


def _read_jar(path: Path) -> dict[str, str]:
    """The English tables in the archive, by their names there."""
    names = ("function/english.words", "nonbreaking/english.prefixes", "synonym/english.synsets")
    try:
        with zipfile.ZipFile(path) as jar:
            return {name: jar.read(name).decode("utf-8") for name in (*names, "synonym/english.exceptions")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise MeteorDataError(f"{path}: METEOR's tables cannot be read: {error}") from error


def _pairs_of_lines(text: str) -> list[tuple[str, str]]:
    lines = text.splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


def _normalizer(prefixes: str) -> MeteorNormalizer:
    """Make the normalizer from the list of abbreviations: a word per line, `#NUMERIC_ONLY#` behind some, comments."""
    lines = [line.split() for line in prefixes.splitlines() if line.strip() and not line.startswith("#")]
    return MeteorNormalizer(
        (line[0] for line in lines if len(line) == 1), (line[0] for line in lines if "#NUMERIC_ONLY#" in line)
    )


def _load_stemmer() -> Callable[[str], str]:
    try:
        from snowballstemmer import EnglishStemmer
    except ImportError as error:
        raise MeteorDataError(
            f"METEOR needs the stemmer of snowballstemmer, which is not installed: {INSTALL}"
        ) from error
    stem: Callable[[str], str] = EnglishStemmer().stemWord
    for word, expected in _STEMS.items():
        if stem(word) != expected:
            raise MeteorDataError(
                f"the installed snowballstemmer makes {stem(word)!r} of {word!r}, METEOR 1.5 has {expected!r}; "
                'pip install "snowballstemmer>=2.2,<3"'
            )
    return stem
