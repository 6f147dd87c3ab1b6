"""`hf-captioners caption --sidecar .txt`: captions in files beside the pictures."""

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .caption_out import Output, Sources, share_of_process
from .common import UsageError, mistakes

if TYPE_CHECKING:
    from ..inference.sidecars import Sidecars


class SidecarOutput(Output):
    """A file beside each picture of this process's share.

    Args:
        sidecars ([`Sidecars`]): the writer.
        existing (`int`): how many pictures of the share have a file already.
    """

    def __init__(self, sidecars: "Sidecars", existing: int) -> None:
        from ..data.json_lines import NameSet
        from ..inference.tally import Tally

        super().__init__(Tally())
        self.sidecars, self.existing, self.named = sidecars, existing, NameSet()
        self.share = share_of_process()

    def __exit__(self, *error: Any) -> None:
        self.sidecars.__exit__(*error)

    def remaining(self, count: int | None) -> int | None:
        return None if count is None or self.share.number > 1 else max(count - self.existing, 0)

    def rows(self, read: Sources) -> Iterator[Mapping[str, Any]]:
        from ..inference.sidecars import real_name

        for _, source in self.share.of(read(lambda name: True)):
            for row in source:
                if not self.named.add(real_name(row["image"])):
                    self.tally.repeated += 1
                elif self.sidecars.path_of(row["image"]).exists():
                    self.tally.skipped += 1
                else:
                    yield row

    def write(self, record: Mapping[str, Any]) -> None:
        self.sidecars.write(record)
        self.tally.add(record)

    def finish(self) -> str:
        return "files beside the pictures: "


def open_sidecars(args: argparse.Namespace) -> SidecarOutput:
    """The output of a run, checked before any work.

    Raises:
        UsageError: pictures that cannot have files beside them, or that have some already.
    """
    from ..inference.image_files import find_images
    from ..inference.sidecars import SidecarError, Sidecars

    with mistakes(SidecarError):
        sidecars = Sidecars(args.sidecar)
        existing = sidecars.check(find_images(args.paths, args.recursive), share_of_process())
    if existing and not args.skip_existing:
        raise UsageError(
            f"--sidecar {args.sidecar}: {existing} of the pictures have such a file; "
            "--skip-existing leaves these pictures out"
        )
    return SidecarOutput(sidecars, existing)
