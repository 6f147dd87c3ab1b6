"""Research image captioners in the Hugging Face ecosystem.

Importing the package registers its models with the Auto classes of transformers and brings back the `image-to-text`
pipeline. The names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from .pipelines import pipeline, register

__version__ = "0.1.0"

_HOME = {
    "CaptionCollator": "data.collator",
    "CaptionerEnsemble": "inference.ensemble",
    "CaptionerImageProcessor": "modeling.image_processing_captioner",
    "CaptionerProcessor": "modeling.processing_captioner",
    "ExpansionNetV2Config": "modeling.configuration_expansionnet_v2",
    "ExpansionNetV2ForImageCaptioning": "modeling.modeling_expansionnet_v2",
    "ExpansionNetV2Processor": "modeling.processing_expansionnet_v2",
    "FeatureStore": "data.feature_store",
    "ImageError": "modeling.captioner_image_io",
    "ImageToTextPipeline": "modeling.pipeline_image_to_text",
    "XEConfig": "training.xe_config",
    "XETrainer": "training.xe_trainer",
    "build_vocabulary": "modeling.tokenization_words",
    "build_word_tokenizer": "modeling.tokenization_words",
    "load_karpathy": "data.karpathy",
    "open_image": "modeling.captioner_image_io",
    "special_token_ids": "modeling.tokenization_words",
}

__all__ = [*sorted(_HOME), "__version__", "pipeline", "register"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
