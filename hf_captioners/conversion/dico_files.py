"""Weights and configuration of an original DiCO captioner, from a folder, an archive, or two files side by side.

An archive is not unpacked. Its members are listed within limits, names that lead outside are an error, and the contents
of the two files that are needed are copied, counted byte by byte, to names of our own in a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.archive import ArchiveError, Member, opened_archive
from ..data.files import regular_file, working_folder
from ..data.limits import LimitError
from ..data.progress import progress
from .safe_load import load_json
from .writing import ConversionError

CONFIG = "config.json"
WEIGHTS = ("pytorch_model.bin", "model.safetensors")
SHARDED = tuple(f"{name}.index.json" for name in WEIGHTS)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
MAX_MEMBERS = 10_000
MAX_BYTES = 16 * 1024**3  # of all members together; the released captioner has about 1 GB
MAX_RATIO, FREE_BYTES = 20, 64 * 1024**2  # weights hardly shrink; small archives may unpack to this much


@contextmanager
def opened_files(
    checkpoint: str | Path, original_config: str | Path | Mapping[str, Any] | None = None
) -> Iterator[tuple[Path, Any]]:
    """Find the weights, and read the configuration.

    Args:
        checkpoint (`str` or `Path`): a folder, or one that holds that folder; an archive of one (`.zip`, `.tar`,
            `.tar.gz` and the like; told by its content); or a state dict with `config.json` beside it.
        original_config (`str`, `Path` or `Mapping`, *optional*): the configuration, if it is elsewhere.

    Yields:
        `tuple[Path, Any]`: the file of the weights, which must not be used after the block, and the content of the
        configuration.

    Raises:
        FileNotFoundError: there is no such path.
        ConversionError: one of the two is missing; the weights are in several files; an archive is damaged, too large,
            has names that lead outside, or holds several captioners.

    Example:

    ```python
    >>> import tempfile, zipfile
    >>> from hf_captioners.conversion.dico_files import opened_files
    >>> with tempfile.NamedTemporaryFile(suffix=".zip") as file:
    ...     with zipfile.ZipFile(file.name, "w") as archive:
    ...         archive.writestr("dico/config.json", '{"model_type": "vision-encoder-decoder"}')
    ...         archive.writestr("dico/pytorch_model.bin", b"...")
    ...         archive.writestr("dico/training_args.bin", b"never opened")
    ...     with opened_files(file.name) as (weights, content):
    ...         sorted(path.name for path in weights.parent.iterdir()), content
    (['config.json', 'pytorch_model.bin'], {'model_type': 'vision-encoder-decoder'})

    ```
    """
    path = Path(checkpoint)
    if path.is_dir() or not _is_archive(regular_file(path, "checkpoint")):
        yield _find(path, str(path), original_config)
        return
    # the weights of a killed conversion are removed by the next one
    with working_folder(Path(tempfile.gettempdir()), "hf_captioners_", mode=0o700) as folder:
        with _listed(path) as members:
            _take(path, members, folder, needs_config=original_config is None)
        yield _find(folder, str(path), original_config)


def _find(path: Path, where: str, original_config: str | Path | Mapping[str, Any] | None) -> tuple[Path, Any]:
    folder, weights = path.parent, path
    if path.is_dir():
        folder = _folder_with_weights(path, where)
        names = [file.name for file in folder.iterdir() if file.is_file()]
        weights = folder / _weights_of(names, where)
    elif path.name in SHARDED:
        _weights_of([path.name], where)
    if isinstance(original_config, Mapping):
        return weights, original_config
    if original_config is not None:
        return weights, load_json(original_config)
    if not (folder / CONFIG).is_file():
        raise ConversionError(
            f"{where}: there is no {CONFIG} with the weights, which has the sizes; give it as original_config"
        )
    return weights, load_json(folder / CONFIG)


def _folder_with_weights(path: Path, where: str) -> Path:
    """The folder itself, or the one in it that has weights, as an unpacked archive leaves it."""
    places = [
        folder
        for folder in (path, *sorted(path.iterdir()))
        if folder.is_dir() and any((folder / name).is_file() for name in (*WEIGHTS, *SHARDED))
    ]
    if path in places or not places:
        return path
    if len(places) > 1:
        raise ConversionError(
            f"{where}: weights are in {', '.join(folder.name for folder in places)}; give one of these"
        )
    return places[0]


def _weights_of(names: Collection[str], where: str) -> str:
    """The name of the weights among the names in a folder."""
    for name in WEIGHTS:
        if name in names:
            return name
    for name in SHARDED:
        if name in names:
            raise ConversionError(
                f"{where}: the weights are in the several files of {name}; put them into one {WEIGHTS[0]} first"
            )
    raise ConversionError(f"{where}: holds no {' and no '.join(WEIGHTS)}")


def _is_archive(path: Path) -> bool:
    """Tell an archive from a state dict, which `torch.save` writes as a zip, too."""
    try:
        with _listed(path) as members:
            return not any(PurePosixPath(name).name == "data.pkl" for name in members)
    except ConversionError:
        if path.suffix.lower() in ARCHIVES:
            raise
        return False


@contextmanager
def _listed(path: Path) -> Iterator[dict[str, Member]]:
    """The members of an archive by name, all of them within the limits."""
    allowed = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))
    try:
        with opened_archive(path, allowed, MAX_MEMBERS) as members:
            listed = {}
            for member in progress(members, desc=f"listing {path.name}", unit="file"):
                if member.problem:
                    raise ConversionError(
                        f"{path}: the member {member.name!r} {member.problem}; such archives are refused"
                    )
                listed[member.name] = member
            yield listed
    except (ArchiveError, LimitError) as error:
        raise ConversionError(f"{error}; give the folder or the weights") from error


def _take(path: Path, members: Mapping[str, Member], folder: Path, needs_config: bool) -> None:
    """Copy configuration and weights out of the one folder of the archive that has them."""
    all_names = (*WEIGHTS, *SHARDED)
    places = sorted({str(PurePosixPath(name).parent) for name in members if PurePosixPath(name).name in all_names})
    if len(places) != 1:
        problem = f"{' and '.join(WEIGHTS)} are in none" if not places else f"weights are in {', '.join(places)}"
        raise ConversionError(f"{path}: expected weights in one folder of the archive, but {problem}")
    available = {PurePosixPath(name).name: name for name in members if str(PurePosixPath(name).parent) == places[0]}
    weights = _weights_of(available, str(path))
    if needs_config and CONFIG not in available:
        raise ConversionError(f"{path}: there is no {CONFIG} beside {available[weights]}; give it as original_config")
    for name in [weights, *([CONFIG] if needs_config else [])]:
        _unpack(members[available[name]], folder / name)


def _unpack(member: Member, target: Path) -> None:
    shown = progress(desc=f"unpacking {target.name}", total=member.size, unit="B", unit_scale=True)
    try:
        with target.open("wb") as file, shown as bar:
            for piece in member.content():
                file.write(piece)
                bar.update(len(piece))
    except OSError as error:
        reason = f"{error.strerror} for the unpacked weights; TMPDIR may name another disk"
        raise OSError(error.errno, reason, str(target.parent.parent)) from error
