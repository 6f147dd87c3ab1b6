"""Saving a model or processor together with the code that runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

PIPELINE = {
    "image-to-text": {
        "impl": "pipeline_image_to_text.ImageToTextPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


@contextlib.contextmanager
def registered(classes: Mapping[Any, str]) -> Iterator[None]:
    """Register classes for Auto classes, as transformers wants it to copy their code, for the time of one save.

    Args:
        classes (`Mapping[type, str]`): the name of an Auto class for each class.
    """
    before = {cls: cls._auto_class for cls in classes}
    try:
        for cls, auto_class in classes.items():
            cls.register_for_auto_class(auto_class)
        yield
    finally:
        for cls, auto_class in before.items():
            cls._auto_class = auto_class


@contextlib.contextmanager
def shipped(model: Any) -> Iterator[None]:
    """For the time of one save, let the model's folder name and carry its code and the pipeline.

    Args:
        model (`PreTrainedModel`): a captioner.
    """
    model_class, config = type(model), model.config
    entry = f"{model_class.__module__.rsplit('.', 1)[-1]}.{model_class.__name__}"
    config.auto_map = {"AutoModelForImageTextToText": entry}
    config.custom_pipelines = PIPELINE
    try:
        with registered({type(config): "AutoConfig", model_class: "AutoModel"}):
            yield
    finally:
        del config.auto_map, config.custom_pipelines
