"""SCD-Net, semantic-conditional diffusion networks (arXiv 2212.03099).

"Semantic-Conditional Diffusion Networks for Image Captioning", J. Luo, Y. Li, Y. Pan, T. Yao, J. Feng, H. Chao and T.
Mei, CVPR 2023.

Every word is a vector of analog bits. All words of a caption are refined together, from noise, by a network that sees
the noisy bits, its own last prediction, the time, the regions of the picture, and a sentence retrieved for the picture.
A second stage also sees the sentence of a first one; with `config.first_stage` the model owns both. Parameter names are
those of the authors' checkpoints (of a cascade: the second stage's, and the first stage's under `first_stage.`).

Where this differs from the authors' code:

1. A picture is encoded once for all its captions, in training too; dropout is then shared by them.
2. What does not depend on the step is computed once: keys and values of the picture in all decoder layers, projections
   of the retrieved sentence in the first semantic layer, time vectors. The last semantic layer computes the caption's
   rows only. All of this is exact.
3. The noise at the start is the same for every picture and a function of `generation_config.seed`: a caption depends on
   its picture alone. `generator` or `do_sample=True` gives others.
4. Behind the end of a caption there is padding, whatever the sampler left there. What is beyond the vocabulary becomes
   its last word whatever its size (10199 is fixed in the original).
5. Schedule, time vectors, softmax and bits are float32 in every type.
6. In training the self-conditioning is drawn for a picture instead of a batch where `seeds` are given, so that it does
   not depend on batches and processes.
7. A depth of the semantic transformer other than 3 is possible.

Losses, masks, `sequence_log_probs` and guided self-critical training follow sections 7 and 10 of the specification.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .captioner_backbone import same_weights
from .captioner_base import CaptionerPreTrainedModel
from .captioner_layers import (
    ended_before,
    initialize,
    padding_mask,
    values_are_known,
)
from .captioner_log_probs import token_log_probs
from .captioner_losses import smoothed_divergence
from .captioner_options import NEUTRAL, WORD_BY_WORD, refuse_options
from .captioner_outputs import CandidateOutput, CaptionerEncoderOutput, CaptionerOutput
from .chance_scdnet import SamplerNoise, drawn_words, number_of, numbers_of, of_stage, step_of
from .configuration_scdnet import ScdnetConfig
from .diffusion_scdnet import (
    TRAINING_END,
    Denoised,
    SamplingPlan,
    bits_needed,
    check_sampling,
    corrupt,
    denoise,
    log_snr,
)
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .layers_scdnet import (
    BitCodec,
    BitEmbedding,
    Decoder,
    Encoder,
    Heads,
    Predictor,
    TimeFeatures,
    VisualEmbedding,
    WordEmbedding,
    first_regions,
    word_probabilities,
)
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .processing_scdnet import ScdnetProcessor

logger = logging.get_logger(__name__)

OPTIONS = (  # of `generate`, beside transformers' own
    *("num_inference_steps", "time_difference", "time_spacing", "sampler", "sample_noise", "word_choice"),
    *("self_condition", "seed", "cascade", "cascade_weights", "generator", "noise", "step_noise"),
)


@dataclass
class ScdnetEncoderOutput(CaptionerEncoderOutput):
    """Encoded pictures with the sentences that belong to them; see [`CaptionerEncoderOutput`].

    Args:
        retrieved (`torch.Tensor` of shape `(R, T, hidden_size)`): embedded retrieved sentences; R is a multiple of the
            number of pictures, sentences of a picture side by side.
        retrieved_mask (`torch.Tensor` of shape `(R, T)`, *optional*): 1 for real tokens.
        previous_ids (`torch.LongTensor` of shape `(R, L)`, *optional*): the sentence of the first stage.
        guide_ids (`torch.LongTensor` of shape `(images, L)`, *optional*): the sentence that guides self-critical
            training.
        first (`ScdnetEncoderOutput`, *optional*): of the first stage of a cascade.
    """

    retrieved: torch.Tensor = None  # type: ignore[assignment]  # as in transformers' outputs
    retrieved_mask: torch.Tensor | None = None
    previous_ids: torch.Tensor | None = None
    guide_ids: torch.Tensor | None = None
    first: Any = None

    def rows(self, index: Any) -> "ScdnetEncoderOutput":
        """Some of the pictures, with their sentences."""
        images = len(self.last_hidden_state)
        chosen: dict[str, Any] = {"hidden_states": self.hidden_states}
        for name, value in self.items():
            if torch.is_tensor(value):
                chosen[name] = value.unflatten(0, (images, -1))[index].flatten(0, 1)
        return type(self)(**chosen, first=None if self.first is None else self.first.rows(index))

    def with_first_sentences(self) -> "ScdnetEncoderOutput":
        """The same pictures with the first one of the retrieved and previous sentences of each."""
        images = len(self.last_hidden_state)
        sentences = {
            "retrieved": self.retrieved,
            "retrieved_mask": self.retrieved_mask,
            "previous_ids": self.previous_ids,
        }
        own: dict[str, Any] = {
            name: value.unflatten(0, (images, -1))[:, 0] for name, value in sentences.items() if value is not None
        }
        return replace(self, **own, first=None if self.first is None else self.first.with_first_sentences())


@dataclass
class ScdnetGenerateOutput(ModelOutput):
    """Output of `generate` with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(captions, length)`): start token, words, end token, padding.
        sequences_scores (`torch.FloatTensor` of shape `(captions,)`): the model's log-probability of each.
        stages (`list[Denoised]`): for each stage what its sampler gave, with the trajectory if `output_scores=True`.
        cross_attentions (`tuple[tuple[torch.Tensor]]`): for each step of the last stage and each decoder layer how much
            every place of a caption attends to the picture, `(captions, heads, places, regions)`, if
            `output_attentions=True`.
    """

    sequences: torch.Tensor = None  # type: ignore[assignment]  # as in transformers' outputs
    sequences_scores: torch.Tensor | None = None
    stages: list[Denoised] | None = None
    cross_attentions: tuple[tuple[torch.Tensor, ...], ...] | None = None


@dataclass
class Known:
    """Inputs of N captions that are known before the first step and do not depend on it.

    Attributes:
        memory: keys and values of B pictures in each decoder layer; N is a multiple of B.
        memory_mask (`(B, 1, 1, L)`): True for real tokens.
        retrieved: projections of N retrieved sentences in the first semantic layer.
        retrieved_states (`(N, T, d)`): the sentences.
        semantic_mask (`(N, 1, 1, L + T)`): True for what of caption and sentence is visible.
        previous (`(N, L, n)`): bits of the previous sentence.
    """

    memory: list[tuple[torch.Tensor, torch.Tensor]]
    memory_mask: torch.Tensor | None
    retrieved: Heads
    retrieved_states: torch.Tensor
    semantic_mask: torch.Tensor | None
    previous: torch.Tensor | None


class ScdnetForImageCaptioning(CaptionerPreTrainedModel, GenerationMixin):
    """SCD-Net: region features, or a picture, and a retrieved sentence to a caption, by bit diffusion.

    Inputs of a picture beside `pixel_values` or `image_features`:

    - `retrieved_ids`, `retrieved_mask` `(R, T)`: the retrieved sentence, start token first; one for every picture, or
      for every caption. [`ScdnetProcessor`] makes them. Without it, see `config.retrieval`.
    - `previous_ids` `(R, T)`: for a second stage what the first one wrote: words, end token, padding. A cascade writes
      it itself if it is not there.
    - `guide_ids` `(B, T)`: for guided self-critical training.

    Inputs of the loss, `smoothing` (`float`, defaults to `config.label_smoothing`) and what is by default drawn from
    torch's generator in training mode, and `config.scoring_time`, the noise of `config.scoring_seed` and no
    self-conditioning in evaluation mode:

    - `seeds` `(N,)`: what the chance of every caption depends on; the first one of a picture also decides whether the
      picture is self-conditioned. In training mode, words of `previous_ids` are replaced then, see
      `config.replaced_words`.
    - `timesteps` `(N,)`, `noise` `(N, L, n)`, `self_conditioning` (`bool`, or `(B,)`): instead.

    Options of `generate`, which can also be set in `generation_config`; of a cascade the first three may be lists, a
    number for each stage:

    - `num_inference_steps` (`int`, defaults to 50; `[50, 40]` of a cascade), `time_difference` (`float`, in steps;
      defaults to 0, `[45, 0]` of a cascade), `time_spacing` (`float`, defaults to 1): see [`SamplingPlan`].
    - `sampler` (`str`, defaults to `"paper"`): or `"ddim"`; `sample_noise` (`bool`, defaults to `False`): whether the
      paper's sampler adds noise in each step; `word_choice` (`str`, defaults to `"bits"`): or `"likeliest"`, see
      [`Denoised`].
    - `self_condition` (`str`, defaults to `"none"`): what the first step of a second stage sees as its own last
      prediction: nothing, as in the paper, or `"previous"`, the sentence of the first stage.
    - `seed` (`int`, defaults to 0): of the noise at the start, which is the same for every picture. `generator`
      (`torch.Generator`) or `do_sample=True` (torch's global generator) draw noise for each picture instead.
    - `noise`, `step_noise`: the noise itself, `(captions, L, n)` and `(T, captions, L, n)`; of the online cascade
      lists, for each stage.
    - `decoding` (`str`, defaults to `"paper"`): or `"fast"`, a fifth of the paper's steps with the state ahead of the
      time, see `fast_decoding`; what a call says of them itself counts.
    - `cascade` (`str`, defaults to `"online"`): `"online"`, in the second pass both stages predict and their words'
      probabilities are averaged, with `cascade_weights`; `"offline"`, the second stage predicts alone.
    - `num_return_sequences`: captions of a picture from different noise, the one that the model finds likeliest first.

    Args:
        config ([`ScdnetConfig`]): sizes and rates.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import ScdnetConfig, ScdnetForImageCaptioning
    >>> config = ScdnetConfig(
    ...     vocab_size=50, hidden_size=32, intermediate_size=64, num_attention_heads=4, visual_layers=1,
    ...     semantic_layers=1, decoder_layers=1, feature_size=24, unk_token_id=49, retrieved_positions=20,
    ... )
    >>> model = ScdnetForImageCaptioning(config).eval()
    >>> sentences = torch.tensor([[0, 7, 8], [0, 9, 8]])
    >>> ids = model.generate(image_features=torch.randn(2, 9, 24), retrieved_ids=sentences, num_inference_steps=4)
    >>> ids.shape[0], bool((ids[:, 0] == 0).all())
    (2, True)

    ```
    """

    processor_class = ScdnetProcessor
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _keep_in_fp32_modules_strict = ["time_embed"]
    image_inputs = (
        *CaptionerPreTrainedModel.image_inputs,
        *("retrieved_ids", "retrieved_mask", "previous_ids", "guide_ids"),
    )
    loss_inputs = ("smoothing", "seeds", "timesteps", "noise", "self_conditioning")
    decodings = {"paper": None, "fast": None}
    input_embeddings, output_embeddings = "r_token_embed.embeddings", "predictor.logits"
    # Queries and values of every attention: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = r"((r_)?encoder\.layers|decoder\.g_layers)\.\d+\.\w+\.self\.(query|value)"
    config: ScdnetConfig

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__(config)
        self.backbone = self.new_backbone()
        self.token_embed = BitEmbedding(config)
        self.visual_embed = VisualEmbedding(config)
        self.encoder = Encoder(config.visual_layers, config)
        self.r_token_embed = WordEmbedding(config)
        self.r_encoder = Encoder(config.semantic_layers, config)
        self.decoder = Decoder(config)
        self.predictor = Predictor(config)
        self.codec = BitCodec(config)
        self.first_stage = None if config.first_stage is None else type(self)(cast(ScdnetConfig, config.first_stage))
        self.post_init()

    @classmethod
    def new(
        cls, captions: Any, backbone: Any = None, features: Any = None, **options: Any
    ) -> tuple[Any, ScdnetProcessor]:
        """As for every captioner: a first stage or, with `sees_previous=True`, a second one.

        `num_bits`, by default as many as the words need, bounds how many words it can get later. Its rows have a column
        `retrieved`, and those of a second stage `previous`, see [`ScdnetProcessor`]; with `retrieval="none"` a model
        learns to do without retrieved sentences. Special tokens are four words of the vocabulary, where the authors'
        has one for start, end and padding.

        Raises:
            ValueError: see [`CaptionerPreTrainedModel.new`]; a `first_stage`.
        """
        if options.get("first_stage") is not None:
            raise ValueError(
                f"{cls.__name__}.new: first_stage: stages are trained one by one, and make a cascade then."
            )
        model, processor = super().new(captions, backbone, features, **options)
        model.generation_config.suppress_tokens = None  # words are made of bits; none of them can be ruled out
        return model, processor

    @classmethod
    def from_stages(cls, first: "ScdnetForImageCaptioning", second: "ScdnetForImageCaptioning") -> Any:
        """Make a cascade of two stages that were trained one by one.

        Args:
            first, second ([`ScdnetForImageCaptioning`]): of one vocabulary. Their weights are copied; of the two
                backbones, which have to be the same, one stays.

        Returns:
            [`ScdnetForImageCaptioning`]: in evaluation mode; the processor of the second stage belongs to it.

        Raises:
            StrictDataclassError: (huggingface_hub) they are no two stages that fit, by field and value.
            ValueError: they have different backbones.
        """
        own, other = first.backbone, second.backbone
        if own is not None and other is not None and not same_weights(own, other):
            raise ValueError(f"{cls.__name__}.from_stages: the stages have different backbones; a cascade owns one.")
        config = {**first.config.to_dict(), "vision_config": None, "features_only": True}
        model = cls(type(second.config)(**{**second.config.to_dict(), "first_stage": config}))
        below = {
            f"first_stage.{name}": weight for name, weight in first.state_dict().items() if "backbone." not in name
        }
        model.load_state_dict({**second.state_dict(), **below})
        return cast(Any, model).to(second.dtype).eval()

    @property
    def is_cascade(self) -> bool:
        """Tell whether this model owns a first stage."""
        return self.first_stage is not None

    def default_decoding(self) -> dict[str, Any]:
        """The paper's: 50 steps; of a cascade 50 and 40 steps, the first ones 45 steps ahead, both stages together."""
        common = {
            "max_length": self.config.max_position_embeddings,
            "decoding": "paper",
            "time_spacing": 1.0,
            "sampler": "paper",
            "sample_noise": False,
            "word_choice": "bits",
            "self_condition": "none",
            "seed": 0,
        }
        if self.config.first_stage is None:
            return {**common, "num_inference_steps": 50, "time_difference": 0.0}
        stages = {"num_inference_steps": [50, 40], "time_difference": [45.0, 0.0]}
        return {**common, **stages, "cascade": "online", "cascade_weights": [1.0, 1.0]}

    def fast_decoding(self) -> dict[str, Any]:
        """Options of `decoding="fast"`: 10 steps, the state 6 of them ahead of the time; of a cascade a fifth of the
        paper's, as far ahead.

        On Flickr8k a first stage's captions are worth as much so as after the paper's 50 steps without time
        difference, or more; those of a second stage after a short training are not (`docs/results.md`). The cascade was
        not measured.
        """
        if self.config.first_stage is None:
            return {"num_inference_steps": 10, "time_difference": 6.0}
        return {"num_inference_steps": [10, 8], "time_difference": [9.0, 0.0]}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's defaults, and standard normal frequencies of the time's features."""
        initialize(module)
        if isinstance(module, TimeFeatures):
            init.normal_(module.weights)
        elif isinstance(module, BitCodec):
            module.reset()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, for words that have as many bits as before.

        Raises:
            ValueError: more words than the bits can tell apart.
        """
        bits = cast(int, self.config.num_bits)
        if new_num_tokens is not None and bits_needed(new_num_tokens) > bits:
            raise ValueError(
                f"new_num_tokens={new_num_tokens} is more than the {2**bits} words that {bits} bits can tell apart; a "
                "model of more bits (config.num_bits) has to be trained anew."
            )
        if self.first_stage is not None:
            self.first_stage.resize_token_embeddings(new_num_tokens, *args, **kwargs)
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.codec.reset()
        return embeddings

    # -- pictures and sentences --------------------------------------------------------------------------------------

    def encode(
        self,
        features: torch.Tensor,
        mask: torch.Tensor | None,
        retrieved_ids: torch.Tensor | None = None,
        retrieved_mask: torch.Tensor | None = None,
        previous_ids: torch.Tensor | None = None,
        guide_ids: torch.Tensor | None = None,
    ) -> ScdnetEncoderOutput:
        """Self-attention of the regions, the first `config.max_regions` of each picture, and the embedded sentences.

        Raises:
            ValueError: no retrieved sentence; sentences that cannot be shared out among the pictures, that are too long
                or whose mask has another shape; a previous sentence for a first stage.
        """
        features, mask = first_regions(features, padding_mask(mask), self.config.max_regions)
        if mask is not None and values_are_known(mask):
            longest = int(mask.any(0).nonzero().max()) + 1
            features, mask = features[:, :longest], padding_mask(mask[:, :longest])
        retrieved_ids = self._retrieved(retrieved_ids, retrieved_mask, features)
        sentences = {"retrieved_ids": retrieved_ids, "previous_ids": previous_ids, "guide_ids": guide_ids}
        self._check_sentences(len(features), sentences)
        states = [self.visual_embed(features.to(self.dtype))]  # (B, L, d)
        for layer in self.encoder.layers:
            states.append(layer(states[-1], _visible(mask)))
        first = None
        if self.first_stage is not None:
            first = self.first_stage.encode(features, mask, retrieved_ids, retrieved_mask)
        return ScdnetEncoderOutput(
            last_hidden_state=states[-1],
            image_attention_mask=mask,
            image_features=features,
            hidden_states=tuple(states),
            retrieved=self.r_token_embed(retrieved_ids),
            retrieved_mask=padding_mask(retrieved_mask),
            previous_ids=None if previous_ids is None else self._padded(previous_ids),
            guide_ids=None if guide_ids is None else self._padded(guide_ids),
            first=first,
        )

    def _retrieved(self, ids: torch.Tensor | None, mask: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
        """The retrieved sentences, checked; or an empty one for every picture where the model may do without."""
        if ids is None and self.config.retrieval == "none":
            logger.warning_once(
                "config.retrieval='none': the captioner sees an empty sentence in the place of a retrieved one; what "
                "captions are worth that way is untested, unless it was trained so."
            )
            return torch.full((len(features), 1), cast(int, self.config.bos_token_id), device=features.device)
        if ids is None:
            raise ValueError(
                "give retrieved_ids, the sentence that was retrieved for each picture: ScdnetProcessor finds it where "
                "the captioner's folder has a caption retriever (`hf-captioners retrieval build --out "
                "CAPTIONER/retrieval`) and a picture is given; for cached features `hf-captioners retrieval lookup` "
                "finds it once (a column `retrieved` of rows, --sentences retrieved=FILE). Or set "
                "config.retrieval='none' to caption without, which the released models were never trained for."
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"retrieved_mask must be {tuple(ids.shape)} like retrieved_ids, not {tuple(mask.shape)}.")
        return ids

    def _check_sentences(self, images: int, sentences: dict[str, torch.Tensor | None]) -> None:
        longest = {"retrieved_ids": self.config.retrieved_positions}
        for name, ids in sentences.items():
            if ids is None:
                continue
            length = longest.get(name, self.config.caption_length)
            if ids.ndim != 2 or len(ids) % images or ids.shape[1] > length:
                raise ValueError(
                    f"{name} must be (sentences, tokens), a multiple of {images} pictures and at most {length} tokens, "
                    f"not {tuple(ids.shape)}."
                )
        if sentences["previous_ids"] is not None and not self.config.sees_previous:
            raise ValueError("previous_ids is for a second stage (config.sees_previous); this model is a first one.")

    def _padded(self, ids: torch.Tensor) -> torch.Tensor:
        """Captions (R, T) in all places (R, L), with nothing but padding behind their end; -100 is padding too."""
        pad, eos = cast(int, self.config.pad_token_id), cast(int, self.config.eos_token_id)
        ids = ids.masked_fill(ended_before(ids, eos) | (ids == -100), pad)
        return nn.functional.pad(ids, (0, self.config.caption_length - ids.shape[1]), value=pad)

    def _known(self, encoded: ScdnetEncoderOutput, captions: int, previous_ids: torch.Tensor | None = None) -> Known:
        """Inputs of captions of encoded pictures that are known before the first step."""
        if captions % len(encoded.last_hidden_state):
            raise ValueError(
                f"{captions} captions cannot be shared out among {len(encoded.last_hidden_state)} pictures evenly."
            )
        attend = self.r_encoder.layers[0].attention.self
        heads = attend.project(encoded.retrieved)  # of each sentence once, before it is repeated
        mask = encoded.retrieved_mask
        if mask is not None:
            shown = mask.new_ones(len(mask), self.config.caption_length)
            mask = _spread("retrieved_ids", torch.cat((shown, mask), dim=1), captions)
        return Known(
            memory=[layer.x_att.self.keys_and_values(encoded.last_hidden_state) for layer in self.decoder.g_layers],
            memory_mask=_visible(encoded.image_attention_mask),
            retrieved=cast(Heads, tuple(_spread("retrieved_ids", part, captions) for part in heads)),
            retrieved_states=_spread("retrieved_ids", encoded.retrieved, captions),
            semantic_mask=_visible(mask),
            previous=self.previous_bits(encoded, captions, previous_ids),
        )

    def previous_bits(
        self, encoded: ScdnetEncoderOutput, captions: int, previous_ids: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Bits of the sentences of the first stage, which a second stage sees.

        Args:
            encoded ([`ScdnetEncoderOutput`]): of the pictures.
            captions (`int`): their number N.
            previous_ids (`torch.LongTensor` of shape `(R, L)`, *optional*): the sentences; by default those of
                `encoded`, or what the first stage of a cascade writes.

        Returns:
            `torch.Tensor` of shape `(N, L, n)`; of a first stage `None`
        """
        if not self.config.sees_previous:
            return None
        previous = encoded.previous_ids if previous_ids is None else previous_ids
        if previous is None:
            previous = self._first_words(encoded)
        return self.codec.encode(_spread("previous_ids", previous, captions))

    @torch.no_grad()
    def _first_words(self, encoded: ScdnetEncoderOutput) -> torch.Tensor:
        """Captions that the first stage of a cascade writes, for a second stage that is not told."""
        if self.first_stage is None:
            raise ValueError(
                "a second stage needs previous_ids, what the first stage wrote of each picture (a column `previous` of "
                "rows, --sentences previous=FILE); or be a cascade (`hf-captioners scdnet join FIRST SECOND`)."
            )
        return self._padded(self.first_stage.write_captions(encoded.first)[:, 1:])

    # -- the network -------------------------------------------------------------------------------------------------

    def predict(
        self,
        state: torch.Tensor,
        known_bits: torch.Tensor,
        time: torch.Tensor,
        known: Known,
        states: bool = False,
        all_weights: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One pass of the network.

        Args:
            state, known_bits (`torch.FloatTensor` of shape `(N, L, n)`): noisy bits, and the last prediction.
            time (`torch.Tensor` of shape `(N, d)` or `(1, d)`): vectors of the time.
            known ([`Known`]): of the captions.
            states (`bool`, defaults to `False`): also return the layers' outputs.
            all_weights (`list[torch.Tensor]`, *optional*): a list that gets each decoder layer's attention to the
                picture, `(N, H, L, regions)`.

        Returns:
            `tuple[torch.Tensor, list[torch.Tensor]]`: logits of the words `(N, L, V)`; the embedded bits, the outputs
            of the semantic transformer and of each decoder layer, `(N, L, d)` each.
        """
        parts = [known_bits, state] if known.previous is None else [known_bits, state, known.previous]
        hidden = self.token_embed(torch.cat(parts, dim=-1), time)  # (N, L, d)
        length, outputs = hidden.shape[1], [hidden]
        layers = self.r_encoder.layers
        words = layers[0].attention.self.project(hidden)
        heads: Any = tuple(torch.cat(pair, dim=2) for pair in zip(words, known.retrieved, strict=True))
        hidden = torch.cat((hidden, known.retrieved_states), dim=1)  # (N, L + T, d)
        for index, layer in enumerate(layers):
            wanted = length if index == len(layers) - 1 else None  # nobody reads the sentence behind the last layer
            hidden = layer(hidden, known.semantic_mask, heads if index == 0 else None, wanted)
        outputs.append(hidden)  # (N, L, d)
        for layer, memory in zip(self.decoder.g_layers, known.memory, strict=True):
            hidden = layer(hidden, *memory, known.memory_mask, all_weights)
            outputs.append(hidden)
        return self.predictor(hidden), outputs if states else []

    def expected_bits(self, logits: torch.Tensor) -> torch.Tensor:
        """Bits that the network expects, `(N, L, n)` in float32, of the words' logits `(N, L, V)`."""
        return word_probabilities(logits) @ self.codec.table.float()

    # -- captions that are there -------------------------------------------------------------------------------------

    def _predict_once(
        self,
        encoded: ScdnetEncoderOutput,
        ids: torch.Tensor,
        seeds: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        self_conditioning: bool | torch.Tensor | None = None,
        draw: bool = False,
        all_weights: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Corrupt captions (N, L) and predict them in one step: logits (N, L, V) and the layers' outputs."""
        shape = (*ids.shape, cast(int, self.config.num_bits))
        images = len(encoded.last_hidden_state)
        drawn = self._draw(seeds, shape, images, draw, ids.device)
        timesteps = drawn[0] if timesteps is None else timesteps
        noise = drawn[1] if noise is None else noise
        self_conditioning = drawn[2] if self_conditioning is None else self_conditioning
        ratios = log_snr(timesteps, self.config.noise_schedule)  # (N,)
        state = corrupt(self.codec.encode(ids), noise, ratios)
        known_bits = self._own_prediction(encoded, state, ratios, self_conditioning)
        time = self.token_embed.time_embed(ratios)
        return self.predict(state, known_bits, time, self._known(encoded, len(ids)), True, all_weights)

    def _draw(
        self, seeds: torch.Tensor | None, shape: tuple[int, ...], images: int, draw: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, bool | torch.Tensor]:
        """Times (N,), noise (N, L, n), and whether to self-condition: of everything, or of each picture (B,)."""
        rate = self.config.self_conditioning
        if seeds is not None:
            drawn = [step_of(int(seed), shape[1:]) for seed in seeds.tolist()]
            heads = torch.tensor([coin for _, _, coin in drawn[:: max(len(drawn) // images, 1)]]) < rate
            times, noise = (torch.stack([pair[part] for pair in drawn]).to(device) for part in (0, 1))
            return times, noise, heads
        if draw:
            times = torch.rand(shape[0], device=device) * TRAINING_END
            return times, torch.randn(shape, device=device), bool(torch.rand(()) < rate)
        times = torch.full(shape[:1], float(self.config.scoring_time), device=device)
        return times, self.codec.noise.float().expand(shape), False

    @torch.no_grad()
    def _own_prediction(
        self, encoded: ScdnetEncoderOutput, state: torch.Tensor, ratios: torch.Tensor, chosen: bool | torch.Tensor
    ) -> torch.Tensor:
        """Predictions of a first pass for the chosen pictures' captions, (N, L, n); zeros for the others."""
        known_bits, images = torch.zeros_like(state), len(encoded.last_hidden_state)
        if isinstance(chosen, bool):
            index = torch.arange(images if chosen else 0, device=state.device)
        else:
            index = chosen.nonzero().flatten().to(state.device)
        if not len(index):
            return known_bits
        rows = torch.arange(len(state), device=state.device).view(images, -1)[index].flatten()
        known = self._known(encoded.rows(index), len(rows))
        time = self.token_embed.time_embed(ratios[rows])
        logits, _ = self.predict(state[rows], known_bits[rows], time, known)
        return known_bits.index_copy(0, rows, self.expected_bits(logits).to(known_bits.dtype))

    def score_captions(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        labels: torch.Tensor | None,
        *,
        decoder_input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int = 0,
        smoothing: float | None = None,
        **chance: Any,
    ) -> CaptionerOutput:
        """Corrupt the captions, predict them in one step, and compare: the squared error of the bits and the divergence
        of the words, both up to the end of each caption.

        Raises:
            ValueError: no labels, or too long ones; a cache.
        """
        if past_key_values is not None or decoder_input_ids is not None or labels is None:
            raise ValueError("SCD-Net scores whole captions: give labels, no decoder_input_ids and no past_key_values.")
        if bool((labels[:, self.config.caption_length :] != -100).any()):
            raise ValueError(
                f"labels of {labels.shape[1]} tokens are longer than the {self.config.caption_length} places of this "
                "model (max_position_embeddings - 1)."
            )
        width, encoded = labels.shape[1], cast(ScdnetEncoderOutput, encoder_outputs)
        labels = labels[:, : self.config.caption_length]
        ids = self._padded(labels)  # (N, L)
        seeds = chance.get("seeds")
        if self.training and seeds is not None and encoded.previous_ids is not None:
            encoded = replace(encoded, previous_ids=self._with_replaced_words(encoded, seeds))
        weights: list[torch.Tensor] | None = [] if output_attentions else None
        logits, states = self._predict_once(encoded, ids, draw=self.training, all_weights=weights, **chance)
        labels = labels.masked_fill(ended_before(labels, cast(int, self.config.eos_token_id)), -100)
        logits = logits[:, : labels.shape[1]]
        terms = self.loss_terms(logits, labels, num_items_in_batch, smoothing)
        logits = nn.functional.pad(logits, (0, 0, 0, width - logits.shape[1]))
        return CaptionerOutput(
            loss=terms[0] + terms[1],
            logits=logits[:, -logits_to_keep:],
            decoder_hidden_states=tuple(states),
            cross_attentions=None if weights is None else tuple(weights),
        )

    def _with_replaced_words(self, encoded: ScdnetEncoderOutput, seeds: torch.Tensor) -> torch.Tensor:
        """Previous sentences (R, L) in which words are replaced by random ones, of pictures or of captions."""
        config, previous = self.config, cast(torch.Tensor, encoded.previous_ids)
        images = len(encoded.last_hidden_state)
        rows = images if config.replaced_together else len(seeds)  # that have a chance of their own
        previous = _spread("previous_ids", previous, max(rows, len(previous)))
        drawn = numbers_of(seeds[:: len(seeds) // rows], (2, previous.shape[1]), apart=2)
        chances, heights = _spread("previous_ids", drawn.to(previous.device), len(previous)).unbind(1)  # (R, L) each
        special = {config.pad_token_id, config.bos_token_id, config.eos_token_id, config.unk_token_id}
        words = torch.tensor([word for word in range(config.vocab_size) if word not in special], device=previous.device)
        others = words[(heights * len(words)).long().clamp(max=len(words) - 1)]
        is_word = torch.isin(previous, cast(int, config.eos_token_id)).cumsum(1) == 0
        return torch.where(is_word & (chances < config.replaced_words), others, previous)

    def loss_terms(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None = None,
        smoothing: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two terms of the loss, which are summed.

        Args:
            logits (`torch.Tensor` of shape `(N, T, V)`): of the words.
            labels (`torch.LongTensor` of shape `(N, T)`): words and end token, then -100.
            num_items (`int` or `torch.Tensor`, *optional*): what to divide by; the number of targets by default.
            smoothing (`float`, *optional*, defaults to `config.label_smoothing`): mass of the other words.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the mean squared error of the bits; the divergence of the smoothed
            words.
        """
        targets = labels != -100
        error = self.expected_bits(logits[targets]) - self.codec.encode(labels[targets])  # (M, n)
        bits = error.square().mean(-1).sum() / (targets.sum() if num_items is None else num_items)
        smoothing = self.config.label_smoothing if smoothing is None else smoothing
        return bits, smoothed_divergence(logits, labels, smoothing, num_items)

    def sequence_log_probs(
        self,
        sequences: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        return_entropies: bool = False,
        targets: torch.Tensor | None = None,
        seeds: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        self_conditioning: bool | torch.Tensor | None = None,
        **images: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of every token of captions, with gradient: what one step of denoising gives them.

        By default the step is that at `config.scoring_time`, 1.0 unless it was changed, where the network sees the
        noise of `config.scoring_seed` and nothing else.

        Args:
            sequences, encoder_outputs, return_entropies, images: see [`CaptionerPreTrainedModel`].
            targets (`torch.LongTensor` of shape `(N, T)`, *optional*): captions that are corrupted and denoised in the
                place of `sequences`, without start token, such as a guiding sentence.
            seeds, timesteps, noise, self_conditioning: see [`ScdnetForImageCaptioning`].
        """
        encoded = cast(ScdnetEncoderOutput, self._encoded(encoder_outputs, images))
        words = sequences[:, 1:]
        if words.shape[1] > self.config.caption_length:
            raise ValueError(
                f"sequences of {sequences.shape[1]} tokens are beyond this model's "
                f"max_position_embeddings={self.config.max_position_embeddings}."
            )
        ids = self._padded(words if targets is None else targets)
        logits, _ = self._predict_once(encoded, ids, seeds, timesteps, noise, self_conditioning)
        logits = logits[:, : words.shape[1]]
        ended = ended_before(words, cast(int, self.config.eos_token_id))
        log_probs, entropies = (part.masked_fill(ended, 0.0) for part in token_log_probs(logits, words))
        return (log_probs, entropies) if return_entropies else log_probs

    # -- captions that are written -----------------------------------------------------------------------------------

    def write_captions(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Write captions of encoded pictures by denoising; see the class for the options."""
        own = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        copies = kwargs.pop("num_return_sequences", None)  # transformers wants beams or sampling for more than 1
        config, rest = self._prepare_generation_config(generation_config, *args, **kwargs)
        self._validate_model_kwargs(rest)
        self._check_longest(config)
        defaults = vars(self.generation_config) | vars(config)
        fast = self.fast_decoding() if config.decoding == "fast" else {}
        options = {name: defaults.get(name) for name in OPTIONS} | fast | own
        config.num_return_sequences = config.num_return_sequences if copies is None else copies
        self.check_options({**vars(config), **options})
        self._refuse_words(config)
        for name in ("word_choice", "self_condition"):  # None in folders of earlier versions
            options[name] = options[name] or self.default_decoding()[name]
        encoded = cast(ScdnetEncoderOutput, encoder_outputs)
        copies = config.num_return_sequences
        noise = SamplerNoise(options, self.codec.noise.shape, len(encoded.last_hidden_state), copies, config.do_sample)
        weights: list[torch.Tensor] | None = [] if config.output_attentions else None
        stages = self._write_stages(encoded, options, noise, bool(config.output_scores), weights)
        ids = self._to_sequences(stages[-1], options)  # (B * copies, 1 + L)
        scores = None
        if copies > 1 or config.return_dict_in_generate:
            scores = self._scores(ids, encoded, stages, options)
        if copies > 1:
            order = scores.view(-1, copies).argsort(dim=1, descending=True, stable=True)  # type: ignore[union-attr]
            order = (order + torch.arange(0, len(ids), copies, device=order.device)[:, None]).flatten()
            ids, scores = ids[order], scores[order]  # type: ignore[index]
            weights = None if weights is None else [layer[order] for layer in weights]
        ids = self._cut(ids, config)
        if not config.return_dict_in_generate:
            return ids
        layers = [iter(weights or [])] * self.config.decoder_layers
        steps = None if weights is None else tuple(zip(*layers, strict=True))
        return ScdnetGenerateOutput(ids, scores, stages, steps)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options as every captioner does, those of the samplers, and how a caption is to begin."""
        super().check_options(options)
        check_sampling(options, 2 if self.is_cascade else 1)
        if options.get("self_condition") == "previous" and not self.config.sees_previous:
            raise ValueError("self_condition='previous' is for a second stage; this model is a first one.")
        begun = options.get("decoder_input_ids")
        if begun is not None and begun.shape[1] > 1:  # more than the start token
            raise ValueError("a diffusion captioner writes all words at once: they cannot begin with a given text.")

    def _refuse_words(self, config: GenerationConfig) -> None:
        """Refuse options of captioners that write word by word, and other special tokens than the model's."""
        if cast(int, config.num_beams) > 1:
            raise ValueError("a diffusion captioner has no beams; num_return_sequences gives captions to choose from.")
        tokens = {name: (vars(self.config)[name],) for name in ("eos_token_id", "pad_token_id")}
        tokens["decoder_start_token_id"] = (self.config.decoder_start_token_id,)
        refuse_options(config, {**NEUTRAL, **WORD_BY_WORD, **tokens}, f"{type(self).__name__}.generate")

    def _scores(
        self, ids: torch.Tensor, encoded: ScdnetEncoderOutput, stages: list[Denoised], options: dict[str, Any]
    ) -> torch.Tensor:
        """Log-probabilities (N,) of captions, which a second stage gives with the first one's sentences in sight."""
        if len(stages) > 1:
            encoded = replace(encoded, previous_ids=self._to_sequences(stages[0], options)[:, 1:])
        return cast(torch.Tensor, self.sequence_log_probs(ids, encoder_outputs=encoded)).sum(1)

    def _write_stages(
        self,
        encoded: ScdnetEncoderOutput,
        options: dict[str, Any],
        noise: SamplerNoise,
        keep: bool,
        all_weights: list[torch.Tensor] | None,
    ) -> list[Denoised]:
        """Output of the samplers: of one stage, or of both of a cascade."""
        if self.first_stage is None or encoded.previous_ids is not None:
            return [self._denoise([(self, encoded, None)], options, noise, -1, keep, all_weights)]
        alone = (self.first_stage, encoded.first, None)
        first = self._denoise([alone], options, noise, 0, keep)
        previous = self._to_sequences(first, options)[:, 1:]
        both: list[Any] = [(self, encoded, previous)]
        if options["cascade"] == "online":
            both.insert(0, alone)
        return [first, self._denoise(both, options, noise, 1, keep, all_weights)]

    def _denoise(
        self,
        networks: list[tuple[Any, Any, Any]],
        options: dict[str, Any],
        noise: SamplerNoise,
        stage: int,
        keep: bool,
        all_weights: list[torch.Tensor] | None = None,
    ) -> Denoised:
        """Run a sampler on networks, each with its encoded pictures and previous sentences, together."""
        number = of_stage(options["num_inference_steps"], stage)
        ahead = float(of_stage(options["time_difference"], stage))
        spacing = options["time_spacing"]
        spacing = 1.0 if spacing is None else float(of_stage(spacing, stage))  # None in folders of earlier versions
        device = self.codec.table.device
        # the networks of a cascade share the schedule's points, each in its own schedule would not be one state
        plan = SamplingPlan.of(number, ahead, self.config.noise_schedule, device, spacing)
        start, added = noise.of_stage(stage, number, bool(options["sample_noise"]), device)
        captions = len(start)
        known = [network._known(encoded, captions, previous) for network, encoded, previous in networks]
        times = [network.token_embed.time_embed(plan.log_ratios) for network, _, _ in networks]  # (T, d) each
        weights = options["cascade_weights"] if len(networks) > 1 else [1.0]

        def predict(step: int, state: torch.Tensor, known_bits: torch.Tensor) -> torch.Tensor:
            words: Any = 0.0
            for (network, _, _), own, time, weight in zip(networks, known, times, weights, strict=True):
                wanted = all_weights if network is self else None
                logits, _ = network.predict(state, known_bits, time[step : step + 1], own, all_weights=wanted)
                words = words + weight * word_probabilities(logits)
            return words / sum(weights)

        seen = known[-1].previous if options["self_condition"] == "previous" else None
        seen = None if seen is None else seen.float()
        return denoise(predict, plan, start, self.codec.table.float(), options["sampler"], added, keep, seen)

    @torch.no_grad()
    def write_candidates(
        self,
        encoder_outputs: CaptionerEncoderOutput,
        num_candidates: int,
        max_length: int,
        seeds: Sequence[str],
        greedy: bool = False,
        force_guided: bool = False,
        **kwargs: Any,
    ) -> CandidateOutput:
        """Write candidates of guided self-critical training: one step of denoising of the guiding sentence.

        The picture's `guide_ids`, or without them what the sampler writes, are corrupted at a time of chance for each
        candidate and denoised in one step, half of the time self-conditioned. A candidate is drawn from the words'
        probabilities at each place; its greedy caption has the likeliest words of the same step, and `greedy=True`
        gives that of each picture's first candidate.

        Args:
            encoder_outputs, num_candidates, max_length, seeds, greedy: see [`CaptionerPreTrainedModel`].
            force_guided (`bool`, defaults to `False`): whether one candidate of each picture, drawn by chance, is the
                guiding sentence itself.
            kwargs: options of the sampler, where there is no guiding sentence.

        Returns:
            [`CandidateOutput`]: `scoring_inputs` are what `sequence_log_probs` takes of that step.
        """
        encoded = cast(ScdnetEncoderOutput, encoder_outputs)
        images = len(encoded.last_hidden_state)
        guide = encoded.guide_ids
        if guide is None:
            guide = self._padded(self.write_captions(encoded.with_first_sentences(), **kwargs)[:, 1:])
        targets = guide.repeat_interleave(num_candidates, dim=0)  # (N, L)
        names = seeds if len(seeds) == images else [str(row) for row in range(images)]
        numbers = torch.tensor([number_of(name, row) for name in names for row in range(num_candidates)])
        shape = (*targets.shape, cast(int, self.config.num_bits))
        times, noise, heads = self._draw(numbers, shape, images, True, targets.device)
        chance: dict[str, Any] = {"timesteps": times, "noise": noise, "self_conditioning": heads}
        logits, _ = self._predict_once(encoded, targets, **chance)
        likeliest = self._with_start(logits.argmax(-1))[:, :max_length]
        if greedy:
            return CandidateOutput(likeliest, scoring_inputs={"targets": targets, **chance})
        words = drawn_words(word_probabilities(logits), numbers)
        if force_guided:
            forced = numbers[::num_candidates] % num_candidates + torch.arange(0, len(words), num_candidates)
            words[forced] = targets[forced]
        return CandidateOutput(
            self._with_start(words)[:, :max_length],
            scoring_inputs={"targets": targets, **chance},
            greedy_sequences=likeliest,
        )

    def _to_sequences(self, denoised: Denoised, options: dict[str, Any]) -> torch.Tensor:
        """Captions (N, 1 + L) of a sampler's output: start token, words of the vocabulary, end token, padding."""
        return self._with_start(denoised.words(options["word_choice"], self.config.vocab_size))

    def _with_start(self, words: torch.Tensor) -> torch.Tensor:
        """Captions (N, 1 + L): start token, words up to the end token, padding."""
        start = torch.full_like(words[:, :1], cast(int, self.config.decoder_start_token_id))
        return torch.cat((start, self._padded(words)), dim=1)

    def _cut(self, ids: torch.Tensor, config: GenerationConfig) -> torch.Tensor:
        """Captions no longer than asked for, and as wide as the longest one."""
        length = config.max_length if config.max_new_tokens is None else config.max_new_tokens + 1
        ids = ids[:, :length]
        ended = ended_before(ids[:, 1:], cast(int, self.config.eos_token_id))
        return ids[:, : 1 + int((~ended).sum(1).max())]


def _visible(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(R, L) -> (R, 1, 1, L), True for what is visible."""
    return None if mask is None else mask.bool()[:, None, None]


def _spread(name: str, rows: torch.Tensor, captions: int) -> torch.Tensor:
    """Rows of pictures or captions, (R, …), as rows of captions, (N, …)."""
    if captions % len(rows):
        raise ValueError(f"{len(rows)} rows of {name} cannot be shared out among {captions} captions evenly.")
    return rows if captions == len(rows) else rows.repeat_interleave(captions // len(rows), dim=0)
