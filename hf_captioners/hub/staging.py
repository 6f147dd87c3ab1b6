"""One folder with what of a captioner is for others: model, processor, card, and code if asked for.

Of a run only what is named here is taken: no checkpoints, optimizer states, logs, arguments or weights beside the
captioner. Names of folders of this machine are removed from what is written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from ..data.files import regular_file
from ..families.loading import check_can_caption, load_captioner_model, load_processor
from ..families.prompt import PROMPT_FILE
from ..modeling.captioner_adapters import base_of, may_be_on_hub
from ..modeling.captioner_base import CaptionerPreTrainedModel
from ..modeling.captioner_detector import DETECTORS, load_detector, own_detector
from ..modeling.configuration_captioner import CaptionerConfig
from .card import updated_card, write_card
from .facts import CardFacts, known_facts

ADAPTERS = "adapter_config.json"
EXPORT = "export.json"
PRECISIONS = ("float32", "bfloat16", "float16")  # of weights in a file
_OF_ADAPTERS = (ADAPTERS, "adapter_model.safetensors", PROMPT_FILE)
_OF_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
                  "special_tokens_map.json", "chat_template.jinja")  # fmt: skip
_FOLDERS = ("onnx", "openvino")  # exports of the captioner
_NAMES = ("_name_or_path", "name_or_path")  # where transformers notes what something was loaded from


class StagingError(ValueError):
    """Captioner that cannot be pushed as it is; the message says why."""


def stage(
    captioner: Any,
    processor: Any,
    folder: Path,
    repo_id: str,
    ship_code: bool = False,
    contact_sheet: bool = False,
    trust_remote_code: bool = False,
    weights_dtype: str | None = None,
    **card: Any,
) -> list[Path]:
    """Write what is pushed into a folder.

    Args:
        captioner (`PreTrainedModel`, `str` or `Path`): the model, or the folder of a captioner, of adapters or of a
            detector.
        processor (`ProcessorMixin`, *optional*): its processor, of a detector its image processor; by default that of
            the folder.
        folder (`Path`): an empty folder.
        repo_id (`str`): the repository, for the card.
        ship_code (`bool`, defaults to `False`): add the code that runs it.
        contact_sheet (`bool`, defaults to `False`): add the contact sheet of a run, which shows evaluation pictures.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the captioner may run here.
        weights_dtype (`str`, *optional*): precision of the weights in their file, such as `"float16"`; loaded, they
            have the one that they have now.
        card: fields of [`CardFacts`], such as `licence`.

    Returns:
        `list[Path]`: the files, relative to the folder, sorted.

    Raises:
        StagingError: there is no captioner, or one that others could not load.
        ValueError, OSError: it cannot be loaded or saved.
    """
    source = Path(captioner) if isinstance(captioner, (str, os.PathLike)) else None
    if source is not None and not source.is_dir():
        raise StagingError(f"{source}: no such folder of a captioner")
    if source is not None and (source / EXPORT).is_file():
        raise StagingError(
            f"{source}: has an exported captioner; put that into the folder of the captioner it was made of, as onnx/, "
            "and push that one"
        )
    if source is not None and (source / ADAPTERS).is_file() and not (source / "config.json").is_file():
        if weights_dtype is not None:
            raise StagingError(f"{source}: adapters are pushed as they are; leave the precision of the weights out")
        _stage_adapters(source, processor, folder, repo_id, ship_code, trust_remote_code)
    else:
        model = captioner
        if source is not None:
            with _quiet():
                model, own = _load(source, trust_remote_code)
            processor = own if processor is None else processor
        _save(model, processor, folder, source, ship_code, weights_dtype)
    _write_card(source, folder, repo_id, ship_code, contact_sheet, card)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _save(
    model: Any, processor: Any, folder: Path, source: Path | None, ship_code: bool, weights_dtype: str | None = None
) -> None:
    """Save model and processor, and what else of the model's folder belongs to it."""
    if processor is None:
        raise StagingError(f"a {type(model).__name__} without its processor; give both")
    ours = isinstance(model, CaptionerPreTrainedModel) or model.config.model_type in DETECTORS
    if ship_code and not ours:
        raise StagingError(f"a {type(model).__name__} is one of transformers and needs no code; leave ship_code out")
    code: dict[str, Any] = {"ship_code": ship_code} if ours else {}
    weights = None if weights_dtype is None else _weights_in(model, weights_dtype)
    with _quiet():
        model.save_pretrained(folder, state_dict=weights, **code)
        processor.save_pretrained(folder, **code)
    _copy_detector(model, source, folder)
    for name in _FOLDERS if source is not None else ():
        if source is not None and (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    for path in folder.glob("*.json"):
        _forget_places(path)


def _weights_in(model: Any, name_of_dtype: str) -> dict[str, torch.Tensor]:
    """The model's weights in another precision; what is shared stays shared."""
    if name_of_dtype not in PRECISIONS:
        raise StagingError(f"weights_dtype must be one of {', '.join(PRECISIONS)}, not {name_of_dtype!r}")
    dtype = getattr(torch, name_of_dtype)
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}
    weights = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor = converted.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
            if not torch.isfinite(tensor).all():
                raise StagingError(
                    f"{name}: has values beyond {name_of_dtype}, or that are no numbers; leave the precision out"
                )
        weights[name] = tensor
    return weights


def _load(source: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model and processor of the folder of a captioner or of a detector."""
    if PreTrainedConfig.get_config_dict(source)[0].get("model_type") in DETECTORS:
        return load_detector(source, trust_remote_code)
    model = load_captioner_model(source, trust_remote_code, dtype="auto")
    check_can_caption(model, str(source))
    return model, load_processor(model, source, trust_remote_code)


def _copy_detector(model: Any, source: Path | None, folder: Path) -> None:
    """The detector that a captioner of regions names: of the Hub, or in its own folder, which travels along."""
    named = model.config.detector if isinstance(model.config, CaptionerConfig) else None
    if named is None or may_be_on_hub(named):
        return
    detector, is_inside = (None, False) if source is None else own_detector(model.config, source)
    if detector is None or not is_inside:
        raise StagingError(
            f"its detector {named} is on this machine only; push that first and name it in config.json, or copy it "
            "into the captioner's folder and name it from there"
        )
    shutil.copytree(detector, folder / named)


def _stage_adapters(
    source: Path, processor: Any, folder: Path, repo_id: str, ship_code: bool, trust_remote_code: bool
) -> None:
    """Adapters with the name of their captioner on the Hub, or together with it where this machine alone has it.

    Both in one repository is a form that transformers reads: the model of `config.json`, and the adapters on top.
    """
    base = base_of(source)
    if base is not None and Path(base).is_dir():
        with _quiet():
            model = load_captioner_model(base, trust_remote_code, dtype="auto")
            own = load_processor(model, source, trust_remote_code) if processor is None else processor
        _save(model, own, folder, Path(base), ship_code)
    elif ship_code:
        raise StagingError(f"{source}: adapters have no code; push {base}, the captioner that they belong to, with it")
    copied = _OF_ADAPTERS if (folder / "config.json").is_file() else (*_OF_ADAPTERS, *_OF_PROCESSORS)
    for name in copied:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (folder / "config.json").is_file():
        settings = json.loads(regular_file(source / ADAPTERS, "configuration of adapters").read_text("utf-8"))
        settings["base_model_name_or_path"] = repo_id
        (folder / ADAPTERS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _forget_places(path: Path) -> None:
    """Remove from a file of settings what something was loaded from, where that is a folder of this machine."""
    content = json.loads(path.read_text("utf-8"))
    if _without_places(content):
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_places(settings: Any) -> bool:
    """Remove such names at any depth; whether there were some."""
    if not isinstance(settings, dict):
        return False
    places = [name for name in _NAMES if isinstance(settings.get(name), str) and not _is_public(settings[name])]
    for name in places:
        del settings[name]
    return any([bool(places), *(_without_places(value) for value in settings.values())])


def _is_public(name: str) -> bool:
    return not name or may_be_on_hub(name)


def _write_card(
    source: Path | None, folder: Path, repo_id: str, ship_code: bool, contact_sheet: bool, card: dict[str, Any]
) -> None:
    """The card of the folder's facts, and the figures that it shows."""
    staged, old = known_facts(folder), known_facts(folder if source is None else source)
    if not old.config:  # of adapters, which come with their captioner
        old = replace(old, config=staged.config, model_class=staged.model_class)
    old = replace(old, adapters=(folder / ADAPTERS).is_file() and not (folder / "config.json").is_file())
    unnamed = old.name == (folder if source is None else source).resolve().name
    name = repo_id.rpartition("/")[2] if unnamed else old.name
    if card.get("licence") not in (None, old.licence):  # whose name and address are no longer those of before
        card = {"licence_name": None, "licence_link": None, **card}
    facts: CardFacts = replace(old, **{"name": name, **card}, repo_id=repo_id, ships_code=ship_code)
    if not contact_sheet:
        facts = replace(facts, contact_sheet=None)
    for file in (facts.curves, facts.contact_sheet):
        if source is not None and file is not None and Path(file).name == file and (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    text = None if source is None else updated_card(source, facts)
    write_card(facts, folder, text)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
