"""What the configurations of all captioners share."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class CaptionerConfig(PreTrainedConfig):
    """Base of the captioners' configurations: an encoder of pictures and a decoder of words.

    A checkpoint that carries its code names it in `auto_map` and its pipeline in `custom_pipelines`. With the package
    imported these entries are dropped on loading: transformers asks for `trust_remote_code=True` whenever it sees a
    pipeline, even when the code that it names is already here, and a later save would name code that it does not carry.
    """

    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not __name__.startswith("transformers_modules"):
            for name in ("auto_map", "custom_pipelines"):
                kwargs.pop(name, None)
        super().__post_init__(**kwargs)
