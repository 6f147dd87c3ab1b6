"""Facts of a training for the captioner's card: data, steps, rates, and the scores of what is kept."""

from __future__ import annotations

import csv
import logging
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers

from .._version import __version__
from ..data.fingerprint import fingerprint_of_rows
from ..data.rows import FeatureDataset, training_captions
from ..families import without_adapters
from ..hub.facts import CardFacts, CardResults
from ..hub.inheritance import inherited_facts

logger = logging.getLogger(__name__)

_EMISSIONS = "emissions.csv"
_NO_SCORES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def card_facts(trainer: Any, **known: Any) -> CardFacts:
    """Gather what a trainer knows of its captioner.

    Args:
        trainer ([`CaptionerTrainer`]): after training.
        known: further fields of [`CardFacts`], or other values of them; `dataset` and `split` of its scores.

    Returns:
        [`CardFacts`]
    """
    model = without_adapters(trainer.accelerator.unwrap_model(trainer.model))
    scores, note = _scores(trainer)
    data = {"dataset": known.pop("dataset", None), "split": known.pop("split", None)}
    emissions = read_emissions(Path(trainer.args.output_dir))
    facts: dict[str, Any] = {
        "name": Path(trainer.args.output_dir).resolve().name,
        "config": model.config.to_dict(),
        "model_class": type(model).__name__,
        "repo_id": trainer.args.hub_model_id,
        "adapters": model is not trainer.accelerator.unwrap_model(trainer.model),
        "parameters": sum(one.numel() for one in model.parameters()),
        "training": _training(trainer, emissions),
        "emissions": emissions,
        "results": [CardResults(scores, note, trainer.signature, **data)] if scores else [],
    }
    return CardFacts(**{**facts, **inherited_facts(trainer.started_from), **known})


def read_emissions(folder: Path) -> dict[str, Any]:
    """CO2-equivalents that CodeCarbon has measured of the trainings into a folder, as the Hub has them.

    Args:
        folder (`Path`): with CodeCarbon's `emissions.csv`, which `report_to="codecarbon"` writes.

    Returns:
        `dict[str, Any]`: `emissions` in grams, `source` and `hardware_used`; empty without such a file, or with one
        that has no numbers.
    """
    path = folder / _EMISSIONS
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        grams = 1000 * sum(float(row["emissions"]) for row in rows)  # the file has kilograms
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        logger.warning("%s is not on the card: no emissions as CodeCarbon writes them: %r", path, error)
        return {}
    hardware = {row.get("gpu_model") or row.get("cpu_model") for row in rows} - {None, ""}
    return {
        "emissions": round(grams, 3),
        "source": "CodeCarbon",
        "hardware_used": ", ".join(sorted(map(str, hardware))),
    }


def _training(trainer: Any, emissions: dict[str, Any]) -> dict[str, str]:
    """The training by labels, as a table of the card has them."""
    args, state = trainer.args, trainer.state
    images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    learned = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    total = sum(one.numel() for one in trainer.model.parameters())
    schedule = args.lr_scheduler_type
    source = trainer.started_from
    facts = {
        "trainer": type(trainer).__name__,
        "started from": Path(source).name if Path(source).is_dir() else source,
        "data": _data(trainer),
        "fingerprint of the data": _fingerprint(trainer.train_dataset),
        "steps": f"{state.global_step:,} of the optimizer, {state.epoch or 0:.3g} epochs",
        "batch": f"{images:,} pictures a step",
        "learning rate": f"{args.learning_rate:g}, {schedule.value if isinstance(schedule, Enum) else schedule}",
        "parameters": f"{total:,}, of which {learned:,} learned; of the backbone: {args.train_backbone}",
        "seed": str(args.seed),
        "time": _time(trainer),
        "carbon": f"{emissions['emissions']:g} g of CO2-equivalents, measured by CodeCarbon" if emissions else "",
        "software": f"hf_captioners {__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
    }
    return {label: text for label, text in facts.items() if text}


def _data(trainer: Any) -> str:
    from datasets import Dataset

    rows, evaluation = trainer.train_dataset, trainer.eval_dataset
    if not isinstance(rows, (Dataset, FeatureDataset)):
        return ""
    said = f"{len(rows):,} pictures"
    if "captions" in (rows.dataset if isinstance(rows, FeatureDataset) else rows).column_names:
        said += f" with {len(training_captions(rows)):,} captions"
    return said + (f", {len(evaluation):,} to evaluate on" if isinstance(evaluation, (Dataset, FeatureDataset)) else "")


def _fingerprint(rows: Any) -> str:
    """The fingerprint of the training pictures and their captions."""
    from datasets import Dataset

    table = rows.dataset if isinstance(rows, FeatureDataset) else rows
    if not isinstance(table, Dataset) or not {"image_id", "captions"} <= set(table.column_names):
        return ""
    return str(fingerprint_of_rows(table))


def _time(trainer: Any) -> str:
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    if not seconds:
        return ""
    device = trainer.args.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    minutes, rest = divmod(round(seconds[-1]), 60)
    return f"{f'{minutes:,} min ' if minutes else ''}{rest} s on {trainer.args.world_size} x {name}"


def _scores(trainer: Any) -> tuple[dict[str, float], str]:
    """Scores of the captioner that is kept, and a sentence about them: the best one's, or the last evaluation's."""
    args, state = trainer.args, trainer.state
    evaluations: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        names = {name: name.removeprefix("eval_") for name in entry if name.startswith("eval_")}
        scores = {name: entry[logged] for logged, name in names.items() if name not in _NO_SCORES}
        if scores:
            evaluations[entry["step"]] = scores
    if not evaluations:
        return {}, ""
    best = state.best_global_step if args.load_best_model_at_end else None
    step = best if best in evaluations else max(evaluations)
    kept = f", the best of {len(evaluations)} evaluations by {args.metric_for_best_model}" if step == best else ""
    return evaluations[step], f"On the evaluation pictures after step {step:,} of {state.global_step:,}{kept}."
