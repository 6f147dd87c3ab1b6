"""Document frequencies that the originals pickled, for CIDEr-D rewards.

SATIC and the self-critical code base keep `coco-train-idxs.p` and `coco-train-words.p`, SCD-Net
`mscoco_train_cider.pkl`. All hold a dict with `document_frequency`, n-gram -> number of images, and `ref_len`. N-grams
are tuples of words, or of token ids as strings or integers, where 0 is the end of the caption. `ref_len` is the number
of images, or in SCD-Net its natural logarithm; the logarithm of a whole number above 1 is never whole, which tells them
apart.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..data.files import check_can_be_made
from ..data.progress import progress
from ..metrics.cider.document_frequency import DocumentFrequencies, DocumentFrequencyError
from .command import Command
from .pickle_limits import show
from .safe_load import CheckpointError, load_plain_pickle
from .stand_ins import DEFAULTDICT, NUMBERS
from .writing import FrequencyReport

MAX_BYTES = 1024**3  # COCO's have four million n-grams
SUFFIX = ".safetensors"  # by which `hf-captioners evaluate` knows a saved file


def convert(checkpoint: str | Path, out_path: str | Path, *, overwrite: bool = False) -> FrequencyReport:
    """Convert pickled document frequencies to a safetensors file.

    Args:
        checkpoint (`str` or `Path`): the pickle.
        out_path (`str` or `Path`): the file to write, `*.safetensors`. It appears complete or not at all.
        overwrite (`bool`, *optional*, defaults to `False`): replace document frequencies that lie there.

    Returns:
        [`FrequencyReport`]

    Raises:
        FileNotFoundError, CheckpointError: see [`convert_document_frequencies`].
        FileExistsError: `out_path` exists and may not be replaced.
        ValueError: `out_path` has another suffix.

    Example:

    ```python
    >>> import pickle, tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.conversion import convert
    >>> folder = Path(tempfile.mkdtemp())
    >>> counts = {("a",): 2.0, ("a", "dog"): 1.0}
    >>> _ = (folder / "words.p").write_bytes(pickle.dumps({"document_frequency": counts, "ref_len": 3}))
    >>> report = convert("document_frequency", folder / "words.p", folder / "words.safetensors")
    >>> report.ngrams, report.number_of_images, report.token_ids
    (2, 3, False)

    ```
    """
    target = _check_out_path(out_path, overwrite)
    frequencies = convert_document_frequencies(checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_out_path(out_path, overwrite)  # reading COCO's takes half a minute; the file may be there by now
    frequencies.save(target)
    return FrequencyReport(target, len(frequencies), frequencies.number_of_images, frequencies.token_ids)


COMMAND = Command(
    "document_frequency",
    convert,
    checkpoint="the pickle, such as coco-train-words.p",
    example="coco-train-words.p --out coco-train-words.safetensors",
    out=f"file to write, *{SUFFIX}, which evaluate --document-frequencies and rewards read",
    out_metavar="FILE",
)


def convert_document_frequencies(path: str | Path, max_bytes: int = MAX_BYTES) -> DocumentFrequencies:
    """Read the pickled document frequencies of an original, without running anything that is inside.

    Args:
        path (`str` or `Path`): the pickle.
        max_bytes (`int`, defaults to 1 GiB): larger files are refused unread.

    Returns:
        [`DocumentFrequencies`]: of words, or of token ids, which are words such as "12".

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is something else, or has impossible counts.

    Example:

    ```python
    >>> import pickle, tempfile
    >>> from hf_captioners.conversion.document_frequency import convert_document_frequencies
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(pickle.dumps({"document_frequency": {("5",): 2.0, ("5", "0"): 1.0}, "ref_len": 3}))
    ...     file.flush()
    ...     convert_document_frequencies(file.name)
    DocumentFrequencies(2 n-grams of up to 4 words in 3 images)

    ```
    """
    content = load_plain_pickle(path, max_bytes, stand_ins={**DEFAULTDICT, **NUMBERS})
    try:
        counts, images = content["document_frequency"], content["ref_len"]
        shown = progress(counts.items(), desc="reading n-grams", unit_scale=True)
        return DocumentFrequencies.from_counts(
            {_ngram(ngram): _number(count) for ngram, count in shown}, _number_of_images(images)
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: expected a dict with 'document_frequency', n-grams and their counts, and 'ref_len', the number "
            f"of images or its logarithm ({type(error).__name__}: {error})"
        ) from error
    except DocumentFrequencyError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_out_path(out_path: str | Path, overwrite: bool) -> Path:
    """The file, absolute, if it may be written (again)."""
    path = Path(out_path).resolve()
    if path.suffix != SUFFIX:
        raise ValueError(f"{out_path}: document frequencies become a file; expected a name that ends in {SUFFIX}")
    check_can_be_made(path)
    if not path.exists():
        return path
    if not path.is_file():
        raise FileExistsError(f"{out_path}: is not a file; give the name of a new one")
    if not overwrite:
        raise FileExistsError(f"{out_path}: exists; give another name, or overwrite=True to replace a conversion")
    try:
        DocumentFrequencies.load(path)
    except DocumentFrequencyError as error:
        raise FileExistsError(f"{out_path}: exists and holds no document frequencies; not replaced") from error
    return path


def _ngram(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise DocumentFrequencyError(f"{show(value)} is no n-gram; expected a tuple of token ids")
    return tuple(str(word) if type(word) is int else word for word in value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DocumentFrequencyError(f"{show(value)} is no number of images")
    return value


def _number_of_images(ref_len: Any) -> int:
    number = _number(ref_len)
    if number == int(number):
        return int(number)
    images = math.exp(min(number, 100))
    if not math.isclose(images, round(images), rel_tol=1e-9):
        raise DocumentFrequencyError(f"ref_len is {show(ref_len)}, neither a number of images nor the logarithm of one")
    return round(images)
