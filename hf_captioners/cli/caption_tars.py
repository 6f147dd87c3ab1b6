"""`hf-captioners caption --out OUT --write-tar`: the archives of the pictures as tars, with the captions added."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .caption_out import RunOutput, open_run
from .common import mistakes

if TYPE_CHECKING:
    from ..inference.caption_run import CaptionRun
    from ..inference.captioned_tars import CaptionedTars


class TarOutput(RunOutput):
    """Records of a run, and a tar of each archive of this process's share as soon as all its pictures have one.

    Args:
        run ([`CaptionRun`]): the run; its records are in the folder, too.
        tars ([`CaptionedTars`]): the writer.
        archives (`list`): all sources, in their order.
    """

    def __init__(self, run: "CaptionRun", tars: "CaptionedTars", archives: list[Any]) -> None:
        super().__init__(run, tars.folder)
        self.tars = tars
        first = {str(archive): place for place, archive in reversed([*run.share.of(archives)])}
        self.archives = {place: archives[place] for place in sorted(first.values())}  # by their places among all
        self.captions: dict[int, dict[str, list[str]]] = {}

    def __enter__(self) -> "TarOutput":
        super().__enter__()
        places = {str(archive): place for place, archive in self.archives.items()}
        if self.run.retry_failed:  # written again with what is captioned now
            for record in self.run.records():
                if "error" in record and (place := _place_of(record, places)) is not None:
                    self.tars.path_of(self.archives[place]).unlink(missing_ok=True)
        done = [place for place, archive in self.archives.items() if self.tars.path_of(archive).exists()]
        for place in done:
            del places[str(self.archives.pop(place))]
        for record in self.run.records():
            self._keep(record, _place_of(record, places))
        return self

    def _keep(self, record: Mapping[str, Any], place: int | None) -> None:
        if place is not None and place in self.archives and "error" not in record:
            captions = record["captions"] if "captions" in record else [record["caption"]]
            self.captions.setdefault(place, {})[record["image"]] = captions

    def write(self, record: Mapping[str, Any]) -> None:
        place = self.run.add(record)
        self._write_tars(before=place)
        self._keep(record, place)

    def _write_tars(self, before: int | None) -> None:
        """Write the tars of the archives before a place, in whose order records come; or of all."""
        for place in [place for place in self.archives if before is None or place < before]:
            self.tars.write(self.archives.pop(place), self.captions.pop(place, {}))

    def finish(self) -> str:
        """Write the rest of the tars."""
        self._write_tars(before=None)
        self.run.finish()
        return f"{self.out}: "


def _place_of(record: Mapping[str, Any], places: Mapping[str, int]) -> int | None:
    """The place of the archive that the record's picture is in; members have slashes, too."""
    name = str(record.get("image"))
    while name:
        if name in places:
            return places[name]
        name = name.rpartition("/")[0]
    return None


def check_tars(args: argparse.Namespace) -> None:
    """Check, before any work, that the sources are archives to which captions can be added.

    Raises:
        UsageError: they are not.
    """
    from ..inference.captioned_tars import TarError

    with mistakes(TarError):
        _tars(args).check(_archives(args))


def open_tars(args: argparse.Namespace, model: Any, processor: Any, options: Mapping[str, Any]) -> TarOutput:
    """The output of a run.

    Raises:
        UsageError: see [`open_output`].
    """
    return TarOutput(open_run(args, model, processor, options), _tars(args), _archives(args))


def _tars(args: argparse.Namespace) -> "CaptionedTars":
    from ..inference.captioned_tars import CaptionedTars, TarError

    with mistakes(TarError):
        return CaptionedTars(args.out, args.write_tar)


def _archives(args: argparse.Namespace) -> list[Any]:
    from ..inference.image_files import find_images

    return list(find_images(args.paths, args.recursive))
