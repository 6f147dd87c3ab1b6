"""METEOR in Python against the published Java program, on random captions; with small tables it starts in a second."""

import gzip
import random
import re
import shutil
import subprocess

import numpy as np
import pytest
from contracts.hanging import HANGING_S

from hf_captioners.metrics.meteor.aligner import MeteorAligner
from hf_captioners.metrics.meteor.data import MeteorData, SynonymSets, find_meteor_folder
from hf_captioners.metrics.meteor.meteor import meteor_score, meteor_statistics
from hf_captioners.metrics.meteor.paraphrases import MeteorDataError, ParaphraseTable

SETS = {"walk": "1 2", "stroll": "1", "walks": "3", "march": "2 3", "go": "3"}
IRREGULAR = {"went": ["go"], "gone": ["go"]}
WORDS = ["walk", "walks", "walked", "walking", "stroll", "strolls", "march", "marches", "marched"]
WORDS += ["go", "goes", "went", "gone", "a", "the"]


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("pycocoevalcap", reason="METEOR's tables are an extra")
    return MeteorData.load()


@pytest.fixture(scope="module")
def jar():
    if shutil.which("java") is None:
        pytest.skip("needs Java, to compare with the published program")
    try:
        return find_meteor_folder() / "meteor-1.5.jar"
    except MeteorDataError as error:
        pytest.skip(str(error))


def run_program(jar, folder, pairs, *options):
    """Statistics, alignment and words of each (hypothesis, reference), as the program writes them."""
    for name, texts in zip(("hypotheses", "references"), zip(*pairs, strict=True), strict=True):
        (folder / name).write_text("".join(f"{text}\n" for text in texts), "utf-8")
    command = [
        "java",
        "-Dfile.encoding=UTF-8",
        "-XX:+UseSerialGC",
        "-Xmx3G",
        "-jar",
        str(jar),
        "hypotheses",
        "references",
    ]
    command += ["-l", "en", "-norm", "-ssOut", "-writeAlignments", "-f", "out", *options]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANGING_S)
    assert run.returncode == 0, run.stderr
    statistics = [[float(word) for word in line.split()] for line in run.stdout.splitlines() if line.count(" ") == 22]
    blocks = re.split(r"(?m)^Alignment\t", (folder / "out-align.out").read_text("utf-8"))[1:]
    assert len(statistics) == len(blocks) == len(pairs)
    for numbers, block in zip(statistics, blocks, strict=True):
        _, hypothesis, _, _, *rows = block.split("\n")
        matches = [tuple(map(int, re.findall(r"\d+", row)[:5])) for row in rows if row]
        yield numbers, matches, hypothesis.split(" ")


def small_tables(folder, rng):
    """Random paraphrases, some in both directions, in the program's files and in ours."""

    def phrase():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))

    pairs = {}
    for _ in range(rng.randint(5, 40)):
        source, target = phrase(), phrase()
        if source != target:
            pairs[source, target] = None
            if rng.random() < 0.15:
                pairs[target, source] = None
    with gzip.open(folder / "p.gz", "wt") as file:
        file.writelines(f"0.5\n{source}\n{target}\n" for source, target in pairs)
    (folder / "english.synsets").write_text("".join(f"{word}\n{names}\n" for word, names in SETS.items()))
    (folder / "english.exceptions").write_text("go\nwent gone\n")
    (folder / "english.relations").write_text("")
    return ParaphraseTable.from_pairs(pairs)


@pytest.mark.parametrize(("seed", "longest"), [(0, 5), (1, 8), (2, 12), (3, 30)])
def test_alignments_are_those_of_the_program(jar, data, tmp_path, seed, longest):
    rng = random.Random(seed)
    table = small_tables(tmp_path, rng)
    ours = MeteorData(data.normalizer, data.function_words, data.stem, SynonymSets(SETS, IRREGULAR), table)

    def caption(filler):
        words = [*rng.sample(WORDS, rng.randint(2, len(WORDS))), filler, filler * 2]
        return " ".join(rng.choices(words, k=rng.randint(1, longest)))

    pairs = [(caption("x"), caption("y")) for _ in range(300 if longest < 20 else 60)]
    aligner = MeteorAligner(ours, [text for pair in pairs for text in pair])
    aligned = aligner.align(*zip(*pairs, strict=True))
    program = run_program(jar, tmp_path, pairs, "-a", "p.gz", "-d", str(tmp_path))
    for number, (pair, (_, matches, _)) in enumerate(zip(pairs, program, strict=True)):
        some, _ = aligned.of_pairs(np.array([number]))
        assert list(zip(*(column.tolist() for column in some[1:]), strict=True)) == matches, pair


@pytest.mark.parametrize(
    "letters",
    ["aabBsSz1259  .,'-", "ab.-,'`\"&%$ 1é’“–—(/_\t", "aéЖ٣½ .’-,1\u00a0\u3000日😀\x0b\x0c"],
    ids=["points", "marks", "unicode"],
)
def test_words_are_those_of_the_program(jar, data, tmp_path, letters):
    rng = random.Random(letters)
    texts = ["".join(rng.choices(letters, k=rng.randint(1, 10))) for _ in range(2000)]
    small_tables(tmp_path, rng)
    program = run_program(jar, tmp_path, [(text, "x") for text in texts], "-a", "p.gz", "-m", "exact", "-w", "1")
    for text, (_, _, words) in zip(texts, program, strict=True):
        assert data.normalizer(text) == [word for word in words if word], repr(text)


@pytest.mark.slow
def test_statistics_are_those_of_the_program(jar, data, tmp_path):
    """With all tables: 15 seconds for the program to load them."""
    rng = random.Random(5)
    some = [
        "a",
        "a",
        "the",
        "of",
        "on",
        "in",
        "next to",
        "a lot of",
        "several",
        "many",
        "a group of",
        "man",
        "men",
        "people",
    ]
    some += [
        "woman",
        "dog",
        "dogs",
        "cat",
        "sitting",
        "sits",
        "standing",
        "stand",
        "large",
        "big",
        "street",
        "road",
        "bike",
    ]
    some += [
        "bicycle",
        "couch",
        "sofa",
        "food",
        "well-known",
        "don't",
        "u.s.",
        "No. 5",
        ",",
        ".",
        "''",
        "-lrb-",
        "café",
    ]
    texts = [" ".join(rng.choices(some, k=rng.choice([1, 5, 10, 20, 60]))) for _ in range(1000)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    statistics = meteor_statistics(texts[::2], [[text] for text in texts[1::2]], tokenized=True, data=data)
    for pair, row, (numbers, _, _) in zip(pairs, statistics.tolist(), run_program(jar, tmp_path, pairs), strict=True):
        assert row == numbers, (pair, meteor_score(row), meteor_score(numbers))
