"""Settings by which captions were decoded, for the signature of their scores."""

from __future__ import annotations

from typing import Any

_OF_WORDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
_SAME_CAPTIONS = ("transformers_version", "use_cache", "output_attentions", "output_scores", "return_dict_in_generate")


def decoding_settings(model: Any, **options: Any) -> dict[str, Any]:
    """Say how a captioner decodes.

    Args:
        model (`PreTrainedModel`): the captioner, or an ensemble.
        options: given to `generate`; those that are `None` are the captioner's own.

    Returns:
        `dict[str, Any]`: `num_beams`, the longest caption and what else of the generation settings differs from
        transformers' own, but no token ids; the prompt, if there is one; `models`, if there are several; and `dtype`.

    Example:

    ```python
    >>> from hf_captioners import SaticConfig, SaticForImageCaptioning
    >>> from hf_captioners.inference.decoding_settings import decoding_settings
    >>> model = SaticForImageCaptioning(SaticConfig(vocab_size=9, unk_token_id=8, d_model=8, features_only=True))
    >>> settings = decoding_settings(model, num_beams=3, max_new_tokens=None)
    >>> settings["num_beams"], settings["dtype"]
    (3, 'float32')

    ```
    """
    given = {name: value for name, value in options.items() if value is not None}
    left_out = {*_OF_WORDS, *_SAME_CAPTIONS, *(("max_length",) if "max_new_tokens" in given else ())}
    own = getattr(model, "generation_config", None)  # models with code of their own may have none
    settings = {"num_beams": 1, **({} if own is None else own.to_diff_dict()), **given}
    settings = {name: settings[name] for name in sorted(settings) if name not in left_out}
    models = getattr(model, "models", [model])
    prompt = vars(models[0].config).get("captioning_prompt")
    return {
        **{name: value for name, value in settings.items() if not name.endswith("_token_id") and name[0] != "_"},
        **({} if prompt is None else {"prompt": prompt}),
        **({} if models[1:] == [] else {"models": len(models)}),
        "dtype": str(models[0].dtype).removeprefix("torch."),
    }
