"""Research image captioners in the Hugging Face ecosystem.

Importing the package makes its models known to the Auto classes of transformers and brings back the `image-to-text`
pipeline, as soon as these classes are imported: before or after, see `registration`. The names below and the
sub-packages are loaded on first use, so that the import alone costs next to nothing; `__init__.pyi` has
the same names for editors and type checkers.
"""

from __future__ import annotations

import importlib
from typing import Any

from ._version import __version__
from .captioner_table import CAPTIONERS, captioner_modules
from .registration import register_with_auto_classes

_PACKAGES = (
    *("cli", "conversion", "data", "demo", "export", "families", "hub", "inference", "metrics", "modeling", "reports"),
    *("rewards", "training"),
)

_HOME = {
    "BleuReward": "rewards.bleu",
    "BottomUpConfig": "modeling.configuration_bottom_up",
    "BottomUpForRegionFeatures": "modeling.modeling_bottom_up",
    "BottomUpImageProcessor": "modeling.image_processing_bottom_up",
    "CaptionCollator": "training.collator",
    "CaptionMetrics": "metrics.suite",
    "CaptionerEnsemble": "inference.ensemble",
    "CaptionerImageProcessor": "modeling.image_processing_captioner",
    "CaptionerProcessor": "modeling.processing_captioner",
    "CiderDReward": "rewards.cider",
    "ClipReward": "rewards.clip",
    "DiCOConfig": "training.dico_config",
    "DiCOTrainer": "training.dico_trainer",
    "FeatureStore": "data.features.store",
    "ImageError": "modeling.captioner_image_io",
    "ImageToTextPipeline": "modeling.pipeline_image_to_text",
    "LengthReward": "rewards.length",
    "RegionFeatures": "data.features.regions",
    "RepetitionReward": "rewards.repetition",
    "RewardCollator": "training.collator",
    "SCSTConfig": "training.scst_config",
    "SCSTTrainer": "training.scst_trainer",
    "XEConfig": "training.xe_config",
    "XETrainer": "training.xe_trainer",
    "build_tags": "modeling.tags_clip_gpt2",
    "build_vocabulary": "modeling.tokenization_words",
    "build_word_tokenizer": "modeling.tokenization_words",
    "distill_captions": "data.captions.distill",
    "extend_vocabulary": "modeling.captioner_vocabulary",
    "load_cocotalk": "data.captions.cocotalk",
    "load_captions": "data.captions.load",
    "load_karpathy": "data.captions.karpathy",
    "open_image": "modeling.captioner_image_io",
    "optimize_for_inference": "inference.faster",
    "pipeline": "pipelines",
    "register": "pipelines",
    "special_token_ids": "modeling.tokenization_words",
    "write_region_features": "data.features.regions",
}
for _model_type, _names in CAPTIONERS.items():
    _HOME.update(zip(_names, captioner_modules(_model_type), strict=True))

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


register_with_auto_classes()
