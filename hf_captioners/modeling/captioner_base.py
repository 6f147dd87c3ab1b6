"""The captioner: everything that all of them do alike, whatever their way of writing.

A model defines what is its own: which inputs make a picture (`image_inputs`), how features become a memory
(`encode`), how captions are scored and with which loss (`score_captions`, `sequence_log_probs`), and how they are
written (`write_captions`, `default_decoding`). For captioners that write word by word `captioner_autoregressive.py`
has the last three.
"""

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple
from typing_extensions import Self

from .captioner_backbone import GridBackbone, check_whole
from .captioner_dropout import draw_masks_faster
from .captioner_layers import LARGEST_FEATURE, check_features, initialize, values_are_known
from .captioner_new import NewCaptioner
from .captioner_options import check_numbers
from .captioner_outputs import CandidateOutput, CaptionerEncoderOutput, CaptionerOutput
from .captioner_shipping import shipped
from .configuration_captioner import CaptionerConfig


class CaptionerPreTrainedModel(NewCaptioner, PreTrainedModel, GenerationMixin):
    """Base of the captioners.

    A captioner takes `pixel_values` or `image_features`, encodes them once (`encode_images`), scores captions
    (`forward`, `sequence_log_probs`) and writes them (`generate`). Its backbone, if any, is `self.backbone`.

    Attributes:
        image_inputs (`tuple[str, ...]`): names of the inputs that make a picture, in their order. `forward`,
            `generate`, `encode_images` and `sequence_log_probs` take them; those after the first three reach `encode`.
        loss_inputs (`tuple[str, ...]`): names of the inputs of `forward` that only the loss reads.
        text_options (`tuple[str, ...]`): options of `generate` for numbers that may also be texts here.
        decodings (`Mapping[str, Any]`): ways of decoding by name, see `generate`.
        backbone_reader (`type[GridBackbone]`): what is read of the backbone.
        input_embeddings, output_embeddings (`str`): where the word vectors and the layer of the words' scores are.
    """

    config: CaptionerConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer passes num_items_in_batch, and must not divide the loss again
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]

    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_features", "image_attention_mask")
    loss_inputs: ClassVar[tuple[str, ...]] = ()
    text_options: ClassVar[tuple[str, ...]] = ()
    decodings: ClassVar[Mapping[str, Any]] = {"standard": None}
    backbone_reader: ClassVar[type[GridBackbone]] = GridBackbone
    input_embeddings: ClassVar[str]
    output_embeddings: ClassVar[str]
    backbone: PreTrainedModel | None

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def new_backbone(self) -> PreTrainedModel | None:
        """A fresh backbone as the configuration describes it; `None` for a model of cached features."""
        return None if self.config.features_only else self.backbone_reader.from_config(self.config.vision_config)

    def post_init(self) -> None:
        """Set the paper's decoding besides, which a checkpoint's `generation_config.json` replaces."""
        super().post_init()
        draw_masks_faster(self)
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        tokens = {name: getattr(self.config, name) for name in names}
        self.generation_config = GenerationConfig(**self.default_decoding(), **tokens)

    def default_decoding(self) -> dict[str, Any]:
        """Options of `generate` that the model is made with, without special tokens."""
        return {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's defaults; parts that are models of transformers initialise themselves."""
        initialize(module)

    @classmethod
    def from_backbone(cls, backbone: str | Path | PreTrainedModel, config: CaptionerConfig, **kwargs: Any) -> Self:
        """A captioner with a pretrained backbone, in the type it was saved in, and a fresh body in float32.

        Args:
            backbone (`str`, `Path` or `PreTrainedModel`): folder or Hub name of any transformers vision model, or of a
                model of images and text, whose image tower is taken; or the vision model.
            config ([`CaptionerConfig`]): the captioner's sizes; `features_only`, `vision_config` and `feature_size` are
                taken from the backbone.
            kwargs: passed to `from_pretrained`, as `revision`.

        Returns:
            the captioner

        Raises:
            ValueError: a checkpoint that lacks weights of the backbone; a model that is more than a vision model.
        """
        tower = cls.backbone_reader.load(backbone, **kwargs)
        width = cls.backbone_reader.width(tower)
        vision = copy.deepcopy(tower.config)
        vision.num_labels = 2  # transformers' default, which is not saved: a captioner needs no names of classes
        settings = {**config.to_dict(), "features_only": False, "vision_config": vision, "feature_size": width}
        model = cls(type(config)(**settings))
        assert model.backbone is not None
        model.backbone.load_state_dict(tower.state_dict())
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, strict: bool = True, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load as in transformers, but refuse a checkpoint that lacks weights: they would be random ones.

        Args:
            args, kwargs: see `PreTrainedModel.from_pretrained`.
            strict (`bool`, defaults to `True`): with `False` weights may be missing, and others than the model's may be
                there.
            output_loading_info (`bool`, defaults to `False`): also return what transformers reports of the weights.

        Returns:
            the captioner; with `output_loading_info` it and the report

        Raises:
            ValueError: weights are missing or are not the model's, by name.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        if strict:
            check_whole(cls.__name__, args[0] if args else "", report)
        return (model, report) if output_loading_info else model

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Load the generation config as transformers does; a folder without one has the model's own decoding."""
        own = self.generation_config
        super().adjust_generation_fn(*args, **kwargs)
        if self.generation_config._from_model_config:  # made of config.json, which has no options of generate
            self.generation_config = own

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule(self.input_embeddings)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.set_submodule(self.input_embeddings, value)

    def get_output_embeddings(self) -> nn.Module:
        return self.get_submodule(self.output_embeddings)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.set_submodule(self.output_embeddings, new_embeddings)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of all but the backbone, which may have one of its own."""
        parts = (part for name, part in self.named_children() if name != "backbone")  # read no further than needed
        own = (one for part in parts for one in part.parameters() if one.is_floating_point())
        first = next(own, None)
        return super().dtype if first is None else first.dtype

    # -- the backbone ------------------------------------------------------------------------------------------------

    def extract_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The backbone's tokens (B, L, feature_size) of preprocessed pictures (B, 3, height, width).

        Raises:
            ValueError: the model was made for cached features and has no backbone.
        """
        if self.backbone is None:
            raise ValueError(
                "this model has no backbone (config.features_only): give image_features, not pixel_values; or, if it "
                "reads regions, a detector (`pipeline(…, detector=…)`, `hf-captioners caption --detector`). Regions of "
                "a picture are found by a detector (`hf-captioners features --detector`, or --regions for those of "
                "other projects), grids by the backbone that it was trained with (`hf-captioners features --model`)."
            )
        frozen = not any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.no_grad() if frozen else contextlib.nullcontext():
            pixel_values = pixel_values.to(self.backbone.dtype)
            return self.backbone_reader.tokens(self.backbone(pixel_values=pixel_values))

    def freeze_backbone(self, trainable: str = "none") -> int:
        """Choose which part of the backbone learns. What is frozen completely also stays in evaluation mode.

        Args:
            trainable (`str`, defaults to `"none"`): `"none"`, `"all"`, or a regular expression that is searched in the
                backbone's parameter names (`r"layers\\.3\\.|layernorm"`: the last stage of a Swin).

        Returns:
            `int`: the number of backbone parameters that learn.

        Raises:
            ValueError: no expression, or one that matches no parameter; no backbone where it is asked to learn.
        """
        if self.backbone is None:
            if trainable != "none":
                raise ValueError(f"this model has no backbone to train, but {trainable!r} of it was asked for.")
            return 0
        try:
            pattern = re.compile({"none": r"(?!)", "all": ""}.get(trainable, trainable))
        except re.error as error:
            raise ValueError(f"{trainable!r} of the backbone: neither none, all nor an expression: {error}.") from error
        count = 0
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(pattern.search(name) is not None)
            count += parameter.numel() * parameter.requires_grad
        if trainable != "none" and not count:
            raise ValueError(f"no backbone parameter matches {trainable!r}.")
        self.train(self.training)
        return count

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen backbone stays in evaluation mode: no drop path, no moving statistics."""
        super().train(mode)
        if self.backbone is not None and not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        return self

    # -- pictures ----------------------------------------------------------------------------------------------------

    def check_images(
        self,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        image_attention_mask: torch.Tensor | None,
    ) -> None:
        """Refuse a call that does not give exactly one kind of picture, or gives one of a wrong shape.

        Raises:
            ValueError: naming the argument and its shape.
        """
        if (pixel_values is None) == (image_features is None):
            number = "neither" if pixel_values is None else "both"
            raise ValueError(f"give pixel_values or image_features, exactly one of them; {number} was given.")
        if pixel_values is not None:
            if image_attention_mask is not None:
                raise ValueError("image_attention_mask belongs to image_features; pixel_values have no padding.")
            if not self.training and values_are_known(pixel_values):
                check_features(pixel_values, "pixel_values")
            return
        assert image_features is not None
        width = self.config.feature_size
        if image_features.ndim != 3 or image_features.shape[-1] != width:
            raise ValueError(f"image_features must be (pictures, tokens, {width}), not {tuple(image_features.shape)}.")
        if image_features.is_complex():
            check_features(image_features, "image_features")
        if image_attention_mask is None:
            return self._check_values(image_features)
        if image_attention_mask.shape != image_features.shape[:2]:
            raise ValueError(
                f"image_attention_mask must be {tuple(image_features.shape[:2])} like image_features, "
                f"not {tuple(image_attention_mask.shape)}."
            )
        if values_are_known(image_attention_mask):
            empty = (image_attention_mask.sum(1) == 0).nonzero().flatten().tolist()
            if empty:
                raise ValueError(f"image_attention_mask: pictures {empty} of the batch have no token at all.")
            self._check_values(image_features, image_attention_mask)

    def _check_values(self, image_features: torch.Tensor, image_attention_mask: torch.Tensor | None = None) -> None:
        """Refuse features that cannot be computed with, also in the model's type. In training the loss tells, and a
        look at them would make a GPU wait."""
        if self.training or not values_are_known(image_features):
            return
        real = image_features if image_attention_mask is None else image_features[image_attention_mask.bool()]
        check_features(real, "image_features", min(LARGEST_FEATURE, torch.finfo(self.dtype).max))

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        **inputs: Any,
    ) -> CaptionerEncoderOutput:
        """Encode pictures once, for any number of captions.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`, *optional*): preprocessed pictures.
            image_features (`torch.Tensor` of shape `(B, L, feature_size)`, *optional*): cached tokens, instead.
            image_attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for real feature rows, 0 for padding.
            output_hidden_states (`bool`, defaults to `False`): also return every layer's output.
            inputs: the model's other `image_inputs`; see its `encode`.

        Returns:
            [`CaptionerEncoderOutput`]

        Raises:
            TypeError: an unknown input.
            ValueError: not exactly one of `pixel_values` and `image_features`; a wrong width; a picture without tokens;
                what the model's `encode` refuses.
        """
        self._refuse_unknown(inputs, self.image_inputs)
        self.check_images(pixel_values, image_features, image_attention_mask)
        features: Any = image_features
        if pixel_values is not None:
            features = self.extract_image_features(pixel_values)
        encoded = self.encode(features, image_attention_mask, **inputs)
        states = encoded.hidden_states if output_hidden_states else None
        features = features if encoded.image_features is None else encoded.image_features
        return dataclasses.replace(encoded, image_features=features, hidden_states=states)

    def encode(self, features: torch.Tensor, mask: torch.Tensor | None, **inputs: Any) -> CaptionerEncoderOutput:
        """Encode features; every model has its own.

        Args:
            features (`torch.Tensor` of shape `(B, L, feature_size)`): the backbone's tokens or cached ones.
            mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for real tokens; at least one in every row.
            inputs: the model's `image_inputs` after the first three, those that were given.

        Returns:
            [`CaptionerEncoderOutput`]: the memory, the mask that belongs to it, and the layers' outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define encode.")

    def _encoded(
        self, encoder_outputs: CaptionerEncoderOutput | None, images: dict[str, Any], **options: Any
    ) -> CaptionerEncoderOutput:
        """Encoder outputs as they were given, or of pictures."""
        images = {name: value for name, value in images.items() if value is not None}
        if encoder_outputs is None:
            return self.encode_images(**images, **options)
        if images:
            raise ValueError(f"give {', '.join(images)} to encode_images: encoder_outputs are behind them already.")
        return encoder_outputs

    # -- captions ----------------------------------------------------------------------------------------------------

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int = 0,
        **inputs: Any,
    ) -> CaptionerOutput:
        """Score captions.

        Args:
            pixel_values, image_features, image_attention_mask: see `encode_images`.
            decoder_input_ids (`torch.LongTensor` of shape `(N, T)`, *optional*):
                The caption so far, start token first. Made from `labels` by default. N is a multiple of the number of
                pictures; captions of one picture stand side by side.
            encoder_outputs ([`CaptionerEncoderOutput`], *optional*): what `encode_images` gave, instead of pictures.
            past_key_values (`Cache`, *optional*): the state after the tokens before `decoder_input_ids`.
            labels (`torch.LongTensor` of shape `(N, T)`, *optional*): words and end token, then -100.
            use_cache (`bool`, defaults to `False`): return `past_key_values`.
            output_hidden_states (`bool`, defaults to `False`): return every layer's output.
            output_attentions (`bool`, defaults to `False`): return the attention to the picture, see
                [`CaptionerOutput`]. Where another implementation of attention is set, the decoder uses the eager one,
                which alone has the weights.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): what the loss is divided by, instead of this
                batch's number of targets.
            logits_to_keep (`int`, defaults to 0): only the logits of the last positions; 0 for all.
            inputs: the model's other `image_inputs`, and its `loss_inputs`, which the class explains. (Any argument
                with "label" in its name is a target to transformers' Trainer.)
            return_dict (`bool`, defaults to `True`): a [`CaptionerOutput`] instead of a tuple.

        Returns:
            [`CaptionerOutput`] or `tuple`

        Raises:
            TypeError: an unknown input.
            ValueError: see `encode_images`; no `decoder_input_ids` and no `labels`; captions that are too long or
                cannot be shared out among the pictures; a cache that is not from `start_cache`.
        """
        self._refuse_unknown(inputs, (*self.image_inputs, *self.loss_inputs))
        loss_inputs = {name: inputs.pop(name) for name in self.loss_inputs if name in inputs}
        images = {
            "pixel_values": pixel_values,
            "image_features": image_features,
            "image_attention_mask": image_attention_mask,
            **inputs,
        }
        encoder_outputs = self._encoded(encoder_outputs, images, output_hidden_states=output_hidden_states)
        output = self.score_captions(
            encoder_outputs,
            labels,
            decoder_input_ids=decoder_input_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            num_items_in_batch=num_items_in_batch,
            logits_to_keep=logits_to_keep,
            **loss_inputs,
        )
        return dataclasses.replace(
            output,
            decoder_hidden_states=output.decoder_hidden_states if output_hidden_states else None,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )

    def _refuse_unknown(self, inputs: Iterable[str], known: tuple[str, ...]) -> None:
        unknown = sorted(set(inputs) - set(known))
        if unknown:
            raise TypeError(f"{type(self).__name__} does not know {', '.join(unknown)}; it takes {', '.join(known)}.")

    def score_captions(
        self, encoder_outputs: CaptionerEncoderOutput, labels: torch.Tensor | None, **options: Any
    ) -> CaptionerOutput:
        """Score captions of encoded pictures; every way of writing has its own.

        Args:
            encoder_outputs ([`CaptionerEncoderOutput`]): of B pictures.
            labels (`torch.LongTensor` of shape `(N, T)`, *optional*): see `forward`.
            options: the other arguments of `forward` that are about captions, and the model's `loss_inputs`.

        Returns:
            [`CaptionerOutput`]: with the loss if there are labels.
        """
        raise NotImplementedError(f"{type(self).__name__} must define score_captions.")

    def sequence_log_probs(
        self,
        sequences: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        return_entropies: bool = False,
        **images: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of every token of captions, with gradient; every way of writing has its own definition.

        Args:
            sequences (`torch.LongTensor` of shape `(N, T)`): captions as `generate` returns them: start token, words,
                end token, padding. N is a multiple of the number of pictures.
            encoder_outputs ([`CaptionerEncoderOutput`], *optional*): encoded pictures.
            return_entropies (`bool`, defaults to `False`): also return the entropy of each token's distribution.
            images: the model's `image_inputs`, instead.

        Returns:
            `torch.Tensor` of shape `(N, T - 1)`: in nats, in float32 or float64; 0 after the end token. With
            `return_entropies` it and the entropies, of the same shape, without gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sequence_log_probs.")

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write captions. Everything else is as in `GenerationMixin.generate`.

        Args:
            inputs (`torch.Tensor`, *optional*): the same as `pixel_values`.
            generation_config (`GenerationConfig`, *optional*): by default that of the checkpoint.
            encoder_outputs ([`CaptionerEncoderOutput`], *optional*): what `encode_images` gave, instead of pictures.
            kwargs: the model's `image_inputs`, see `encode_images`; and generation options, as `num_beams`,
                `max_length`, `num_return_sequences` or `do_sample`. `decoding` (`str`) names the way of decoding, a key
                of the model's `decodings`: `"paper"` is the model's own, `"standard"` transformers'. By default what
                the generation config has, where earlier versions have `beam_rule`.

        Returns:
            `torch.LongTensor` of shape `(B * num_return_sequences, length)`, start token first, padded after the end;
            or a `ModelOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: see `encode_images`; an unknown option; a length beyond the model's longest caption.
        """
        images = {name: kwargs.pop(name, None) for name in self.image_inputs}
        if images["pixel_values"] is None:
            images["pixel_values"] = inputs
        config = self.generation_config if generation_config is None else generation_config
        self.check_options({**vars(config), **kwargs})
        return self.write_captions(self._encoded(encoder_outputs, images), generation_config, *args, **kwargs)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options of `generate` that mean nothing, before pictures are encoded.

        Args:
            options (`Mapping[str, Any]`): those of the generation config and of the call.

        Raises:
            ValueError: naming the option, its value and what it may be.
        """
        check_numbers(options, self.config.vocab_size, self.text_options)

    def write_captions(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Write captions of encoded pictures; every way of writing has its own.

        Args:
            encoder_outputs ([`CaptionerEncoderOutput`]): of B pictures.
            generation_config, args, kwargs: see `generate`.

        Returns:
            what `generate` returns
        """
        raise NotImplementedError(f"{type(self).__name__} must define write_captions.")

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, decoding: str | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Merge the options as transformers does; the way of decoding is an option of the result, and a known one."""
        merged: Any
        merged, rest = super()._prepare_generation_config(generation_config, **kwargs)
        options = vars(merged)
        older = options.get("beam_rule", "standard")  # in generation configs saved by earlier versions
        usual = "standard" if older == "standard" and "standard" in self.decodings else "paper"
        merged.decoding = decoding or options.get("decoding") or usual
        if merged.decoding not in self.decodings:
            raise ValueError(f"decoding must be one of {sorted(self.decodings)}, not {merged.decoding!r}.")
        return merged, rest

    def _check_longest(self, generation_config: GenerationConfig) -> None:
        """Refuse options that ask for longer captions than the model can write."""
        length, name = generation_config.max_length or 0, "max_length"
        if generation_config.max_new_tokens is not None:
            length, name = generation_config.max_new_tokens + 1, "max_new_tokens + 1"
        longest: int = self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"{name}={length} is beyond this model's max_position_embeddings={longest}.")

    def write_candidates(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        num_candidates: int,
        max_length: int,
        seeds: Sequence[str],
        greedy: bool = False,
        **kwargs: Any,
    ) -> CandidateOutput:
        """Write candidates to learn from by their rewards; for captioners that do not write word by word.

        (For those that do, the trainers use `generate` with samplers of their own.)

        Args:
            encoder_outputs ([`CaptionerEncoderOutput`]): of B pictures.
            num_candidates (`int`): captions of a picture, side by side.
            max_length (`int`): most tokens of a caption, start token included.
            seeds (`Sequence[str]`): for every picture what chance depends on, and nothing else.
            greedy (`bool`, defaults to `False`): the most likely caption, without chance.
            kwargs: generation options.

        Returns:
            [`CandidateOutput`]
        """
        raise NotImplementedError(f"{type(self).__name__} must define write_candidates.")

    def _prepare_special_tokens(self, generation_config: Any, has_mask: bool | None = None, **kwargs: Any) -> None:
        """Prepare as transformers does, without its warning that padding equal to the end token needs an attention
        mask: here nothing that is padded with it is ever read."""
        super()._prepare_special_tokens(generation_config, None, **kwargs)

    # -- files -------------------------------------------------------------------------------------------------------

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
        with shipped(self) if ship_code else contextlib.nullcontext():
            super().save_pretrained(save_directory, *args, **kwargs)
