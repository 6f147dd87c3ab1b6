"""The card that `hf-captioners evaluate --update-card` fills in."""

from pathlib import Path
from typing import TYPE_CHECKING

from .common import UsageError

if TYPE_CHECKING:
    from ..data.fingerprint import DataFingerprint
    from ..metrics import Evaluation


def check_card(folder: Path, models: list[str] | None) -> None:
    """Refuse, before the work, the card of another captioner, or one that cannot be filled in.

    Args:
        folder (`Path`): of the captioner.
        models (`list[str]`, *optional*): what captions are written by.

    Raises:
        UsageError, ValueError: naming the folder.
    """
    from ..hub.facts import known_facts

    if models is not None and [Path(name).resolve() for name in models] != [folder.resolve()]:
        raise UsageError(f"--update-card {folder}: the scores are of --model {' '.join(models)}; give the same folder")
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UsageError(f"--update-card {folder}: no folder of a captioner (config.json)")
    known_facts(folder)


def update_card(
    folder: Path, source: str, split: str | None, evaluation: "Evaluation", data: "DataFingerprint", speed: str | None
) -> None:
    """Add scores, and where it was measured the time of a caption, to the card of a captioner's folder.

    Args:
        folder (`Path`): of the captioner.
        source (`str`), split (`str`, *optional*): what was scored.
        evaluation ([`Evaluation`]): its scores.
        data ([`DataFingerprint`]): of what was scored.
        speed (`str`, *optional*): the time.

    Raises:
        ValueError, OSError: the card cannot be read or written.
    """
    from ..hub.card import add_results
    from ..hub.facts import CardResults

    note = f"Scored on {len(evaluation.image_ids):,} pictures (fingerprint of the data {data})."
    results = CardResults(evaluation.corpus, note, evaluation.signature_text, Path(source).resolve().stem, split)
    add_results(folder, results, **({} if speed is None else {"speed": speed}))
