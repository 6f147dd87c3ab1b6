"""Two stages of SCD-Net that were trained one by one, joined to the folder of a cascade."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..hub.card import updated_card, write_card
from ..hub.facts import CardFacts
from ..hub.inheritance import inherited_facts
from ..modeling.captioner_detector import own_detector
from ..modeling.modeling_scdnet import ScdnetForImageCaptioning
from .writing import ConversionError, check_out_dir, new_folder

logger = logging.getLogger(__name__)


def join_stages(first: tuple[Any, Any], second: tuple[Any, Any], out_dir: str | Path, overwrite: bool = False) -> Path:
    """Write a cascade of both stages, with the second one's processor, caption retriever and detector, and a card.

    Args:
        first, second (`tuple[PreTrainedModel, ProcessorMixin]`): the stages and their processors, as `load_captioners`
            gives them.
        out_dir (`str` or `Path`): the folder to write; new or empty. It appears complete or not at all.
        overwrite (`bool`, defaults to `False`): replace a captioner of this kind that is there.

    Returns:
        `Path`: `out_dir`.

    Raises:
        FileExistsError, OSError: `out_dir` may not be written.
        ConversionError: they are not a first and a second stage of the same words, sizes and backbone.
    """
    check_out_dir(out_dir, "scdnet", overwrite)
    names = [model.name_or_path for model, _ in (first, second)]
    for name, (model, _), is_second in zip(names, (first, second), (False, True), strict=True):
        if not isinstance(model, ScdnetForImageCaptioning) or model.is_cascade:
            kind = "a cascade already" if isinstance(model, ScdnetForImageCaptioning) else f"a {type(model).__name__}"
            raise ConversionError(f"{name}: is {kind}, expected a stage of SCD-Net")
        if model.config.sees_previous != is_second:
            own, other = ("first", "second") if is_second else ("second", "first")
            raise ConversionError(f"{name}: is a {own} stage, expected the {other} one (config.sees_previous)")
    _check_words(" and ".join(names), *(processor.tokenizer.get_vocab() for _, processor in (first, second)))
    try:
        model = ScdnetForImageCaptioning.from_stages(first[0], second[0])
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"{' and '.join(names)}: {' '.join(str(error).split())}") from error
    detector, is_inside = own_detector(second[0].config, second[0].name_or_path)
    if detector is not None and not is_inside:
        model.config.detector = detector  # as seen from the new folder it would be another
    with new_folder(out_dir, "scdnet", overwrite) as folder:
        for part in (model, second[1]):
            part.save_pretrained(folder)
        if detector is not None and is_inside:
            shutil.copytree(detector, folder / model.config.detector)
        facts = _facts(model, Path(out_dir), *names)
        write_card(facts, folder, updated_card(out_dir, facts))
    return Path(out_dir)


def _facts(model: Any, out_dir: Path, first: str, second: str) -> CardFacts:
    """Facts for the card: the stages, and what their own cards say of licence, base models and limits."""
    before, known = inherited_facts(first), inherited_facts(second)
    terms = ("licence", "licence_name", "licence_link")
    if len({tuple(map(one.get, terms)) for one in (before, known)}) > 1:
        logger.warning("the stages do not name the same licence, and the card of the cascade names none")
        before, known = ({name: one[name] for name in one if name not in terms} for one in (before, known))
    bases = dict.fromkeys([*before.get("base_models", ()), *known.get("base_models", ())])
    return CardFacts(
        out_dir.resolve().name,
        model.config.to_dict(),
        type(model).__name__,
        parameters=model.num_parameters(),
        training={"first stage": Path(first).name, "second stage": Path(second).name},
        **{**before, **known, "base_models": list(bases)},
    )


def _check_words(names: str, own: dict[str, int], other: dict[str, int]) -> None:
    """Refuse stages that write the same word with different ids."""
    differing = sorted(word for word in own.keys() | other.keys() if own.get(word) != other.get(word))
    if differing:
        ids = own.get(differing[0]), other.get(differing[0])
        raise ConversionError(
            f"{names}: the stages have other words: {differing[0]!r} has the ids {ids[0]} and {ids[1]}; train both "
            "with the same vocabulary"
        )
