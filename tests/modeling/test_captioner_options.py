"""Every option of `generate`, for every captioner's own decoding: an effect, an equality by definition, or a refusal.

`OPTIONS` has an entry for each field of transformers' `GenerationConfig`; a field that a release adds fails here until
it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from contracts.reward_policies import tiny_policy
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, WatermarkingConfig
from transformers.generation.streamers import BaseStreamer

from hf_captioners.modeling.captioner_options import NEUTRAL, WORD_BY_WORD

BEAMS = {"num_beams": 3}
DECODINGS = {
    "expansionnet_v2": BEAMS,
    "dico": BEAMS,
    "clip_gpt2": BEAMS,
    "satic": BEAMS,
    "satic, words": {"num_beams": 1},
}
LONGEST = 8


@dataclass
class Option:
    """Effect of an option.

    Attributes:
        kind (`str`): "effect": other captions, scores or outputs; "equal": the same ones; "refused"; "no option".
        value: that it is tried with; a function is called with the captions that are written without it.
        beside (`dict`): what it is tried together with.
        otherwise (`dict`): another kind, by the name of a decoding.
    """

    kind: str
    value: Any = None
    beside: dict[str, Any] = field(default_factory=dict)
    otherwise: dict[str, str] = field(default_factory=dict)


def word(ids: torch.Tensor) -> int:
    """The first word of the first caption."""
    return int(ids[0, 1])


def another(ids: torch.Tensor) -> int:
    """A word that is not the first one of any caption, nor special."""
    return next(index for index in range(4, 15) if index not in ids[:, 1])


def sampling(value: Any) -> Option:
    return Option("effect", value, {"do_sample": True}, {"satic": "refused"})


def refused(value: Any) -> Option:
    return Option("refused", value)


BEAMS_ONLY = {"satic, words": "equal"}
OPTIONS = {
    # how long
    "max_length": Option("effect", 4),
    "max_new_tokens": Option("effect", 2),
    "min_length": Option("effect", 7),
    "min_new_tokens": Option("effect", 6),
    "early_stopping": Option(
        "refused",
        True,
        {"length_penalty": 4.0, "eos_token_id": list(range(4, 15))},
        otherwise={"dico": "effect", "satic, words": "equal"},
    ),
    "max_time": Option("effect", 0.0),
    "stop_strings": Option("refused", ["a"]),  # in groups of words transformers asks for a tokenizer
    # which search
    "do_sample": Option("effect", True, otherwise={"satic": "refused"}),
    "num_beams": Option("effect", 2),
    "num_return_sequences": Option("effect", 2, otherwise={"satic, words": "refused"}),
    "length_penalty": Option("effect", 3.0, otherwise=BEAMS_ONLY),
    "use_cache": Option("equal", False),
    "disable_compile": Option("equal", True),  # nothing is compiled
    # scores of the words
    "temperature": sampling(0.5),
    "top_k": sampling(2),
    "top_p": sampling(0.3),
    "min_p": sampling(0.4),
    "top_h": sampling(0.3),
    "typical_p": sampling(0.3),
    "epsilon_cutoff": sampling(0.2),
    "eta_cutoff": sampling(0.5),
    "repetition_penalty": Option("effect", 5.0),
    "no_repeat_ngram_size": Option("effect", 1),
    "bad_words_ids": Option("effect", lambda ids: [[word(ids)]]),
    "renormalize_logits": Option("effect", True, {"min_length": 7}),
    "forced_bos_token_id": Option("effect", another),
    "forced_eos_token_id": Option("effect", another),
    "remove_invalid_values": Option("equal", True),  # there are none
    "exponential_decay_length_penalty": Option("effect", (1, 2.0)),
    "suppress_tokens": Option("effect", lambda ids: [word(ids)]),
    "begin_suppress_tokens": Option("effect", lambda ids: [word(ids)]),
    "sequence_bias": Option("effect", lambda ids: {(word(ids),): -9.0}),
    "watermarking_config": Option("effect", WatermarkingConfig()),
    # special tokens
    "pad_token_id": Option("effect", 5),  # tried where captions end early, see below
    "bos_token_id": Option("equal", 5),  # captions begin with decoder_start_token_id
    "eos_token_id": Option("effect", word),
    "decoder_start_token_id": Option("effect", 5, otherwise={"clip_gpt2": "refused"}),
    # what is returned
    "return_dict_in_generate": Option("effect", False),
    "output_scores": Option("effect", False),
    "output_logits": Option("effect", True),
    "output_hidden_states": Option("effect", True),
    "output_attentions": Option("effect", True),
    # what captioners do not have
    "num_beam_groups": refused(3),
    "diversity_penalty": refused(1.0),
    "constraints": refused([object()]),
    "force_words_ids": refused([[5]]),
    "penalty_alpha": refused(0.6),
    "low_memory": refused(True),
    "dola_layers": refused("high"),
    "use_mtp": refused(True),
    "is_assistant": refused(True),
    "prompt_lookup_num_tokens": refused(3),
    "max_matching_ngram_size": refused(2),
    "assistant_early_exit": refused(1),
    "num_assistant_tokens": refused(5),
    "num_assistant_tokens_schedule": refused("heuristic"),
    "assistant_confidence_threshold": refused(0.3),
    "assistant_lookbehind": refused(5),
    "target_lookbehind": refused(5),
    "assistant_ensemble_weight": refused(0.5),
    "speculation_type": refused("tree"),
    "encoder_repetition_penalty": refused(2.0),
    "encoder_no_repeat_ngram_size": refused(2),
    "guidance_scale": refused(2.0),
    "token_healing": refused(True),
    "prefill_chunk_size": refused(2),
    "cache_implementation": refused("static"),
    "cache_config": refused({"nbits": 4}),
    "max_cache_len": refused(9),
    "compile_config": refused({"mode": "default"}),
    "continuous_batching_config": refused({"block_size": 4}),
    "transformers_version": Option("no option"),
    "_from_model_config": Option("no option"),
}


class Captioner:
    """A tiny captioner of encoded pictures, with the options of one of its own ways of decoding."""

    def __init__(self, decoding: str) -> None:
        torch.manual_seed(3)
        self.model = tiny_policy(decoding.partition(",")[0]).eval()
        self.usual = {"decoding": "paper", "max_length": LONGEST, "return_dict_in_generate": True}
        self.usual |= {"output_scores": True, **DECODINGS[decoding]}
        pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        self.encoded = self.model.encode_images(pixel_values=pixels)

    def write(self, **options: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        options = {**self.usual, **options}
        if "max_new_tokens" in options:
            options["max_length"] = None
        output = self.model.generate(encoder_outputs=self.encoded, **options)
        return {"sequences": output} if isinstance(output, torch.Tensor) else dict(output)

    def ending_early(self) -> dict[str, Any]:
        """Another end token, with which some captions are shorter than others, and no padding among the words."""
        pad = self.model.config.pad_token_id
        tried = ({"eos_token_id": end, "suppress_tokens": [pad]} for end in range(3, 15))
        return next(options for options in tried if (self.write(**options)["sequences"] == pad).any())


@pytest.fixture(scope="module", params=DECODINGS)
def captioner(request) -> tuple[str, Captioner]:
    return request.param, Captioner(request.param)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if (
        one.keys() - {"past_key_values"} != other.keys() - {"past_key_values"}
        or one["sequences"].shape != other["sequences"].shape
    ):
        return False
    values = [name for name in ("sequences", "sequences_scores", "scores") if name in one]
    pairs = [
        pair
        for name in values
        for pair in (zip(one[name], other[name], strict=False) if name == "scores" else [(one[name], other[name])])
    ]
    return all(a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=1e-5) for a, b in pairs)


def test_every_option_has_an_entry():
    assert OPTIONS.keys() == vars(GenerationConfig()).keys()
    assert NEUTRAL.keys() == {
        name for name, option in OPTIONS.items() if option.kind == "refused" and not option.otherwise
    } - {"stop_strings"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.kind != "no option"])
def test_an_option_is_honoured_or_refused(captioner, name):
    decoding, captions = captioner
    option = OPTIONS[name]
    kind = option.otherwise.get(decoding, option.kind)
    value = option.value
    if callable(value) and not isinstance(value, type):
        value = value(captions.write()["sequences"])
    if kind == "refused":
        with pytest.raises(ValueError, match=rf"{name}|does not sample|stop strings"):
            captions.write(**{**option.beside, name: value})
        return
    beside = captions.ending_early() if name == "pad_token_id" else option.beside
    plain = captions.write(**beside)
    assert same(plain, captions.write(**{**beside, name: value})) == (kind == "equal")


def test_arguments_that_captioners_do_not_have_are_refused(captioner):
    _, captions = captioner
    for argument in ("assistant_model", "negative_prompt_ids", "negative_prompt_attention_mask"):
        with pytest.raises(ValueError, match=argument):
            captions.write(**{argument: torch.ones(3, 1)})
    with pytest.raises(ValueError, match="streamer"):
        captions.write(streamer=BaseStreamer())


def test_values_that_change_nothing_are_accepted(captioner):
    """As generation configs of earlier versions have them."""
    _, captions = captioner
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
    assert same(captions.write(**neutral), captions.write())


def test_criteria_of_the_user_stop_the_search(captioner):
    _, captions = captioner

    class AfterTwo(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 3)

    output = captions.write(stopping_criteria=StoppingCriteriaList([AfterTwo()]))
    assert output["sequences"].shape[1] < captions.write()["sequences"].shape[1]


@pytest.mark.parametrize("option", [{"no_repeat_ngram_size": 1}, {"repetition_penalty": 1e6}])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_start_token_that_is_the_end_token_is_not_repeated_by_the_end(captioner, option, num_beams):
    """The first word may be any, the end included, with the score that it has without the option."""
    _, captions = captioner
    start = captions.model.config.decoder_start_token_id
    options = {"eos_token_id": start, "num_beams": num_beams, "max_length": 3}
    plain, output = captions.write(**options), captions.write(**options, **option)
    torch.testing.assert_close(output["scores"][0][:, start], plain["scores"][0][:, start])
    first = output["sequences"][0, 1]
    if first != start:  # but the first word is not the second one
        assert output["sequences"][0, 2] != first


# of a captioner that writes all words at once; what is not here is refused
AT_ONCE = {
    "max_length": "effect",
    "max_new_tokens": "effect",
    "do_sample": "effect",
    "num_return_sequences": "effect",
    "return_dict_in_generate": "effect",
    "output_scores": "effect",
    "output_attentions": "effect",
    "use_cache": "equal",  # there is none
    "disable_compile": "equal",
    "remove_invalid_values": "equal",
    "bos_token_id": "equal",
}


class TestAllWordsAtOnce:
    @pytest.fixture(scope="class")
    def write(self):
        torch.manual_seed(3)
        model = tiny_policy("scdnet").eval()
        encoded = model.encode_images(pixel_values=torch.randn(3, 3, 16, 16))

        def run(**options):
            torch.manual_seed(0)
            options = {"max_length": LONGEST, "return_dict_in_generate": True, **options}
            if "max_new_tokens" in options:
                options["max_length"] = None
            output = model.generate(encoder_outputs=encoded, **options)
            if isinstance(output, torch.Tensor):
                return {"sequences": output}
            last = output.stages[-1]
            given = {"steps": len(last.states), "attended": output.cross_attentions is not None}
            return {"sequences": output.sequences, "state": last.state, **given}

        return run

    def test_every_option_is_known(self):
        assert AT_ONCE.keys() <= OPTIONS.keys()
        tokens = {"pad_token_id", "eos_token_id", "decoder_start_token_id"}
        known = AT_ONCE.keys() | NEUTRAL.keys() | WORD_BY_WORD.keys() | tokens
        assert known == {name for name, option in OPTIONS.items() if option.kind != "no option"}

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.kind != "no option"])
    def test_an_option_is_honoured_or_refused(self, write, name):
        plain, value = write(), OPTIONS[name].value
        if callable(value) and not isinstance(value, type):
            value = value(plain["sequences"])
        value = {"output_scores": True, "max_length": 2, "max_new_tokens": 1}.get(name, value)
        if name not in AT_ONCE:
            with pytest.raises(ValueError, match=rf"{name}|has no beams"):
                write(**OPTIONS[name].beside, **{name: value})
            return
        tried = write(**{name: value})
        same = plain.keys() == tried.keys() and all(
            one.shape == tried[key].shape and torch.equal(one, tried[key])
            if isinstance(one, torch.Tensor)
            else one == tried[key]
            for key, one in plain.items()
        )
        assert same == (AT_ONCE[name] == "equal")
