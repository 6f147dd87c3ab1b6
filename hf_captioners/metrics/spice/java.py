"""The SPICE program: a check of its parts, a process with a time limit, and a check of its output.

SPICE-1.0 (Anderson et al., 2016) is a Java program. Its jar comes with pycocoevalcap; the two jars of Stanford CoreNLP
3.6.0 that it needs do not, and nothing is downloaded here. It runs on Java 8 to 14: it writes its results with the
JavaScript engine that Java 15 removed. Its own cache of parsed captions (`-cache`) is not used: that one fails on Java
16 and newer, and when several processes share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...data.files import working_folder
from ...extras import install
from .cache import Pair, SpiceError

CategoryScores: TypeAlias = dict[str, dict[str, float]]  # "All", "Object", … -> "f", "pr", "re", "tp", "fp", "fn"

OLDEST_JAVA, NEWEST_JAVA = 8, 14
JAR_NAME = "spice-1.0.jar"
CORENLP_ADVICE = (
    "both stanford-corenlp-3.6.0 jars are in https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip; "
    "the others are beside the jar in SPICE-1.0.zip"
)
SHOWN_CHARACTERS = 3000


@dataclass(frozen=True)
class SpiceProgram:
    """The SPICE program and how to run it.

    Args:
        java (`str` or `Path`, defaults to `"java"`): the Java program, by name or path.
        jar (`str` or `Path`, *optional*): `spice-1.0.jar`, with its libraries in `lib` beside it; by default that of an
            installed pycocoevalcap.
        memory (`str`, defaults to `"8g"`): most that Java may take, as in its option `-Xmx`.
        timeout_s (`float`, defaults to 3600): seconds for one run.
        threads (`int`, *optional*): of the parser, by default one per processor.

    Example:

    ```python
    >>> from hf_captioners.metrics.spice.java import SpiceProgram
    >>> SpiceProgram(java="no-such-java", jar="spice-1.0.jar").problems()[1]
    'the jar spice-1.0.jar does not exist'

    ```
    """

    java: str | Path = "java"
    jar: str | Path | None = None
    memory: str = "8g"
    timeout_s: float = 3600.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9][0-9]*[kKmMgG]?", self.memory):
            raise ValueError(f"memory is {self.memory!r}, expected a size such as '8g' or '4000m'")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}, expected seconds above 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}, expected at least 1")

    def jar_path(self) -> Path:
        """The path of the jar.

        Returns:
            `Path`

        Raises:
            SpiceError: it was not given and there is no pycocoevalcap.
        """
        if self.jar is not None:
            return Path(self.jar)
        package = importlib.util.find_spec("pycocoevalcap")
        if package is None or not package.submodule_search_locations:
            raise SpiceError(f"{JAR_NAME} is needed: give its path as jar=, or {install('eval')}")
        return Path(package.submodule_search_locations[0]) / "spice" / JAR_NAME

    def digest(self) -> str:
        """A hash of the jar's content: other programs may give other scores.

        Returns:
            `str`

        Raises:
            SpiceError: there is no jar.
        """
        try:
            return hashlib.sha256(self.jar_path().read_bytes()).hexdigest()
        except OSError as error:
            raise SpiceError(f"the jar {self.jar_path()} cannot be read: {error}") from error

    def problems(self) -> list[str]:
        """The reasons why SPICE cannot run here.

        Returns:
            `list[str]`: one line each; empty if nothing is missing.
        """
        return [problem for problem in (self._java_problem(), self._files_problem()) if problem]

    def check(self) -> None:
        """Raise an error where SPICE cannot run.

        Raises:
            SpiceError: Java or files are missing or not right. All of it is named.
        """
        problems = self.problems()
        if problems:
            raise SpiceError("SPICE cannot run here: " + "; and ".join(problems))

    def score(self, pairs: Sequence[Pair]) -> list[CategoryScores]:
        """Score captions in one run.

        Args:
            pairs (`Sequence[Pair]`): captions with their references, tokenised.

        Returns:
            `list[CategoryScores]`: of each pair, see [`parse_results`].

        Raises:
            SpiceError: the program fails, takes too long, or writes something else than its results.
        """
        rows = [{"image_id": row, "test": test, "refs": list(refs)} for row, (test, refs) in enumerate(pairs)]
        # what a killed run has left is removed by the next one
        with working_folder(Path(tempfile.gettempdir()), "hf_captioners_spice_", mode=0o700) as folder:
            source, target = folder / "captions.json", folder / "scores.json"
            source.write_text(json.dumps(rows), "ascii")  # escaped: Java reads files in the encoding of the locale
            threads = [] if self.threads is None else ["-threads", str(self.threads)]
            options = ["-out", str(target), "-subset", "-silent", *threads]
            java = Path(shutil.which(self.java) or self.java).absolute()  # the program starts in another folder
            command = [str(java), f"-Xmx{self.memory}", "-jar", str(self.jar_path().absolute()), str(source)]
            printed = _run([*command, *options], folder, self.timeout_s, len(rows))
            try:
                content = target.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise SpiceError(f"SPICE wrote no result ({error}). It printed: {printed}") from error
        return parse_results(content, len(rows))

    def _java_problem(self) -> str | None:
        advice = f"Give a Java {OLDEST_JAVA} to {NEWEST_JAVA} (8 and 11 are maintained) as java=, by its path"
        if shutil.which(self.java) is None:
            return f"java={str(self.java)!r} was not found. {advice}"
        try:
            run = subprocess.run(
                [str(self.java), "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{self.java} -version does not work: {error}. {advice}"
        printed = (run.stderr + run.stdout).decode("utf-8", "replace").strip()
        version = re.search(r'version "((?:1\.)?([0-9]+)[^"]*)"', printed)
        if run.returncode or version is None:
            return f"{self.java} -version says {printed[:200]!r}, which is no Java. {advice}"
        if OLDEST_JAVA <= int(version[2]) <= NEWEST_JAVA:
            return None
        too_new = (
            ", as it writes its results with the JavaScript engine (Nashorn) that Java 15 removed; --add-opens does "
            "not bring that back"
        )
        reason = too_new if int(version[2]) > NEWEST_JAVA else ""
        return f"{self.java} is Java {version[1]}, SPICE needs {OLDEST_JAVA} to {NEWEST_JAVA}{reason}. {advice}"

    def _files_problem(self) -> str | None:
        try:
            jar = self.jar_path()
            if not jar.exists():
                return f"the jar {jar} does not exist"
            libraries = _class_path(jar)
        except SpiceError as error:
            return str(error)
        missing = [name for name in libraries if not (jar.parent / name).is_file()]
        if not missing:
            return None
        return f"{', '.join(missing)} missing in {jar.absolute().parent} ({CORENLP_ADVICE})"


def parse_results(content: str, number: int) -> list[CategoryScores]:
    """The scores in what SPICE writes.

    Args:
        content (`str`): JSON, a list with an object `{"image_id": …, "scores": {"All": {…}, "Object": {…}, …}}` for
            each image.
        number (`int`): of images; their ids are 0, 1, 2, …, in any order.

    Returns:
        `list[CategoryScores]`: of each image in the order of the ids. `"All"` is SPICE. A category of which neither the
        caption nor the references have anything has NaN as `"f"`, `"pr"` and `"re"`.

    Raises:
        SpiceError: the content is something else, an image is missing or there twice, or a score is no number in 0..1.

    Example:

    ```python
    >>> from hf_captioners.metrics.spice.java import parse_results
    >>> scores = '{"All": {"f": 0.4, "pr": 0.5, "re": 0.33, "tp": 1, "fp": 1, "fn": 2, "numImages": 1}}'
    >>> parse_results('[{"image_id": 0, "scores": ' + scores + '}]', 1)[0]["All"]["f"]
    0.4

    ```
    """
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SpiceError(f"SPICE's result is not JSON ({error}): {content[:200]!r}") from error
    if not isinstance(rows, list):
        raise SpiceError(f"SPICE's result is a {type(rows).__name__}, expected a list: {content[:200]!r}")
    scores_by_image: dict[int, CategoryScores] = {}
    for row in rows:
        image = row.get("image_id") if isinstance(row, dict) else None
        if type(image) is not int or not 0 <= image < number or image in scores_by_image:
            raise SpiceError(f"SPICE's result has a row that is of no image, or of one twice: {str(row)[:200]}")
        scores_by_image[image] = read_scores(row.get("scores"), f"SPICE's result of image {image}")
    missing = [image for image in range(number) if image not in scores_by_image]
    if missing:
        raise SpiceError(f"SPICE's result has no scores of image {missing[0]} ({len(missing)} of {number} missing)")
    return [scores_by_image[image] for image in range(number)]


def read_scores(scores: Any, where: str) -> CategoryScores:
    """The scores of one image, checked.

    Args:
        scores (`Any`): as JSON holds them; null is NaN.
        where (`str`): for messages.

    Returns:
        `CategoryScores`

    Raises:
        SpiceError: see [`parse_results`].
    """
    if not isinstance(scores, Mapping) or not isinstance(scores.get("All"), Mapping):
        raise SpiceError(f"{where} has no scores of 'All': {str(scores)[:200]}")
    numbers: CategoryScores = {}
    for category, values in scores.items():
        if not isinstance(values, Mapping):
            raise SpiceError(f"{where} has no numbers for {category!r}: {str(values)[:200]}")
        numbers[category] = {}
        for name in ("f", "pr", "re", "tp", "fp", "fn"):
            value = values.get(name, "missing")
            undefined = value is None or (isinstance(value, float) and math.isnan(value))
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if undefined and category != "All" and name in ("f", "pr", "re"):
                numbers[category][name] = math.nan
            elif not undefined and is_number and (0 <= value <= 1 if name in ("f", "pr", "re") else value >= 0):
                numbers[category][name] = float(value)
            else:
                raise SpiceError(f"{where} has {name} = {value!r} for {category!r}, expected a number")
    return numbers


def _class_path(jar: Path) -> list[str]:
    """The libraries that the jar names, relative to its folder."""
    try:
        with zipfile.ZipFile(jar) as archive:
            manifest = archive.read("META-INF/MANIFEST.MF").decode("utf-8")
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise SpiceError(f"{jar} is not a jar: {error}") from error
    unfolded = re.sub(r"\r?\n ", "", manifest)  # long lines are continued after a space
    class_path = re.search(r"^Class-Path:(.*)$", unfolded, re.MULTILINE)
    return class_path[1].split() if class_path else []


def _run(command: list[str], folder: Path, timeout_s: float, images: int) -> str:
    """Run a program in its own process group, end the group if it takes too long, and return what it printed."""
    log = folder / "printed.txt"  # a file: a pipe would stay open as long as any process of the group
    with log.open("wb") as printed:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise SpiceError(f"{command[0]} cannot be run: {error}") from error
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            raise SpiceError(
                f"SPICE did not finish {images} images in {timeout_s:g} seconds; give more timeout_s or a smaller "
                f"batch_size. It printed: {_end_of(log)}"
            ) from error
        except BaseException:  # such as KeyboardInterrupt: Java would run on
            _kill(process)
            raise
    if process.returncode:
        raise SpiceError(f"SPICE failed with exit status {process.returncode}. It printed: {_end_of(log)}")
    return _end_of(log)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended by itself just now
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _end_of(log: Path) -> str:
    text = log.read_bytes().decode("utf-8", "replace").strip()
    return text if len(text) <= SHOWN_CHARACTERS else f"... {text[-SHOWN_CHARACTERS:]}"
