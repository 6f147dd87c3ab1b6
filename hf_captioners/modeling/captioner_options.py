"""Options of `generate` that captioners do not have. They are refused by name: an option is never without effect.

All others of `GenerationConfig` are honoured, see `tests/modeling/test_captioner_options.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

# by option, the smallest whole number that it may be
COUNTS = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
}
NUMBERS = ("length_penalty", "repetition_penalty", "temperature", "top_p")
TOKENS = ("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")
# by option, the values besides None that change nothing, as saved generation configs have them
NEUTRAL: dict[str, tuple] = {
    # other searches than greedy decoding, sampling and beams
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0.0,),
    "low_memory": (False,),
    "dola_layers": (),
    # a second model, or a guess, whose words are checked
    "use_mtp": (False,),
    "is_assistant": (False,),
    "prompt_lookup_num_tokens": (),
    "max_matching_ngram_size": (),
    "assistant_early_exit": (),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
    "assistant_ensemble_weight": (),
    "speculation_type": (),
    # what reads a text in the place of a picture
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1.0,),
    "token_healing": (False,),
    "prefill_chunk_size": (),
    # caches and graphs of transformers; captioners have caches of their own
    "cache_implementation": (),
    "cache_config": (),
    "max_cache_len": (),
    "compile_config": (),
    "continuous_batching_config": (),
}
ARGUMENTS: dict[str, tuple] = {"assistant_model": (), "negative_prompt_ids": (), "negative_prompt_attention_mask": ()}
OWN_BEAMS: dict[str, tuple] = {"early_stopping": (False,), "stop_strings": ()}  # unless a rule has them
OWN_WORDS: dict[str, tuple] = {"streamer": ()}
# of captioners that write word by word; one that writes all words at once has none of these
WORD_BY_WORD: dict[str, tuple] = {
    "min_length": (0,),
    "min_new_tokens": (),
    "max_time": (),
    "stop_strings": (),
    # which search
    "num_beams": (1,),
    "early_stopping": (False,),
    "length_penalty": (1.0,),
    # scores of the next word
    "temperature": (1.0,),
    "top_k": (50, 0),
    "top_p": (1.0,),
    "min_p": (),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "renormalize_logits": (False,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "watermarking_config": (),
    # what is returned of it
    "output_hidden_states": (False,),
    "output_logits": (False,),
}


def refuse_options(options: Mapping[str, Any] | GenerationConfig, neutral: Mapping[str, tuple], where: str) -> None:
    """Refuse options with a value that would have an effect if there were one.

    Args:
        options (`Mapping[str, Any]` or `GenerationConfig`): what was asked for.
        neutral (`Mapping[str, tuple]`): by the name of an option, the values besides `None` that change nothing.
        where (`str`): what does not have them, for the message.

    Raises:
        ValueError: naming the options and their values.
    """
    values = vars(options) if isinstance(options, GenerationConfig) else options
    asked = {name: values.get(name) for name in neutral}
    refused = [f"{name}={value!r}" for name, value in asked.items() if value is not None and value not in neutral[name]]
    if refused:
        raise ValueError(f"{where} does not have {', '.join(refused)}: it would be without effect; leave it out.")


def check_numbers(
    options: Mapping[str, Any] | GenerationConfig, vocab_size: int, text_options: tuple[str, ...] = ()
) -> None:
    """Refuse numbers that transformers would pass over, or with which it would fail in the middle.

    Args:
        options (`Mapping[str, Any]` or `GenerationConfig`): what was asked for.
        vocab_size (`int`): of the captioner; tokens are below it.
        text_options (`tuple[str, ...]`, *optional*): options that may be texts, too; the captioner checks these itself.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    values = vars(options) if isinstance(options, GenerationConfig) else options
    for name, least in COUNTS.items():
        if values.get(name) is not None and not _is_whole(values[name], least):
            raise ValueError(f"{name} must be a whole number of at least {least}, not {values[name]!r}.")
    for name in NUMBERS:
        number = values.get(name)
        if isinstance(number, str) and name in text_options:
            continue
        if number is not None and not (isinstance(number, (int, float)) and math.isfinite(number)):
            raise ValueError(f"{name} must be a finite number, not {number!r}.")
    if (values.get("top_p") or 0.0) > 1:
        raise ValueError(f"top_p must be at most 1, not {values['top_p']!r}.")
    for name in TOKENS:
        tokens = values.get(name)
        several = tokens if isinstance(tokens, (list, tuple)) else [] if tokens is None else [tokens]
        if not all(_is_whole(token, 0) and token < vocab_size for token in several):
            raise ValueError(f"{name} must be ids of tokens, from 0 to {vocab_size - 1}, not {tokens!r}.")


def _is_whole(value: Any, least: int) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        return False
