"""Registration with transformers, and the `image-to-text` pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers import pipelines as transformers_pipelines
from transformers.utils import CONFIG_NAME

from .captioner_table import CAPTIONERS, captioner_classes
from .export.manifest import is_exported, split_name
from .families import CaptionerFamily, ForeignCodeFamily, family_class
from .families.loading import check_can_caption, load_captioner_model, load_processor, model_type_of
from .families.pipeline import FamilyPipeline
from .modeling.captioner_adapters import base_of
from .modeling.captioner_detector import CaptionerDetector
from .modeling.captioner_trust import foreign_code
from .modeling.configuration_bottom_up import BottomUpConfig
from .modeling.image_processing_bottom_up import BottomUpImageProcessor
from .modeling.image_processing_captioner import CaptionerImageProcessor
from .modeling.modeling_bottom_up import BottomUpForRegionFeatures
from .modeling.pipeline_image_to_text import ImageToTextPipeline

TASK = "image-to-text"


def register() -> None:
    """Make the captioners and the detector known to the Auto classes, and `image-to-text` to `transformers.pipeline`.

    Runs by itself once `hf_captioners` and the Auto classes are imported; running it again changes nothing.
    """
    for model_type in CAPTIONERS:
        config, model, processor = captioner_classes(model_type)
        AutoConfig.register(model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        AutoProcessor.register(config, processor, exist_ok=True)
        AutoTokenizer.register(config, tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
        _register_image_processor(config, CaptionerImageProcessor)
    AutoConfig.register(BottomUpConfig.model_type, BottomUpConfig, exist_ok=True)
    AutoModel.register(BottomUpConfig, BottomUpForRegionFeatures, exist_ok=True)
    _register_image_processor(BottomUpConfig, BottomUpImageProcessor)
    if TASK not in transformers_pipelines.PIPELINE_REGISTRY.supported_tasks:
        transformers_pipelines.PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=ImageToTextPipeline, pt_model=(AutoModelForImageTextToText,), type="multimodal"
        )
    _keep_task_name()
    _keep_task_of_folders()


def _register_image_processor(config: type, image_processor: type) -> None:
    # the same class under both keys, or users of torchvision are told that it falls back
    classes = {"pil": image_processor, "torchvision": image_processor}
    AutoImageProcessor.register(config, image_processor_classes=classes, exist_ok=True)


def _keep_task_name() -> None:
    """Keep `image-to-text`, which transformers 5 renames to `image-text-to-text` before it looks the task up.

    The function is private, and there is no public one; where a release has dropped it, nothing needs to be done.
    """
    rename = transformers_pipelines.__dict__.get("_resolve_deprecated_task")
    if rename is None or rename.__module__ == __name__:
        return

    def keep_or_rename(task: str) -> str:
        return task if task == TASK else rename(task)

    transformers_pipelines._resolve_deprecated_task = keep_or_rename


def _keep_task_of_folders() -> None:
    """Let `transformers.pipeline(model=folder)` find its task: transformers asks the Hub alone, for a folder too."""
    get_task = transformers_pipelines.get_task
    if get_task.__module__ == __name__:
        return

    def get_task_of_folder(model: str, token: str | None = None, **kwargs: Any) -> str:
        return TASK if _is_captioner_folder(Path(model)) else get_task(model, token, **kwargs)

    transformers_pipelines.get_task = get_task_of_folder


def _is_captioner_folder(folder: Path) -> bool:
    if not (folder / CONFIG_NAME).is_file():
        return False
    config, _ = PreTrainedConfig.get_config_dict(folder)
    return config.get("model_type") in CAPTIONERS


def pipeline(
    task: str = TASK, model: Any = None, *, detector: Any = None, trust_remote_code: bool = False, **kwargs: Any
) -> ImageToTextPipeline:
    """A pipeline that captions pictures.

    Args:
        task (`str`, defaults to `"image-to-text"`): the only task here.
        model (`str`, `Path` or `PreTrainedModel`): folder or Hub name of a captioner, folder of an exported one, or the
            captioner itself (then give `processor` too).
        detector (`str` or [`CaptionerDetector`], *optional*): of a captioner of regions, what finds them in pictures:
            folder or Hub name. By default that of the captioner's configuration.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the model may run. The captioners
            of this package need none of it.
        kwargs: passed to `transformers.pipeline`, as `device`, `dtype`, `batch_size`, `processor` or generation
            options.

    Returns:
        [`ImageToTextPipeline`]

    Raises:
        ValueError: another task, or no model; a model that brings code which may not run.

    Example:

    ```python
    >>> from hf_captioners import pipeline
    >>> captioner = pipeline("image-to-text", model="captioner", num_beams=3)  # doctest: +SKIP

    ```
    """
    if task != TASK:
        raise ValueError(f"hf_captioners.pipeline knows the task {TASK!r}, not {task!r}; see transformers.pipeline.")
    if model is None:
        raise ValueError("give model=: a folder or Hub name of a captioner, or the model itself.")
    if is_exported(model):
        from .export.runtime import ExportedCaptioner

        exported = ExportedCaptioner.from_pretrained(model)
        kwargs.setdefault("processor", load_processor(exported, split_name(model)[0], trust_remote_code))
        model = exported
    # transformers finds the captioner of adapters from the working directory alone
    elif base_of(model) is not None or model_type_of(model) not in (None, *CAPTIONERS):
        model = _loaded(model, trust_remote_code, kwargs)
    if isinstance(detector, (str, os.PathLike)):
        detector = CaptionerDetector(detector, trust_remote_code=trust_remote_code)
    if detector is not None:
        kwargs["detector"] = detector
    with foreign_code(model, trust_remote_code):
        return transformers.pipeline(
            TASK,  # type: ignore[call-overload]  # its overloads know its own tasks
            model=model,
            pipeline_class=_pipeline_class(model),
            trust_remote_code=trust_remote_code,
            **kwargs,
        )


def _loaded(model: Any, trust_remote_code: bool, kwargs: dict[str, Any]) -> Any:
    """The captioner of a folder or Hub name; its processor, and what else it was loaded with, are put in `kwargs`."""
    options = {name: kwargs.pop(name) for name in ("dtype", "device_map", "revision", "token") if name in kwargs}
    loaded = load_captioner_model(model, trust_remote_code, **options, **kwargs.pop("model_kwargs", {}))
    check_can_caption(loaded, model)
    if "processor" not in kwargs:
        kwargs["processor"] = load_processor(loaded, model, trust_remote_code)
    return loaded


def _pipeline_class(model: Any) -> type[ImageToTextPipeline]:
    """The pipeline of a captioner: that which travels with those of this package, or that of all families."""
    if isinstance(model, (str, os.PathLike)):
        return ImageToTextPipeline
    own = issubclass(family_class(model), (CaptionerFamily, ForeignCodeFamily))
    return ImageToTextPipeline if own else FamilyPipeline
