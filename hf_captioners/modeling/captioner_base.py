"""What every captioner does alike: its two entrances, its backbone, its labels, and the code that it ships."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .captioner_layers import ended_before, grid_tokens, token_entropies, token_log_probs
from .captioner_outputs import CaptionerEncoderOutput


class CaptionerPreTrainedModel(PreTrainedModel):
    """Base of the captioners.

    A captioner takes `pixel_values` or `image_features`, encodes them once (`encode_images`), scores captions
    (`forward`, `sequence_log_probs`) and writes them (`generate`). Its backbone, if any, is `self.backbone`.
    """

    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer passes num_items_in_batch, and must not divide the loss again
    _skip_keys_device_placement = ["past_key_values"]
    beam_rules: ClassVar[dict[str, Callable | None]] = {"standard": None}
    backbone: PreTrainedModel | None
    encode_images: Callable[..., CaptionerEncoderOutput]
    _prepare_generation_config: Callable[..., Any]  # of GenerationMixin, which every captioner inherits beside this

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @staticmethod
    def check_entrance(
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        image_attention_mask: torch.Tensor | None,
        feature_size: int | None,
    ) -> None:
        """Refuse a call that does not give exactly one kind of picture, or gives one of a wrong shape.

        Raises:
            ValueError: naming the argument and its shape.
        """
        if (pixel_values is None) == (image_features is None):
            given = "neither" if pixel_values is None else "both"
            raise ValueError(f"give pixel_values or image_features, exactly one of them; {given} was given.")
        if image_features is None:
            if image_attention_mask is not None:
                raise ValueError("image_attention_mask belongs to image_features; pixel_values have no padding.")
            return
        if image_features.ndim != 3 or image_features.shape[-1] != feature_size:
            raise ValueError(
                f"image_features must be (pictures, tokens, {feature_size}), not {tuple(image_features.shape)}."
            )
        if image_attention_mask is None:
            return
        if image_attention_mask.shape != image_features.shape[:2]:
            raise ValueError(
                f"image_attention_mask must be {tuple(image_features.shape[:2])} like image_features, "
                f"not {tuple(image_attention_mask.shape)}."
            )
        empty = (image_attention_mask.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"image_attention_mask: pictures {empty} of the batch have no token at all.")

    def extract_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The backbone's tokens (B, L, feature_size) of preprocessed pictures (B, 3, height, width).

        Raises:
            ValueError: the model was made for cached features and has no backbone.
        """
        if self.backbone is None:
            raise ValueError(
                "this model has no backbone (config.features_only): give image_features, not pixel_values."
            )
        frozen = not any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.no_grad() if frozen else contextlib.nullcontext():
            pixel_values = pixel_values.to(self.backbone.dtype)
            return self.image_tokens(self.backbone(pixel_values=pixel_values))

    def image_tokens(self, output: ModelOutput) -> torch.Tensor:
        """What a captioner takes of its backbone's output: (B, L, feature_size), here the whole grid."""
        return grid_tokens(output["last_hidden_state"])

    def freeze_backbone(self, trainable: str = "none") -> int:
        """Choose which part of the backbone learns. What is frozen completely also stays in evaluation mode.

        Args:
            trainable (`str`, defaults to `"none"`): `"none"`, `"all"`, or a regular expression that is searched in the
                backbone's parameter names (`r"layers\\.3\\.|layernorm"`: the last stage of a Swin).

        Returns:
            `int`: the number of backbone parameters that learn.

        Raises:
            ValueError: the expression matches no parameter; a model without a backbone is asked to train it.
        """
        if self.backbone is None:
            if trainable != "none":
                raise ValueError(f"this model has no backbone to train, but {trainable!r} of it was asked for.")
            return 0
        pattern = {"none": r"(?!)", "all": ""}.get(trainable, trainable)
        count = 0
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(re.search(pattern, name) is not None)
            count += parameter.numel() * parameter.requires_grad
        if trainable != "none" and not count:
            raise ValueError(f"no backbone parameter matches {trainable!r}.")
        self.train(self.training)
        return count

    def train(self, mode: bool = True) -> "CaptionerPreTrainedModel":
        """As in torch, but a frozen backbone stays in evaluation mode: no drop path, no moving statistics."""
        super().train(mode)
        if self.backbone is not None and not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def shift_labels(self, labels: torch.Tensor | None) -> torch.Tensor:
        """The decoder's input (N, T) of `labels` (N, T): the start token, then the words; padding for -100.

        Raises:
            ValueError: `labels` is `None`.
        """
        if labels is None:
            raise ValueError("give decoder_input_ids or labels.")
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = self.config.decoder_start_token_id
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def sequence_log_probs(
        self,
        sequences: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        return_entropies: bool = False,
        **images: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of every token of given captions, with gradient.

        This is the definition for captioners that write one word after the other.

        Args:
            sequences (`torch.LongTensor` of shape `(N, T)`): captions as `generate` returns them: start token, words,
                end token, padding. N is a multiple of the number of pictures.
            encoder_outputs ([`CaptionerEncoderOutput`], *optional*): encoded pictures.
            return_entropies (`bool`, defaults to `False`): also return the entropy of each token's distribution.
            images: `pixel_values`, or `image_features` and `image_attention_mask`, instead.

        Returns:
            `torch.Tensor` of shape `(N, T - 1)`: in nats, in float32 or float64; 0 after the end token. With
            `return_entropies` it and the entropies, of the same shape, without gradient.
        """
        targets = sequences[:, 1:]
        output = self(decoder_input_ids=sequences[:, :-1], encoder_outputs=encoder_outputs, **images)
        log_probs = token_log_probs(output.logits, targets)
        ended = ended_before(targets, self.generation_config.eos_token_id)
        log_probs = log_probs.masked_fill(ended, 0.0)
        if not return_entropies:
            return log_probs
        return log_probs, token_entropies(output.logits).masked_fill(ended, 0.0)

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> Cache | None:
        """The state that `generate` starts from; `None` lets transformers make its usual cache."""
        return None

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        beam_rule: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write captions. Everything else is as in `GenerationMixin.generate`.

        Args:
            inputs (`torch.Tensor`, *optional*): the same as `pixel_values`.
            generation_config (`GenerationConfig`, *optional*): by default that of the checkpoint.
            pixel_values, image_features, image_attention_mask: see `encode_images`.
            encoder_outputs ([`CaptionerEncoderOutput`], *optional*): what `encode_images` gave, instead of pictures.
            beam_rule (`str`, *optional*): which beam search, with `num_beams > 1`; a key of the model's `beam_rules`.
                `"standard"` is transformers' own. By default what the generation config says.
            kwargs: generation options, as `num_beams`, `max_length`, `num_return_sequences` or `do_sample`.

        Returns:
            `torch.LongTensor` of shape `(B * num_return_sequences, length)`, start token first, padded after the end;
            or a `ModelOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: see `encode_images`; an unknown `beam_rule`; a length beyond the model's longest caption.
        """
        if encoder_outputs is None:
            pixel_values = inputs if pixel_values is None else pixel_values
            encoder_outputs = self.encode_images(pixel_values, image_features, image_attention_mask)
        merged, _ = self._prepare_generation_config(generation_config, **kwargs)
        search = self._choose_beam_search(merged, beam_rule)
        self._check_length(merged)
        if search is not None:
            kwargs.setdefault("custom_generate", search)
        if "max_new_tokens" in kwargs:
            kwargs.setdefault("max_length", None)  # one limit is enough: transformers warns of two
        if merged.use_cache and kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = self.start_cache(encoder_outputs)
        # a copy, because generate repeats its rows for every beam in place
        memory = CaptionerEncoderOutput(**{**encoder_outputs, "image_features": None, "hidden_states": None})
        return super().generate(None, generation_config, *args, encoder_outputs=memory, **kwargs)

    def _choose_beam_search(self, generation_config: GenerationConfig, beam_rule: str | None) -> Callable | None:
        rule = generation_config.to_dict().get("beam_rule", "standard") if beam_rule is None else beam_rule
        if rule not in self.beam_rules:
            raise ValueError(f"beam_rule must be one of {sorted(self.beam_rules)}, not {rule!r}.")
        return self.beam_rules[rule] if generation_config.num_beams > 1 else None

    def _check_length(self, generation_config: GenerationConfig) -> None:
        asked, name = generation_config.max_length or 0, "max_length"
        if generation_config.max_new_tokens is not None:
            asked, name = generation_config.max_new_tokens + 1, "max_new_tokens + 1"
        if asked > self.config.max_position_embeddings:
            raise ValueError(
                f"{name}={asked} is beyond this model's max_position_embeddings={self.config.max_position_embeddings}."
            )

    def save_pretrained(self, save_directory: str | Path, *args: Any, ship_code: bool = False, **kwargs: Any) -> None:
        """Save as in transformers; with `ship_code=True` the folder also carries the code that runs it.

        Such a folder loads with `trust_remote_code=True` where this package is not installed, pipeline included.
        Checkpoints of a running training stay free of code.

        Args:
            save_directory (`str` or `Path`): the folder.
            ship_code (`bool`, defaults to `False`): whether to add the code.
            args, kwargs: see `PreTrainedModel.save_pretrained`.
        """
        # names as in this model: Trainer resumes and finds its best model by load_state_dict, which knows no older ones
        kwargs.setdefault("save_original_format", False)
        with _shipped(self) if ship_code else contextlib.nullcontext():
            super().save_pretrained(save_directory, *args, **kwargs)


@contextlib.contextmanager
def _shipped(model: CaptionerPreTrainedModel) -> Iterator[None]:
    """For the time of one save, register the model's classes for the Auto classes of its folder."""
    model_class, config = type(model), model.config
    entry = f"{model_class.__module__.rsplit('.', 1)[-1]}.{model_class.__name__}"
    classes: list[tuple[Any, str]] = [(type(config), "AutoConfig"), (model_class, "AutoModel")]
    before = [cls._auto_class for cls, _ in classes]
    for cls, auto_class in classes:
        cls.register_for_auto_class(auto_class)
    config.auto_map = {"AutoModelForImageTextToText": entry}
    config.custom_pipelines = {
        "image-to-text": {
            "impl": "pipeline_image_to_text.ImageToTextPipeline",
            "pt": ["AutoModelForImageTextToText"],
            "type": "multimodal",
        }
    }
    try:
        yield
    finally:
        for (cls, _), auto_class in zip(classes, before, strict=True):
            cls._auto_class = auto_class
        del config.auto_map, config.custom_pipelines
