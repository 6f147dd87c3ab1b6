"""SPICE with a stand-in for Java: scores of the real program replayed, and everything that can go wrong."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.hanging import HANGING_S
from contracts.metric import MetricCase, MetricContract

from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.spice import cache as spice_cache
from hf_captioners.metrics.spice.cache import SpiceCache, SpiceError
from hf_captioners.metrics.spice.java import SpiceProgram, parse_results
from hf_captioners.metrics.spice.spice import category_means, spice, spice_categories

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in for Java is a script with a first line #!")

JAVA_8 = "print('openjdk version \"1.8.0_312\"', file=sys.stderr)"
# What the stand-in does with its captions: F is the number of words of the caption in percent; the last image first.
RUN = """\
rows = [{"image_id": one["image_id"], "scores": {"All": all_scores(one)}} for one in reversed(captions)]
write(json.dumps(rows))
"""


@pytest.fixture()
def jar(tmp_path: Path) -> Path:
    """A jar that names two libraries, which are there."""
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    path = tmp_path / "spice" / "spice-1.0.jar"
    with zipfile.ZipFile(path, "w") as archive:
        manifest = "Manifest-Version: 1.0\r\nClass-Path: lib/stanford-corenlp-3.6\r\n .0.jar lib/other.jar\r\n\r\n"
        archive.writestr("META-INF/MANIFEST.MF", manifest)
    for name in ("stanford-corenlp-3.6.0.jar", "other.jar"):
        (tmp_path / "spice" / "lib" / name).touch()
    return path


@pytest.fixture()
def fake_java(tmp_path: Path) -> Callable[..., Path]:
    """Makes a program that answers like Java and notes each run, with the number of captions, in `runs.txt`."""

    def make(run: str = RUN, version: str = JAVA_8) -> Path:
        path = tmp_path / "java"
        head = f"""\
            #!{sys.executable}
            import json, subprocess, sys, time
            if sys.argv[1:] == ["-version"]:
                {version}
                sys.exit()
            memory, dash_jar, jar, source, out, target, *options = sys.argv[1:]
            assert (dash_jar, out, options[:2]) == ("-jar", "-out", ["-subset", "-silent"]), sys.argv
            captions = json.load(open(source))
            with open({str(tmp_path / "runs.txt")!r}, "a") as log:
                print(len(captions), memory, *options[2:], file=log)
            def write(text):
                open(target, "w").write(text)
            def all_scores(one):
                return dict(f=len(one["test"].split()) / 100, pr=0, re=0, tp=0, fp=1, fn=1, numImages=1)
            """
        path.write_text(textwrap.dedent(head) + textwrap.dedent(run))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


@pytest.fixture()
def runs(tmp_path: Path) -> Callable[[], list[str]]:
    def read() -> list[str]:
        return (tmp_path / "runs.txt").read_text().splitlines() if (tmp_path / "runs.txt").exists() else []

    return read


class TestContract(MetricContract):
    name = "spice"

    @pytest.fixture()
    def options(self, jar: Path, fake_java: Callable[..., Path]) -> dict[str, Any]:
        return {"jar": jar, "java": fake_java()}


class TestRealScores:
    """Output of the real program on the captions of coco-caption's example, for 600 of its 1,000 images."""

    @pytest.fixture(scope="class")
    def recorded(self, shared_parity: Path) -> dict[str, Any]:
        return json.loads((shared_parity / "metrics" / "fakecap_1000" / "spice_per_image_600.json").read_text())

    def test_layout(self, recorded: dict[str, Any]) -> None:
        rows = [{"image_id": row, "scores": scores} for row, scores in enumerate(recorded.values())]
        parsed = parse_results(json.dumps(rows[::-1]), len(rows))
        undefined = 0
        for ours, theirs in zip(parsed, recorded.values(), strict=True):
            assert set(ours) == {"All", "Object", "Attribute", "Relation", "Color", "Cardinality", "Size"}
            for category, scores in ours.items():
                tp, fp, fn = (theirs[category][name] for name in ("tp", "fp", "fn"))
                assert (scores["tp"], scores["fp"], scores["fn"]) == (tp, fp, fn)
                if theirs[category]["f"] is None:
                    assert tp == fn == 0 and math.isnan(scores["f"])
                    undefined += 1
                else:
                    assert scores["f"] == pytest.approx(2 * tp / max(2 * tp + fp + fn, 1), abs=1e-12)
        assert undefined > 0

    def test_category_means(self, recorded: dict[str, Any]) -> None:
        rows = [{"image_id": row, "scores": scores} for row, scores in enumerate(recorded.values())]
        means = category_means(parse_results(json.dumps(rows), len(rows)))
        for category, mean in means.items():
            values = np.array([scores[category]["f"] for scores in recorded.values()], dtype=float)
            assert mean == pytest.approx(np.nanmean(values), abs=1e-12)

    def test_whole_way(
        self,
        recorded: dict[str, Any],
        metric_case: Callable[[str], MetricCase],
        tmp_path: Path,
        jar: Path,
        fake_java: Callable[..., Path],
    ) -> None:
        case, ids = metric_case("fakecap_1000"), list(recorded)
        rows = [case.expected["order"].index(int(name)) for name in ids]
        first, several = [case.tokens[0][row] for row in rows], [case.tokens[1][row] for row in rows]
        keys = [json.dumps([one, references]) for one, references in zip(first, several, strict=True)]
        replay = {key: recorded[name] for key, name in zip(keys, ids, strict=True)}
        (tmp_path / "replay.json").write_text(json.dumps(replay))
        run = f"""
            replay = json.load(open({str(tmp_path / "replay.json")!r}))
            key = lambda one: json.dumps([one["test"], one["refs"]])
            write(json.dumps([dict(image_id=one["image_id"], scores=replay[key(one)]) for one in captions]))
        """
        java = fake_java(run)
        scores = spice(first, several, java=java, jar=jar, batch_size=250, tokenized=True)
        expected = [recorded[name]["All"]["f"] for name in ids]
        np.testing.assert_allclose(scores.per_image["spice"], expected, rtol=0, atol=1e-15)
        assert scores.corpus["spice"] == pytest.approx(math.fsum(expected) / 600, abs=1e-12)


class TestSuccess:
    def test_scores_are_matched_by_image(self, jar: Path, fake_java: Callable[..., Path]) -> None:
        captions = ["a", "a b c", "a b"]
        scores = spice(captions, [["x"], ["y", "z"], ["x"]], java=fake_java(), jar=jar, tokenized=True)
        assert scores.per_image["spice"].tolist() == [0.01, 0.03, 0.02]
        assert scores.per_image["spice"].dtype == np.float64
        assert scores.corpus == {"spice": pytest.approx(0.02)}

    def test_another_jar_is_another_setting(self, jar: Path, fake_java: Callable[..., Path], tmp_path: Path) -> None:
        other = jar.with_name("other.jar")
        other.write_bytes(jar.read_bytes())
        with zipfile.ZipFile(other, "a") as archive:
            archive.writestr("more", "")
        java = fake_java()
        settings = [spice(["a"], [["b"]], java=java, jar=one, tokenized=True).settings for one in (jar, other, jar)]
        assert settings[0] == settings[2] != settings[1]
        more = spice(["a"], [["b"]], java=java, jar=jar, tokenized=True, memory="300m", cache_dir=tmp_path / "cache")
        assert more.settings == settings[0]

    def test_options_and_batches(
        self, jar: Path, fake_java: Callable[..., Path], runs: Callable[[], list[str]]
    ) -> None:
        captions, references = [f"word{row}" for row in range(5)], [["x"]] * 5
        options: dict[str, Any] = {"memory": "300m", "threads": 2, "batch_size": 2, "tokenized": True}
        spice(captions, references, java=fake_java(), jar=jar, **options)
        assert runs() == ["2 -Xmx300m -threads 2", "2 -Xmx300m -threads 2", "1 -Xmx300m -threads 2"]

    def test_characters_beyond_ascii(self, jar: Path, fake_java: Callable[..., Path]) -> None:
        run = 'assert open(source, "rb").read().isascii() and captions[0]["test"] == "caf\\u00e9 \\U0001f600"\n' + RUN
        java = fake_java(run)
        assert spice(["café 😀"], [["x"]], java=java, jar=jar, tokenized=True).corpus["spice"] == 0.02

    def test_relative_paths(
        self, jar: Path, fake_java: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_java()
        monkeypatch.chdir(tmp_path)
        assert spice(["a"], [["x"]], java="./java", jar="spice/spice-1.0.jar", tokenized=True).corpus["spice"] == 0.01

    def test_captions_that_cannot_be_scored(self, jar: Path) -> None:
        with pytest.raises(MetricInputError, match="image x: no references"):
            spice(["a"], [[]], jar=jar, tokenized=True, image_ids=["x"])


class TestRequirements:
    @pytest.mark.parametrize(
        ("version", "message"),
        [
            (
                "print('openjdk version \"17.0.15\" 2025-04-15', file=sys.stderr)",
                "is Java 17.0.15, SPICE needs 8 to 14",
            ),
            (
                "print('openjdk version \"15\"', file=sys.stderr)",
                "JavaScript engine .* that Java 15 removed; --add-opens",
            ),
            ("print('java version \"1.7.0_80\"', file=sys.stderr)", "is Java 1.7.0_80, SPICE needs 8 to 14. Give"),
            ("print('GNU coffee 2')", "says 'GNU coffee 2', which is no Java"),
            ("sys.exit('no runtime present')", "says 'no runtime present', which is no Java"),
        ],
        ids=["17", "15", "7", "text", "status"],
    )
    def test_java_version(self, jar: Path, fake_java: Callable[..., Path], version: str, message: str) -> None:
        with pytest.raises(SpiceError, match=message):
            spice(["a"], [["x"]], java=fake_java(version=version), jar=jar, tokenized=True)

    @pytest.mark.parametrize("version", ["1.8.0_312", "11.0.20", "14", "9-internal"])
    def test_versions_that_do(self, jar: Path, fake_java: Callable[..., Path], version: str) -> None:
        shown = f"print('Picked up _JAVA_OPTIONS: -Xss1m\\nopenjdk version \"{version}\"', file=sys.stderr)".replace(
            "\n", "\\n"
        )
        SpiceProgram(fake_java(version=shown), jar).check()

    def test_no_java(self, jar: Path) -> None:
        with pytest.raises(SpiceError, match=r"java='no-such-java' was not found. Give a Java 8 to 14"):
            spice(["a"], [["x"]], java="no-such-java", jar=jar, tokenized=True)

    def test_missing_libraries_are_named(self, jar: Path, fake_java: Callable[..., Path]) -> None:
        (jar.parent / "lib" / "stanford-corenlp-3.6.0.jar").unlink()
        with pytest.raises(SpiceError) as caught:
            spice(["a"], [["x"]], java=fake_java(), jar=jar, tokenized=True)
        assert f"lib/stanford-corenlp-3.6.0.jar missing in {jar.parent}" in str(caught.value)
        assert "stanford-corenlp-full-2015-12-09.zip" in str(caught.value)

    def test_all_problems_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(SpiceError, match=r"no-such-java.*; and the jar .*nothing.jar does not exist"):
            SpiceProgram("no-such-java", tmp_path / "nothing.jar").check()

    def test_not_a_jar(self, tmp_path: Path, fake_java: Callable[..., Path]) -> None:
        (tmp_path / "x.jar").write_text("<html>not found</html>")
        with pytest.raises(SpiceError, match=r"x.jar is not a jar: File is not a zip file"):
            SpiceProgram(fake_java(), tmp_path / "x.jar").check()

    def test_the_installed_jar_lacks_corenlp(self) -> None:
        pytest.importorskip("pycocoevalcap", reason="pycocoevalcap holds the jar")
        program = SpiceProgram()
        if (program.jar_path().parent / "lib" / "stanford-corenlp-3.6.0-models.jar").exists():
            pytest.skip("Stanford CoreNLP was put beside the jar")
        missing = "lib/stanford-corenlp-3.6.0.jar, lib/stanford-corenlp-3.6.0-models.jar missing in "
        assert missing + str(program.jar_path().parent) in program.problems()[-1]

    @pytest.mark.parametrize("options", [{"memory": "8 GB"}, {"timeout_s": 0}, {"threads": 0}, {"batch_size": 0}])
    def test_wrong_options(self, jar: Path, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            spice(["a"], [["x"]], jar=jar, tokenized=True, **options)


class TestFailures:
    @pytest.mark.parametrize(
        ("run", "message"),
        [
            ("sys.exit('Exception in thread \"main\" java.lang.OutOfMemoryError')", "exit status 1.*OutOfMemoryError"),
            ("print('Error: no pipeline')", "wrote no result.*It printed: Error: no pipeline"),
            ("write('<html>')", "is not JSON .*'<html>'"),
            ("write('{}')", "is a dict, expected a list"),
            ("write('[]')", r"no scores of image 0 \(2 of 2 missing\)"),
            (RUN.replace("reversed(captions)", "captions[:1]"), r"no scores of image 1 \(1 of 2 missing\)"),
            (RUN.replace("reversed(captions)", "captions + captions"), "of no image, or of one twice"),
            (RUN.replace('one["image_id"]', "7"), "of no image, or of one twice"),
            (RUN.replace("all_scores(one)", "dict(all_scores(one), f=None)"), "image 1 has f = None for 'All'"),
            (RUN.replace("all_scores(one)", "dict(all_scores(one), f=float('nan'))"), "image 1 has f = nan for 'All'"),
            (RUN.replace("all_scores(one)", "dict(all_scores(one), f='0.5')"), "image 1 has f = '0.5' for 'All'"),
            (RUN.replace("all_scores(one)", "dict(all_scores(one), f=13.3)"), "image 1 has f = 13.3 for 'All'"),
            (RUN.replace('"All"', '"Object"'), "image 1 has no scores of 'All'"),
        ],
        ids=[
            *("crash", "nothing", "garbage", "dict", "empty", "missing", "twice"),
            *("unknown", "null", "nan", "text", "percent", "category"),
        ],
    )
    def test_never_a_number(self, jar: Path, fake_java: Callable[..., Path], run: str, message: str) -> None:
        with pytest.raises(SpiceError, match=message):
            spice(["a", "b"], [["x"], ["y"]], java=fake_java(run), jar=jar, tokenized=True)

    def test_a_long_story_is_shortened(self, jar: Path, fake_java: Callable[..., Path]) -> None:
        with pytest.raises(SpiceError, match=r"It printed: \.\.\. y+ the end") as caught:
            spice(["a"], [["x"]], java=fake_java("sys.exit('y' * 9000 + ' the end')"), jar=jar, tokenized=True)
        assert len(str(caught.value)) < 3200

    def test_timeout_ends_the_whole_group(self, jar: Path, fake_java: Callable[..., Path], tmp_path: Path) -> None:
        run = f"""
            child = subprocess.Popen(["sleep", "{HANGING_S}"])
            open({str(tmp_path / "child.txt")!r}, "w").write(str(child.pid))
            print("Parsing reference captions", flush=True)
            child.wait()
        """
        with pytest.raises(SpiceError, match=r"(?s)did not finish 1 images in 3 seconds.*Parsing reference captions"):
            spice(["a"], [["x"]], java=fake_java(run), jar=jar, timeout_s=3, tokenized=True)
        assert _gone(int((tmp_path / "child.txt").read_text()))


class TestCache:
    def test_only_new_captions_run(
        self, jar: Path, fake_java: Callable[..., Path], runs: Callable[[], list[str]], tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"java": fake_java(), "jar": jar, "cache_dir": tmp_path / "cache", "tokenized": True}
        first = spice(["a", "a b", "a"], [["x"], ["x"], ["x"]], **options)
        assert first.per_image["spice"].tolist() == [0.01, 0.02, 0.01]
        assert runs() == ["2 -Xmx8g"]  # the same caption of the same references once
        second = spice(["a b", "a", "a"], [["x"], ["x", "y"], ["x"]], **options)
        assert second.per_image["spice"].tolist() == [0.02, 0.01, 0.01]
        assert runs() == ["2 -Xmx8g", "1 -Xmx8g"]

    def test_cached_scores_need_no_java(self, jar: Path, fake_java: Callable[..., Path], tmp_path: Path) -> None:
        options: dict[str, Any] = {"jar": jar, "cache_dir": tmp_path / "cache", "tokenized": True}
        spice(["a"], [["x"]], java=fake_java(), **options)
        assert spice(["a"], [["x"]], java="no-such-java", **options).corpus == {"spice": 0.01}

    def test_another_program_has_other_scores(
        self, jar: Path, fake_java: Callable[..., Path], runs: Callable[[], list[str]], tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"java": fake_java(), "jar": jar, "cache_dir": tmp_path / "cache", "tokenized": True}
        spice(["a"], [["x"]], **options)
        with zipfile.ZipFile(jar, "a") as archive:
            archive.writestr("edu/anu/spice/SpiceScorer.class", b"changed")
        spice(["a"], [["x"]], **options)
        assert len(runs()) == 2

    def test_finished_batches_survive_a_failure(
        self, jar: Path, fake_java: Callable[..., Path], runs: Callable[[], list[str]], tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"jar": jar, "cache_dir": tmp_path / "cache", "tokenized": True, "batch_size": 1}
        fails = 'if captions[0]["test"] == "b": sys.exit("broken")\n' + RUN
        with pytest.raises(SpiceError, match="broken"):
            spice(["a", "b"], [["x"], ["x"]], java=fake_java(fails), **options)
        spice(["a", "b"], [["x"], ["x"]], java=fake_java(), **options)
        assert len(runs()) == 3

    def test_undefined_categories_survive(self, jar: Path, fake_java: Callable[..., Path], tmp_path: Path) -> None:
        both = '{"All": all_scores(one), "Color": dict(all_scores(one), f=None, pr=None, re=None)}'
        program = SpiceProgram(fake_java(RUN.replace('{"All": all_scores(one)}', both)), jar)
        for _ in range(2):
            (scores,) = spice_categories(["a"], [["x"]], program=program, cache_dir=tmp_path / "cache")
            assert math.isnan(scores["Color"]["f"]) and scores["Color"]["fn"] == 1 and scores["All"]["f"] == 0.01

    def test_damaged_file(self, jar: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "spice.sqlite3").write_bytes(b"not a database, " * 100)
        with pytest.raises(SpiceError, match=r"spice.sqlite3: the SPICE cache cannot be used .*not a database"):
            spice(["a"], [["x"]], jar=jar, cache_dir=tmp_path / "cache", tokenized=True)

    @pytest.mark.parametrize("value", [{"All": {"f": 2.0}}, [], {"All": {}}], ids=["range", "list", "empty"])
    def test_damaged_row(self, jar: Path, tmp_path: Path, value: Any) -> None:
        SpiceCache(tmp_path, SpiceProgram(jar=jar).digest()).add({("a", ("x",)): value})
        with pytest.raises(SpiceError, match=r"spice.sqlite3 has "):
            spice(["a"], [["x"]], jar=jar, cache_dir=tmp_path, tokenized=True)

    def test_several_processes(self, tmp_path: Path) -> None:
        code = """
            import importlib.util, sys
            spec = importlib.util.spec_from_file_location("spice_cache", sys.argv[1])  # the package takes seconds
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            cache, own = module.SpiceCache(sys.argv[2], "1.0"), sys.argv[3]
            for row in range(40):
                cache.add({("shared", (str(row),)): {"f": row}, (own, (str(row),)): {"f": row}})
                assert cache.find([("shared", (str(row),))]) == {("shared", (str(row),)): {"f": row}}
        """
        command = [sys.executable, "-c", textwrap.dedent(code), spice_cache.__file__, str(tmp_path / "cache")]
        processes = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in ("one", "two", "three")]
        for process in processes:
            assert (process.communicate(timeout=HANGING_S)[1], process.returncode) == (b"", 0)
        pairs = [(name, (str(row),)) for name in ("shared", "one", "two", "three") for row in range(40)]
        assert len(SpiceCache(tmp_path / "cache", "1.0").find(pairs)) == 160
        assert SpiceCache(tmp_path / "cache", "2.0").find(pairs) == {}


def _gone(pid: int) -> bool:
    """Wait for the end of a process; a dead one whose parent has not asked counts as ended."""
    for _ in range(int(10 * HANGING_S)):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
