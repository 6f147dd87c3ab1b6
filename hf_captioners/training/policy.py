"""Interface of trainers to a model: a captioner of this package, or a `VisionEncoderDecoderModel` of transformers.

A policy holds no model. Its methods take the model itself, not what DistributedDataParallel makes of it, with adapters
of peft around it or without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import is_peft_available

from ..modeling.captioner_autoregressive import AutoregressiveCaptioner
from ..modeling.captioner_base import CaptionerPreTrainedModel
from ..modeling.captioner_layers import ended_before, token_entropies, token_log_probs
from .reward.candidates import Candidates, generation_options
from .rows import ROWS

_CAPTIONS = {"labels", "decoder_input_ids", "columns", ROWS}  # of a batch, beside the images


class CaptionerPolicy:
    """The captioners of this package, through their contract; whatever their way of writing."""

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the inputs that make an image, and of those that only the loss reads."""
        return model.image_inputs, model.loss_inputs

    def image_inputs(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a batch that makes its images.

        Args:
            model (`PreTrainedModel`): the model.
            batch (`Mapping[str, Any]`): of a collator.

        Returns:
            `dict[str, Any]`: arguments of `run_backbone` and `encode`.

        Raises:
            ValueError: the batch has something that the model does not read.
        """
        images, others = self.input_names(model)
        unknown = sorted(batch.keys() - {*images, *others, *_CAPTIONS})
        if unknown:
            raise ValueError(
                f"a {type(model).__name__} does not read {', '.join(unknown)} of a batch; an image of it is made of "
                f"{', '.join(images)}."
            )
        return {name: batch[name] for name in images if name in batch}

    def backbone(self, model: Any) -> PreTrainedModel | None:
        """The vision tower, if the model has one."""
        return model.backbone

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        """Freeze as [`CaptionerPreTrainedModel.freeze_backbone`] does."""
        model.freeze_backbone(trainable)

    def check_length(self, model: Any, name: str, length: int) -> None:
        """Raise a `ValueError` if captions of `length` tokens, start token included, are too long for the model."""
        longest = model.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"{name}={length} is beyond the model's max_position_embeddings={longest}.")

    def check_candidates(self, model: Any, args: Any) -> None:
        """Refuse options of candidates that the model's way of writing does not have.

        Args:
            model (`PreTrainedModel`): the model.
            args ([`RewardTrainingConfig`]): options.

        Raises:
            ValueError: naming the option.
        """
        where = f"on a {type(model).__name__}, which does not write word by word"
        if args.candidate_strategy == "diverse_beam":
            raise ValueError(f"candidate_strategy='diverse_beam' has no effect {where}; leave it out.")
        args.refuse_unread(where, "temperature", "top_p", "top_k", "min_p", "repetition_penalty")

    def evaluation_options(self, args: Any) -> dict[str, Any]:
        """Options of `generate` for the captions that evaluation is of; only words one after the other have beams.

        Args:
            args ([`CaptionerTrainingArguments`]): options of the trainer.

        Returns:
            `dict[str, Any]`
        """
        return {"max_length": args.generation_max_length}

    def vocab_size(self, model: Any) -> int:
        """Words that the model knows."""
        return int(model.config.vocab_size)

    def run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        """Image inputs with features in the place of pixels, if the backbone does not learn.

        Args:
            model (`PreTrainedModel`): the model.
            image_inputs (`dict[str, Any]`): of a batch.

        Returns:
            `dict[str, Any]`: arguments for `encode`.
        """
        if "pixel_values" not in image_inputs or _learns(model.backbone):
            return image_inputs
        others = {name: value for name, value in image_inputs.items() if name != "pixel_values"}
        return {"image_features": model.extract_image_features(image_inputs["pixel_values"]), **others}

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> Any:
        """Encoder outputs for any number of captions of the images, with gradient where something learns."""
        return model.encode_images(**image_inputs)

    def write(
        self, model: Any, encoder_outputs: Any, processor: Any, args: Any, names: Sequence[str], greedy: bool = False
    ) -> Candidates:
        """Let the model write captions of encoded images.

        Args:
            model (`PreTrainedModel`): the model, in the mode in which it is to write.
            encoder_outputs (`ModelOutput`): of `encode`, B images.
            processor (`ProcessorMixin`): turns tokens into words.
            args ([`RewardTrainingConfig`]): how many captions, how long and how.
            names (`Sequence[str]`): for each image what chance depends on.
            greedy (`bool`, defaults to `False`): one greedy caption of each image instead.

        Returns:
            [`Candidates`]
        """
        written = model.write_candidates(
            encoder_outputs,
            num_candidates=1 if greedy else args.num_generations,
            max_length=args.max_completion_length + 1,
            seeds=names,
            greedy=greedy,
            **(args.generation_kwargs or {}),
        )
        k = len(written.sequences) // len(encoder_outputs.last_hidden_state)
        inputs = {"log_probs": written.log_probs, "scoring_inputs": written.scoring_inputs}
        candidates = Candidates.of(written.sequences, model.generation_config, processor, k, **inputs)
        if written.greedy_sequences is not None:
            candidates.greedy = Candidates.of(written.greedy_sequences, model.generation_config, processor, k)
        return candidates

    def log_probs(
        self, model: Any, sequences: torch.Tensor, encoder_outputs: Any, **scoring_inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the tokens of captions, with gradient, and the entropies they were drawn from.

        Args:
            model (`PreTrainedModel`): the model.
            sequences (`torch.LongTensor` of shape `(N, T)`): captions, start token first.
            encoder_outputs (`ModelOutput`): of `encode`.
            scoring_inputs: see [`Candidates`].

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: both `(N, T - 1)`, in nats, 0 after the end token.
        """
        return model.sequence_log_probs(
            sequences, encoder_outputs=encoder_outputs, return_entropies=True, **scoring_inputs
        )


class WordByWordPolicy(CaptionerPolicy):
    """Captioners that write word by word, with `generate` as in transformers."""

    def evaluation_options(self, args: Any) -> dict[str, Any]:
        return {**super().evaluation_options(args), "num_beams": args.generation_num_beams}

    def check_candidates(self, model: Any, args: Any) -> None:
        """Accept all options: `generate` refuses those of `generation_kwargs` that it does not have."""

    def write(
        self, model: Any, encoder_outputs: Any, processor: Any, args: Any, names: Sequence[str], greedy: bool = False
    ) -> Candidates:
        config = model.generation_config
        options = generation_options(args, names, encoder_outputs[0].device, config.eos_token_id, greedy)
        if model.training:  # a cache and dropout do not go together: some models refuse it, others drop the cache
            options["use_cache"] = False
        # a copy, because generate repeats its rows in place
        sequences = model.generate(encoder_outputs=type(encoder_outputs)(**encoder_outputs), **options)
        return Candidates.of(sequences, config, processor, 1 if greedy else args.num_generations)


class EncoderDecoderPolicy(WordByWordPolicy):
    """`VisionEncoderDecoderModel`: its encoder is the backbone."""

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("pixel_values",), ()

    def backbone(self, model: Any) -> PreTrainedModel | None:
        return model.encoder

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        pattern = {"none": r"(?!)", "all": ""}.get(trainable, trainable)
        chosen = [re.search(pattern, name) is not None for name, _ in model.encoder.named_parameters()]
        if trainable != "none" and not any(chosen):
            raise ValueError(f"no parameter of the encoder matches {trainable!r}.")
        for parameter, learns in zip(model.encoder.parameters(), chosen, strict=True):
            parameter.requires_grad_(learns)

    def check_length(self, model: Any, name: str, length: int) -> None:
        settings = model.config.decoder.to_dict()
        longest = settings.get("max_position_embeddings") or settings.get("n_positions")
        if longest is not None and length > longest:
            raise ValueError(f"{name}={length} is beyond the decoder's {longest} positions.")

    def vocab_size(self, model: Any) -> int:
        return int(model.config.decoder.vocab_size)

    def run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        if _learns(model.encoder):
            return image_inputs
        training = model.encoder.training
        with torch.no_grad():
            hidden = model.encoder.eval()(image_inputs["pixel_values"])[0]
        model.encoder.train(training)
        return {"image_features": hidden}

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> Any:
        hidden = image_inputs.get("image_features")
        return BaseModelOutput(last_hidden_state=model.encoder(**image_inputs)[0] if hidden is None else hidden)

    def log_probs(
        self, model: Any, sequences: torch.Tensor, encoder_outputs: Any, **scoring_inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets, memory = sequences[:, 1:], encoder_outputs[0]
        memory = memory.repeat_interleave(len(sequences) // len(memory), dim=0)
        logits = model(encoder_outputs=(memory,), decoder_input_ids=sequences[:, :-1], use_cache=False).logits
        ended = ended_before(targets, model.generation_config.eos_token_id)
        scores = token_log_probs(logits, targets), token_entropies(logits)
        return scores[0].masked_fill(ended, 0.0), scores[1].masked_fill(ended, 0.0)


def policy_of(model: Any) -> CaptionerPolicy:
    """Choose the policy through which trainers call a model.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the captioner, with adapters or without.

    Returns:
        [`CaptionerPolicy`]

    Raises:
        TypeError: a model of another kind.
        ValueError: a `generation_config` that does not say what ends a caption, or what stands behind the end.
    """
    model = without_adapters(model)
    if not isinstance(model, CaptionerPreTrainedModel | VisionEncoderDecoderModel):
        raise TypeError(
            f"a {type(model).__name__} cannot be trained here: give a captioner of hf_captioners or a "
            "transformers.VisionEncoderDecoderModel."
        )
    for name in ("eos_token_id", "pad_token_id"):
        if vars(model.generation_config)[name] is None:
            raise ValueError(f"model.generation_config.{name} is None; set it to the tokenizer's {name}.")
    if isinstance(model, VisionEncoderDecoderModel):
        return EncoderDecoderPolicy()
    return WordByWordPolicy() if isinstance(model, AutoregressiveCaptioner) else CaptionerPolicy()


def without_adapters(model: Any) -> Any:
    """The model that peft has put adapters into, or the model itself."""
    if not is_peft_available():
        return model
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _learns(module: torch.nn.Module | None) -> bool:
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())
