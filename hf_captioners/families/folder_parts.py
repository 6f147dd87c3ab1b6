"""Parts of a captioner's folder: what transformers does not find, or makes up, is said with how to get it."""

from __future__ import annotations

from pathlib import Path

from ..modeling.captioner_adapters import nor_on_hub

_PARTS = {  # of a captioner's folder: patterns of file names, and what to do where there is none
    "configuration (config.json)": (
        ("config.json", "adapter_config.json"),
        "give the folder of a captioner, or convert an original checkpoint with `hf-captioners convert`",
    ),
    "weights (model.safetensors)": (
        ("*.safetensors", "*.safetensors.index.json", "pytorch_model*"),
        "copy them from where the captioner was trained or converted",
    ),
    "image processor (preprocessor_config.json or processor_config.json)": (
        ("preprocessor_config.json", "processor_config.json"),
        "save that of its backbone there: AutoImageProcessor.from_pretrained(backbone).save_pretrained(folder)",
    ),
    "tokenizer (tokenizer.json)": (
        ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model"),
        "save its tokenizer there (`hf-captioners convert` has --tokenizer for captioners with that of CLIP or GPT-2)",
    ),
}


def missing_part(folder: Path, of_processor: bool = False) -> str | None:
    """The part that a captioner's folder lacks and how to get it.

    Args:
        folder (`Path`): of a captioner, or a Hub name.
        of_processor (`bool`, defaults to `False`): look for image processor and tokenizer alone.

    Returns:
        `str` or `None`: `None` if nothing is known to be missing.
    """
    if not folder.is_dir():
        return None if folder.exists() else f"there is no such folder{nor_on_hub(str(folder))}"
    for part, (patterns, advice) in list(_PARTS.items())[2 if of_processor else 0 :]:
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"the folder has no {part}; {advice}"
    return None
