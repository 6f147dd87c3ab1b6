"""Reports that a training leaves in its output folder: a contact sheet, curves, and the captioner's card."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.rows import FeatureDataset, undecoded
from ...hub.facts import CardSample
from ...modeling.captioner_adapters import may_be_on_hub
from ...reports.contact_sheet import SheetItem, contact_sheet
from ...reports.run_plots import plot_runs, read_run
from ...training.data_arguments import DataArguments, data_set_name
from ...training.rows import file_name
from .captioner_arguments import CaptionerArguments

logger = logging.getLogger(__name__)

SHEET, CURVES = "contact_sheet.png", "training.png"
ON_THE_SHEET, ON_THE_CARD = 24, 20  # pictures


@dataclass
class ReportArguments:
    """Options of what a training leaves beside the captioner.

    Attributes:
        report (`bool`, defaults to `True`): write, at the end, a contact sheet of evaluation pictures with their
            captions, the curves of what was logged, and the captioner's card, into the output folder.
    """

    report: bool = field(
        default=True,
        metadata={
            "help": f"Leave {SHEET} of evaluation pictures, curves ({CURVES}) and a card (README.md) in the output "
            "folder."
        },
    )


def leave_report(trainer: Any, data: DataArguments, captioner: CaptionerArguments) -> None:
    """Write contact sheet, curves and card; what cannot be made is left out with a warning, as the captioner is saved.

    Args:
        trainer ([`CaptionerTrainer`]): after training; all processes call this.
        data ([`DataArguments`]): names the data.
        captioner ([`CaptionerArguments`]): names what training started from.
    """
    items = _captioned(trainer)
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    curves = _made(CURVES, lambda: plot_runs([read_run(folder)], folder / CURVES))
    pictured = [item for _, item in items if item.image is not None]
    title = f"{len(pictured)} of {len(trainer.eval_dataset or ())} evaluation pictures, captions as they came"
    sheet = _made(SHEET, lambda: contact_sheet(pictured, folder / SHEET, title=title)) if pictured else None
    named = [CardSample(name, item.caption, item.references[0]) for name, item in items[:ON_THE_CARD]]
    name, split = data_set_name(data)
    if captioner.model is None and captioner.backbone is not None and may_be_on_hub(captioner.backbone):
        trainer.card_fields.update(base_models=[captioner.backbone])
    trainer.card_fields.update(
        dataset=name,
        split=split,
        samples=named,
        curves=curves,
        contact_sheet=sheet,
    )
    trainer.create_model_card()
    logger.info("%s has the captioner, and %s", folder, ", ".join(filter(None, ("README.md", curves, sheet))))


def _captioned(trainer: Any) -> list[tuple[str, SheetItem]]:
    """Names and cards of some evaluation pictures, in equal steps, with the captioner's default decoding."""
    rows = trainer.eval_dataset
    table = rows.dataset if isinstance(rows, FeatureDataset) else rows
    if not table or "captions" not in table.column_names:
        return []
    indices = range(0, len(table), -(-len(table) // ON_THE_SHEET))
    some = table.select(indices)
    try:
        features = isinstance(rows, FeatureDataset)
        captions = trainer.generate_captions(FeatureDataset(some, rows.store) if features else some, options={})
    except (ValueError, OSError) as error:
        logger.warning("no captions of evaluation pictures: %s", error)
        return []
    items = []
    for caption, row in zip(captions, undecoded(some), strict=True):
        image = row.get("image")
        name = Path(file_name(image) or row.get("file_name") or str(row["image_id"])).name
        source = (image["path"] if image["bytes"] is None else image["bytes"]) if isinstance(image, dict) else image
        items.append((name, SheetItem(source, caption, row["captions"])))
    return items


def _made(name: str, make: Callable[[], object]) -> str | None:
    """The name of a file, once it is made."""
    try:
        make()
    except (ValueError, OSError, ImportError) as error:
        logger.warning("no %s: %s", name, error)
        return None
    return name
