"""Captioners that write word by word: each word is predicted from those before it.

Beside the parts of every captioner, such a model defines `decode`, `start_cache`, its `decodings`, and, if its loss
is not torch's cross-entropy, `word_loss` or `caption_loss`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.cache_utils import Cache

from .captioner_base import CaptionerPreTrainedModel
from .captioner_beam_search import BeamSearch, LogProbabilities, behind_start, loop_of
from .captioner_cache import CaptionerCache
from .captioner_layers import ended_before, values_are_known
from .captioner_log_probs import token_log_probs
from .captioner_losses import smoothed_cross_entropy
from .captioner_options import ARGUMENTS, NEUTRAL, OWN_BEAMS, OWN_WORDS, check_numbers, refuse_options
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput


class Decoding(NamedTuple):
    """A way of decoding; what it leaves out is transformers'.

    Args:
        words (`Callable`, *optional*): greedy decoding and sampling; see [`~captioner_beam_search.loop_of`].
        beams (`type[BeamSearch]`, *optional*): the rule of the beam search.
    """

    words: Callable | None = None
    beams: type[BeamSearch] | None = None


class DecodeOptions(NamedTuple):
    """Outputs that `decode` is asked for.

    Args:
        logits_to_keep (`int`, defaults to 0): only the logits of the last places; 0 for all.
        output_hidden_states (`bool`, defaults to `False`): whether the layers' outputs are wanted.
        output_attentions (`bool`, defaults to `False`): whether the attention to the picture is wanted.
        teacher_forcing (`bool`, defaults to `False`): whether the captions are those to learn.
    """

    logits_to_keep: int = 0
    output_hidden_states: bool = False
    output_attentions: bool = False
    teacher_forcing: bool = False


class AutoregressiveCaptioner(CaptionerPreTrainedModel):
    """Base of the captioners that write word by word.

    Its `loss_inputs` are `smoothing` (`float`, *optional*, defaults to `config.label_smoothing`), see `caption_loss`;
    `skip_logits` (`bool`, defaults to `False`): compute no scores at places without a target, and return none; and what
    a model adds.

    Attributes:
        decodings (`dict[str, Decoding]`): ways of decoding by name; `"paper"` is the model's own, `"standard"`
            transformers'.
        word_loss (`Callable`): one of `captioner_losses.py`.
    """

    loss_inputs: ClassVar[tuple[str, ...]] = ("smoothing", "skip_logits")
    decodings: ClassVar[Mapping[str, Decoding]] = {"standard": Decoding()}
    word_loss: ClassVar[Callable[..., torch.Tensor]] = staticmethod(smoothed_cross_entropy)

    # -- what a model defines ----------------------------------------------------------------------------------------

    def decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Any, options: DecodeOptions
    ) -> CaptionerOutput:
        """Score the next word at every place of captions.

        Args:
            input_ids (`torch.LongTensor` of shape `(N, T)`): the captions, start token first; with a cache their
                continuations. N is a multiple of B.
            encoder_outputs ([`CaptionerEncoderOutput`]): of B pictures.
            cache ([`CaptionerCache`], *optional*): of `start_cache`, after the tokens before `input_ids`.
            options ([`DecodeOptions`]): what is asked for.

        Returns:
            [`CaptionerOutput`]: `logits`, and `decoder_hidden_states` if there are any.
        """
        raise NotImplementedError(f"{type(self).__name__} must define decode.")

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> CaptionerCache | None:
        """The state that decoding starts from; `None`: nothing can be kept, and every step starts over."""
        return None

    def caption_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None,
        encoder_outputs: CaptionerEncoderOutput,
        smoothing: float,
    ) -> torch.Tensor:
        """The training loss; by default the model's `word_loss`.

        Args:
            logits (`torch.Tensor` of shape `(N, T, V)`): scores; `(M, V)` of the M `target_places` only.
            labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
            num_items (`int` or `torch.Tensor`, *optional*): what the sum is divided by; the number of targets by
                default.
            encoder_outputs ([`CaptionerEncoderOutput`]): of the pictures.
            smoothing (`float`): probability mass of other words.

        Returns:
            `torch.Tensor` of shape `()`: in nats per target.
        """
        return self.word_loss(logits, labels, smoothing, num_items)

    def target_places(self, labels: torch.Tensor, **loss_inputs: Any) -> torch.Tensor:
        """Places of `labels` (N, T) whose scores the loss reads, (N, T)."""
        return labels != -100

    # -- scoring -----------------------------------------------------------------------------------------------------

    def shift_labels(self, labels: torch.Tensor | None) -> torch.Tensor:
        """The decoder's input (N, T) of `labels` (N, T): the start token, then the words; padding for -100.

        Raises:
            ValueError: `labels` is `None`.
        """
        if labels is None:
            raise ValueError("give decoder_input_ids or labels.")
        start: Any = self.config.decoder_start_token_id
        pad: Any = self.config.pad_token_id
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == -100, pad)

    def score_captions(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        labels: torch.Tensor | None,
        *,
        decoder_input_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool,
        num_items_in_batch: torch.Tensor | int | None,
        smoothing: float | None = None,
        skip_logits: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        logits_to_keep: int = 0,
        **loss_inputs: Any,
    ) -> CaptionerOutput:
        """Score captions by one pass over all their places; see `forward`."""
        if decoder_input_ids is None:
            decoder_input_ids = self.shift_labels(labels)
        if use_cache and past_key_values is None:
            past_key_values = self.start_cache(encoder_outputs)
        if past_key_values is not None and not isinstance(past_key_values, CaptionerCache):
            raise ValueError(f"past_key_values must come from start_cache, not be a {type(past_key_values).__name__}.")
        memory = self._row_per_image(encoder_outputs, past_key_values)
        self._check_captions(decoder_input_ids, memory, past_key_values)
        options = DecodeOptions(logits_to_keep, output_hidden_states, output_attentions, labels is not None)
        places = self.target_places(labels, **loss_inputs) if labels is not None and skip_logits else None
        with self._words_at(places):
            output = self.decode(decoder_input_ids, memory, past_key_values, options)
        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if smoothing is None else smoothing
            loss = self.caption_loss(
                output.logits, labels, num_items_in_batch, memory, smoothing=smoothing, **loss_inputs
            )
        logits: Any = output.logits if places is None else None
        return dataclasses.replace(output, loss=loss, logits=logits, past_key_values=past_key_values)

    @contextmanager
    def _words_at(self, places: torch.Tensor | None) -> Iterator[None]:
        """Scores of the words at M places (N, T) only, as (M, V), for the time of a block."""
        if places is None:
            yield
            return
        # hooks are of all threads, and of the replicas of nn.DataParallel; a graph has one thread
        thread = None if torch.compiler.is_compiling() else get_ident()

        def choose(_: Any, hidden: tuple[torch.Tensor]) -> torch.Tensor | None:
            """(N, T, d) to (M, d)"""
            return hidden[0][places] if thread is None or thread == get_ident() else None

        handle = self.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            yield
        finally:
            handle.remove()

    def _row_per_image(
        self, encoder_outputs: CaptionerEncoderOutput, cache: CaptionerCache | None
    ) -> CaptionerEncoderOutput:
        """Encoder outputs of B pictures, of which `generate` may have repeated every row for each caption."""
        if cache is None:
            return encoder_outputs
        repeats = encoder_outputs.last_hidden_state.shape[0] // cache.images
        return encoder_outputs if repeats == 1 else encoder_outputs.rows(slice(None, None, repeats))

    def _check_captions(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: CaptionerCache | None
    ) -> None:
        """Refuse captions that cannot be shared out among the pictures, or are too long."""
        captions, images = input_ids.shape[0], encoder_outputs.last_hidden_state.shape[0]
        if captions % images:
            raise ValueError(f"{captions} captions cannot be shared out among {images} pictures evenly.")
        self._check_length(input_ids, encoder_outputs, cache)

    def _check_length(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: CaptionerCache | None
    ) -> None:
        length = input_ids.shape[1] + (0 if cache is None else cache.get_seq_length())
        longest: int = self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"a caption of {length} tokens is longer than max_position_embeddings={longest}.")

    def sequence_log_probs(
        self,
        sequences: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        return_entropies: bool = False,
        **images: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of every token of captions given those before it; see `CaptionerPreTrainedModel`."""
        targets = sequences[:, 1:]
        places = ~ended_before(targets, self.generation_config.eos_token_id)
        with self._words_at(places if values_are_known(places) else None):
            logits = self(decoder_input_ids=sequences[:, :-1], encoder_outputs=encoder_outputs, **images).logits
        if logits.ndim == 2:
            found = token_log_probs(logits, targets[places])
            log_probs, entropies = (part.new_zeros(targets.shape).masked_scatter(places, part) for part in found)
        else:  # in or of a graph, which must not depend on values
            log_probs, entropies = (part.masked_fill(~places, 0.0) for part in token_log_probs(logits, targets))
        return (log_probs, entropies) if return_entropies else log_probs

    # -- writing -----------------------------------------------------------------------------------------------------

    def write_captions(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Write captions one word after the other; see `generate`.

        With `output_scores` and `output_logits` see `captioner_beam_search.py` for what they are.
        """
        merged, _ = self._prepare_generation_config(generation_config, **kwargs)
        if kwargs.get("custom_generate") is None:  # which may have options of its own
            refuse_options(merged, NEUTRAL, f"{type(self).__name__}.generate")
            refuse_options(kwargs, ARGUMENTS, f"{type(self).__name__}.generate")
        check_numbers(merged, self.config.vocab_size, self.text_options)
        loop = self._choose_decoding(merged)
        self._check_longest(merged)
        if loop is not None:
            refuse_options(kwargs, OWN_WORDS, f"decoding={merged.decoding!r} of {type(self).__name__}")
            kwargs.setdefault("custom_generate", loop)
        kwargs.setdefault("trust_remote_code", False)  # of custom_generate="a folder"; None would ask on the terminal
        if "max_new_tokens" in kwargs:
            kwargs.setdefault("max_length", None)  # one limit is enough: transformers warns of two
        if merged.use_cache and kwargs.get("past_key_values") is None:
            cache = self.start_cache(encoder_outputs)
            kwargs |= {"use_cache": False} if cache is None else {"past_key_values": cache}
        # a copy, because generate repeats its rows for every beam in place
        memory = dataclasses.replace(encoder_outputs, image_features=None, hidden_states=None)
        generate: Any = GenerationMixin.generate  # not this class's, which has encoded the pictures already
        return generate(self, None, generation_config, *args, encoder_outputs=memory, **kwargs)

    def _choose_decoding(self, generation_config: Any) -> Callable | None:
        """The loop of the way of decoding, `None` for transformers' own."""
        decoding = self.decodings[generation_config.decoding]
        write = decoding.words
        if generation_config.num_beams > 1:
            rule = decoding.beams
            if rule is None:
                return None
            unknown = {name: values for name, values in OWN_BEAMS.items() if name not in rule.options}
            refuse_options(generation_config, unknown, f"the beam search {rule.__name__}")
            write = rule.search
        return None if write is None else loop_of(write)

    def _get_logits_processor(self, generation_config: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Processors of transformers; where its loops return logits as `scores`, or draw from them, these become
        log-probabilities at last.

        A start token that is also the end token is no word that is repeated: else a caption could not end.
        """
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        if bool(torch.isin(generation_config._decoder_start_token_tensor, generation_config._eos_token_tensor)):
            processors = LogitsProcessorList(behind_start(processor) for processor in processors)
        are_read = generation_config.output_scores or generation_config.do_sample
        of_transformers = generation_config.num_beams == 1 and self.decodings[generation_config.decoding].words is None
        if of_transformers and are_read:
            processors.append(LogProbabilities())
        return processors
