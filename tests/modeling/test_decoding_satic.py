"""Decoding of SATIC, against a plain search that follows the specification of the original (section 5) word for word.

The plain search runs one picture at a time, without cache, over Python lists; it shares only `forward` with the code.
"""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from hf_captioners import SaticConfig, SaticForImageCaptioning
from hf_captioners.modeling.cache_satic import GroupCacheLayer
from hf_captioners.modeling.decoding_satic import length_normalizer

WORDS, UNKNOWN = 12, 11
SIZES = (1, 2, 3, 5)


def make_model(size: int, seed: int = 0, sharpness: float = 4.0, **changes) -> SaticForImageCaptioning:
    """A tiny model with peaked distributions, 0 for start, end and padding."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": WORDS,
        "group_size": size,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "feature_size": 6,
        "unk_token_id": UNKNOWN,
    }
    model = SaticForImageCaptioning(SaticConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        model.model.generator.proj.weight.mul_(sharpness)
        model.model.tgt_embed[0].lut.weight.mul_(3.0)
        model.model.generator.proj.bias[0] = 2.0  # captions end, at many places
    return model.requires_grad_(False)


@pytest.fixture()
def features() -> torch.Tensor:
    return 2 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(7))


def group_log_probs(model, encoded, words: list[int]) -> torch.Tensor:
    """Log-probabilities (K, V) of the group after `words`, a whole number of groups, for one encoded picture."""
    size = model.config.group_size
    unseen = [0] * (size - 1)  # places of the same group read the group before
    ids = torch.tensor([[model.config.decoder_start_token_id, *words, *unseen]])
    return model(encoder_outputs=encoded, decoder_input_ids=ids).logits[0, -size:].log_softmax(-1)


def plain_greedy(model, encoded, longest: int) -> list[int]:
    """Section 5.1, with its quirks."""
    size, words = model.config.group_size, []
    for _ in range(longest // size):
        group = group_log_probs(model, encoded, words).argmax(-1).tolist()
        words += group
        if 0 in group:
            break
    return words


def plain_beams(model, encoded, count: int, longest: int, penalty) -> list[tuple[float, list[int]]]:
    """Section 5.2: all groups to the end, nothing stopped early; finished hypotheses stay with a sum of -1000."""
    size, finished = model.config.group_size, []
    beams: list[tuple[list[int], float]] = [([], 0.0)] * count
    for start in range(0, longest, size):
        scored = {tuple(words): group_log_probs(model, encoded, words) for words, _ in beams}
        groups = [scored[tuple(words)] for words, _ in beams]
        groups = [group - 1000 * torch.nn.functional.one_hot(torch.tensor(UNKNOWN), WORDS) for group in groups]
        for place in range(size):
            time = start + place
            if time >= longest:
                break
            best = [group[place].topk(count) for group in groups]
            candidates = [
                (torch.tensor(beams[q][1]) + best[q].values[rank], q, best[q].indices[rank].item())
                for rank in range(count)
                for q in range(count if time else 1)
            ]
            chosen = sorted(candidates, key=lambda one: -one[0].item())[:count]
            groups = [groups[q] for _, q, _ in chosen]
            beams = [([*beams[q][0], word], total.item()) for total, q, word in chosen]
            for index, (words, total) in enumerate(beams):
                if words[-1] == 0 or time == longest - 1:
                    finished.append((penalty(total, time + 1), words))
                    beams[index] = (words, -1000.0)
    return sorted(finished, key=lambda one: -one[0])[:count]


def encoded_images(model, features: torch.Tensor) -> list:
    return [model.encode_images(image_features=one[None]) for one in features]


def padded(words: list[int], width: int) -> list[int]:
    return words + [0] * (width - len(words))


@pytest.mark.parametrize("longest", [8, 16])
@pytest.mark.parametrize("size", SIZES)
def test_greedy_with_quirks_is_the_plain_one(features, size, longest):
    model = make_model(size)
    ids = model.generate(image_features=features, max_length=longest + 1, reference_quirks=True)
    expected = [plain_greedy(model, one, longest) for one in encoded_images(model, features)]
    assert [row[1:] for row in ids.tolist()] == [padded(words, ids.shape[1] - 1) for words in expected]
    assert longest < 16 or any(0 in words for words in expected)


@pytest.mark.parametrize("size", SIZES)
def test_greedy_ends_at_the_end_token_and_reaches_the_longest(features, size):
    longest = 11
    model = make_model(size, seed=2)
    ids = model.generate(image_features=features, max_length=longest + 1)[:, 1:].tolist()
    for row, one in zip(ids, encoded_images(model, features), strict=True):
        words = plain_greedy(model, one, longest + size)[:longest]
        words = words[: words.index(0)] if 0 in words else words
        assert row == padded(words, len(row))


PENALTIES = {
    "": lambda total, n: total,
    "wu_0.9": lambda total, n: total / ((5 + n) / 6) ** 0.9,
    "avg_1": lambda total, n: total / n,
}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("count", "longest"), [(2, 7), (3, 6), (5, 4)])
@pytest.mark.parametrize("size", SIZES)
def test_beam_search_is_the_plain_one(features, size, count, longest, penalty):
    model = make_model(size, seed=size)
    out = model.generate(
        image_features=features,
        num_beams=count,
        num_return_sequences=count,
        max_length=longest + 1,
        length_penalty=penalty,
        return_dict_in_generate=True,
        output_scores=True,
    )
    pictures = encoded_images(model, features)
    best = itertools.chain(*(plain_beams(model, one, count, longest, PENALTIES[penalty]) for one in pictures))
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    width = out.sequences.shape[1] - 1
    for row, total, sum_of_steps, (score, words) in zip(
        out.sequences.tolist(), out.sequences_scores.tolist(), steps.sum(1).tolist(), best, strict=True
    ):
        assert row[1:] == padded(words, width)
        assert total == pytest.approx(score, abs=1e-4)
        assert PENALTIES[penalty](sum_of_steps, len(words)) == pytest.approx(score, abs=1e-4)


class _Nothing(LogitsProcessor):
    """Changes nothing; but the search cannot know, and may not stop early."""

    def __call__(self, input_ids, scores):
        return scores


def count_calls(model) -> list[int]:
    calls: list[int] = []
    model.model.decoder.norm.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("size", SIZES)
def test_beam_search_stops_as_soon_as_nothing_can_change(features, size):
    model = make_model(size, sharpness=2.0)
    calls = count_calls(model)
    options = {"image_features": features, "num_beams": 3, "num_return_sequences": 3, "max_length": 41}
    stopped = model.generate(**options)
    early = len(calls)
    whole = model.generate(**options, logits_processor=LogitsProcessorList([_Nothing()]))
    assert torch.equal(whole, stopped)
    assert early < len(calls) - early == math.ceil(40 / size)
    assert len(count_calls(model)) == 0


@pytest.mark.parametrize("size", SIZES)
def test_one_decoder_call_for_a_group(features, size):
    model = make_model(size)
    calls = count_calls(model)
    for rule in ("paper", "standard"):
        calls.clear()
        ids = model.generate(image_features=features, decoding=rule, max_length=20)
        assert len(calls) == math.ceil((ids.shape[1] - 1) / size)


def test_cached_steps_equal_one_pass_exactly(features):
    """In float64, in pieces of any length, and after the captions have changed places."""
    model = make_model(3).double()
    features, ids = features.double(), torch.randint(1, WORDS, (8, 17))
    ids[:, 0] = 0
    encoded = model.encode_images(image_features=features)
    whole = model(encoder_outputs=encoded, decoder_input_ids=ids).logits
    cache, steps = model.start_cache(encoded), []
    for start, stop in [(0, 2), (2, 3), (3, 8), (8, 9), (9, 10), (10, 17)]:
        piece = ids[:, start:stop]
        steps.append(model(encoder_outputs=encoded, decoder_input_ids=piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-12, rtol=0)
    assert all(layer.memory_keys.shape[0] == 4 for layer in cache.layers[1:])  # a row per picture

    swap = torch.tensor([1, 0, 3, 3, 4, 4, 6, 7])  # within a picture
    cache = model.start_cache(encoded)
    for stop in (5, 7):
        model(
            encoder_outputs=encoded,
            decoder_input_ids=ids[:, stop - 5 if stop == 5 else 5 : stop],
            past_key_values=cache,
        )
        cache.reorder_cache(swap)
    mixed = torch.cat((ids[swap][swap][:, :5], ids[swap][:, 5:7], ids[:, 7:]), dim=1)
    last = model(encoder_outputs=encoded, decoder_input_ids=ids[:, 7:], past_key_values=cache).logits
    expected = model(encoder_outputs=encoded, decoder_input_ids=mixed).logits[:, 7:]
    torch.testing.assert_close(last, expected, atol=1e-12, rtol=0)


def test_only_the_last_logits(features):
    model = make_model(3)
    ids = torch.randint(1, WORDS, (4, 8))
    whole = model(image_features=features, decoder_input_ids=ids).logits
    for keep in range(1, 9):
        plain = model(image_features=features, decoder_input_ids=ids, logits_to_keep=keep).logits
        cached = model(image_features=features, decoder_input_ids=ids, logits_to_keep=keep, use_cache=True).logits
        torch.testing.assert_close(plain, whole[:, -keep:])
        torch.testing.assert_close(cached, whole[:, -keep:])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_prompt_is_continued_in_the_middle_of_a_group(features, beams, use_cache):
    model = make_model(3)
    for length in range(1, 7):
        prompt = torch.tensor([[0, 5, 6, 7, 8, 9, 5]])[:, :length].repeat(4, 1)
        options = {"decoder_input_ids": prompt, "num_beams": beams, "max_length": 12, "use_cache": use_cache}
        ids = model.generate(image_features=features, **options)
        assert torch.equal(ids[:, :length], prompt)
        following = model(image_features=features, decoder_input_ids=prompt).logits[:, -1].argmax(-1)
        assert beams > 1 or torch.equal(ids[:, length], following)


def test_processors_see_every_word(features):
    model = make_model(5, seed=1)
    plain = model.generate(image_features=features, max_length=16)
    assert any(a == b != 0 for row in plain.tolist() for a, b in itertools.pairwise(row))  # the failure of large K
    for beams in (1, 3):
        ids = model.generate(
            image_features=features, max_length=16, num_beams=beams, no_repeat_ngram_size=2, min_length=9
        )
        for row in ids.tolist():
            words = row[: [*row[1:], 0].index(0) + 1]
            assert len(words) >= 9
            pairs = list(itertools.pairwise(words))
            assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(
    ("suppress", "in_greedy", "in_beams"), [("beams", True, False), (True, False, False), (False, True, True)]
)
def test_the_unknown_word_can_be_avoided(features, suppress, in_greedy, in_beams):
    model = make_model(2)
    model.model.generator.proj.bias[UNKNOWN] = 9.0
    for beams, expected in ((1, in_greedy), (3, in_beams)):
        ids = model.generate(image_features=features, num_beams=beams, suppress_unk=suppress, max_length=10)
        assert bool((ids == UNKNOWN).any()) == expected


def test_samples_follow_the_distribution_and_carry_their_log_probs(features):
    model = make_model(2, sharpness=2.0)
    torch.manual_seed(0)
    out = model.generate(
        image_features=features[:1],
        do_sample=True,
        top_k=0,
        num_return_sequences=4000,
        max_length=5,
        return_dict_in_generate=True,
        output_scores=True,
    )
    first = group_log_probs(model, encoded_images(model, features)[0], [])
    for place in range(2):
        words = out.sequences[:, 1 + place]
        started = torch.ones_like(words, dtype=torch.bool) if place == 0 else out.sequences[:, 1] != 0
        frequency = torch.bincount(words[started], minlength=WORDS) / started.sum()
        torch.testing.assert_close(frequency, first[place].exp(), atol=0.04, rtol=0)  # 5 deviations
    log_probs = model.sequence_log_probs(out.sequences, image_features=features[:1])
    given = model.compute_transition_scores(out.sequences, out.scores)
    torch.testing.assert_close(given.masked_fill(log_probs == 0, 0.0), log_probs, atol=1e-4, rtol=1e-4)


def test_temperature_zero_is_greedy(features):
    model = make_model(3)
    greedy = model.generate(image_features=features, max_length=12)
    for options in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(model.generate(image_features=features, max_length=12, do_sample=True, **options), greedy)


def test_a_group_of_one_decodes_as_transformers(features):
    model = make_model(1)
    for options in ({}, {"do_sample": True, "top_p": 0.9}, {"no_repeat_ngram_size": 1, "min_length": 4}):
        captions = []
        for rule in ("paper", "standard"):
            torch.manual_seed(0)
            captions.append(model.generate(image_features=features, max_length=12, decoding=rule, **options))
        assert torch.equal(*captions)


class _After(StoppingCriteria):
    def __init__(self, length: int, rows: list[int]) -> None:
        self.length, self.rows = length, rows

    def __call__(self, input_ids, scores, **kwargs):
        stop = torch.zeros(len(input_ids), dtype=torch.bool)
        stop[self.rows] = input_ids.shape[1] >= self.length
        return stop


def test_other_criteria_stop_after_a_group(features):
    model = make_model(2)
    model.model.generator.proj.bias[0] = -50.0
    stop = StoppingCriteriaList([_After(4, [0])])
    ids = model.generate(image_features=features, max_length=12, stopping_criteria=stop)
    assert [(row != 0).sum().item() for row in ids] == [4, 11, 11, 11]  # after the second group of row 0
    stop = StoppingCriteriaList([_After(4, list(range(12)))])
    beams = model.generate(image_features=features, max_length=12, num_beams=3, stopping_criteria=stop)
    assert beams.shape == (4, 5) and (beams[:, 1:] != 0).all()


def test_options_are_kept_in_the_generation_config(features, tmp_path):
    model = make_model(3)
    model.generation_config.reference_quirks = True
    model.generation_config.suppress_unk = True
    model.save_pretrained(tmp_path)
    loaded = SaticForImageCaptioning.from_pretrained(tmp_path)
    assert torch.equal(
        loaded.generate(image_features=features),
        make_model(3).generate(image_features=features, reference_quirks=True, suppress_unk=True),
    )
    assert not torch.equal(
        loaded.generate(image_features=features, reference_quirks=False), loaded.generate(image_features=features)
    )


def test_there_is_no_length_penalty_unless_one_is_asked_for(features):
    model = make_model(2)
    options = {"num_beams": 3, "max_length": 15}

    def scores(**more) -> list[float]:
        return model.generate(image_features=features, return_dict_in_generate=True, **more).sequences_scores.tolist()

    assert scores(**options) == scores(**options, length_penalty=0.0) == scores(**options, length_penalty="")
    average = scores(**options, length_penalty="avg_0")
    assert average == scores(**options, length_penalty=1.0) != scores(**options)
    assert average == scores(generation_config=GenerationConfig(**options, length_penalty=1.0))
    assert scores(**options) == scores(generation_config=GenerationConfig(**options))
    model.generation_config.length_penalty = 1.0
    assert average == scores(**options)


def test_impossible_options_are_refused(features):
    model = make_model(2)
    for options, message in [
        ({"num_beams": 3, "do_sample": True}, "does not sample"),
        ({"num_beams": 3, "length_penalty": "gnmt"}, "length_penalty must be a number"),
        ({"num_beams": 3, "length_penalty": "wu_0.7", "decoding": "standard"}, "is for decoding='paper'"),
        ({"suppress_unk": "never"}, "suppress_unk must be True, False or 'beams', not 'never'"),
        ({"suppress_unk": True, "decoding": "standard"}, "are for decoding='paper'"),
        ({"reference_quirks": True, "decoding": "standard"}, "are for decoding='paper'"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(image_features=features, **options)


@pytest.mark.parametrize("penalty", ["wu", "wu_", "avg", "avg_x", "max_1", "wu_nan"])
def test_length_penalties_that_mean_nothing(penalty):
    with pytest.raises(ValueError, match="length_penalty must be"):
        length_normalizer(penalty)


def test_no_warning_where_padding_and_end_are_one_token(features, caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        logging.getLogger("transformers").propagate = True
        make_model(2).generate(image_features=features, num_beams=2)
        make_model(2).generate(image_features=features, decoding="standard")
    assert [record.getMessage() for record in caplog.records] == []


def test_a_cache_can_be_started_again(features):
    model = make_model(2)
    encoded = model.encode_images(image_features=features)
    cache, ids = model.start_cache(encoded), torch.randint(1, WORDS, (4, 5))
    first = model(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=cache).logits
    cache.reset()
    assert cache.get_seq_length() == 0
    again = model(encoder_outputs=encoded, decoder_input_ids=ids, past_key_values=cache).logits
    assert torch.equal(first, again)
    assert isinstance(cache.layers[1], GroupCacheLayer) and cache.layers[1].get_seq_length() == 6
