"""Processors of chat models that read videos, too, where torchvision, which only videos need, is not installed."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from transformers import ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.utils import is_torchvision_available

from ..modeling.captioner_trust import foreign_code
from ..modeling.tokenization_limits import check_tokenizer

VIDEOS = "video_processor"


def needs_torchvision(config: Any) -> bool:
    """Tell whether the processor of a model reads videos, too, and cannot be loaded as it is."""
    if is_torchvision_available():
        return False
    processor_class: Any = PROCESSOR_MAPPING.get(type(config), None)
    return processor_class is not None and VIDEOS in processor_class.get_attributes()


def load_images_alone(config: Any, source: str | os.PathLike[str], trust_remote_code: bool = False) -> Any:
    """The processor of a model, which reads no videos; saved again it has the settings of videos that it was read with.

    Args:
        config (`PreTrainedConfig`): of the model.
        source (`str` or `os.PathLike`): folder or Hub name.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.

    Returns:
        `ProcessorMixin`
    """
    with foreign_code(source, trust_remote_code):
        check_tokenizer(os.fspath(source))
        loader = images_alone(PROCESSOR_MAPPING[type(config)])
        processor = loader.from_pretrained(source, trust_remote_code=trust_remote_code)
        processor.video_settings = get_video_processor_config(source)
    return processor


@cache
def images_alone(processor_class: Any) -> Any:
    """A class of processors as transformers' own, without the video processor.

    Args:
        processor_class (`type`): of images, texts and videos; the video processor comes last.

    Returns:
        `type`
    """

    class ImagesAlone(processor_class):
        video_settings: dict[str, Any] | None = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in processor_class.get_attributes() if name != VIDEOS]

        @classmethod
        def from_args_and_dict(cls, args: Sequence[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            place = processor_class.get_attributes().index(VIDEOS)
            return super().from_args_and_dict([*args[:place], None, *args[place:]], processor_dict, **kwargs)

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            return ProcessorMixin.apply_chat_template(self, *args, **kwargs)  # some ask the video processor for numbers

        def to_dict(self) -> dict[str, Any]:
            videos = {VIDEOS: copy.deepcopy(self.video_settings)} if self.video_settings else {}
            return {**super().to_dict(), **videos}

        def __reduce__(self) -> tuple[Any, ...]:
            return _restored, (processor_class, vars(self))

    ImagesAlone.__name__ = ImagesAlone.__qualname__ = processor_class.__name__  # the name that is saved
    return ImagesAlone


def _restored(processor_class: Any, values: dict[str, Any]) -> Any:
    """A pickled one."""
    made = images_alone(processor_class)
    processor = made.__new__(made)
    vars(processor).update(values)
    return processor
