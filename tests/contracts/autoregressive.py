"""What captioners that write word by word must do besides: caches, beams, scores of their words."""

from __future__ import annotations

import pytest
import torch
from contracts.captioner import CaptionerContract


class AutoregressiveContract(CaptionerContract):
    """Subclass with the fixtures of [`CaptionerContract`]."""

    writing = {"max_length": 10, "num_beams": 3}
    sampling = {"max_length": 10, "num_beams": 1, "do_sample": True}

    @pytest.mark.parametrize(
        "options",
        [
            {"num_beams": 1},
            {"num_beams": 3, "num_return_sequences": 2},
            {"num_beams": 3, "beam_rule": "standard"},
            {"num_beams": 1, "do_sample": True, "num_return_sequences": 3},
            {"num_beams": 1, "do_sample": True, "top_p": 0.7},
            {"num_beams": 2, "no_repeat_ngram_size": 1, "min_length": 5},
        ],
    )
    def test_decoding_with_cache_equals_decoding_without(self, model, features, options):
        captions = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            captions.append(model.generate(image_features=features, max_length=10, use_cache=use_cache, **options))
        assert torch.equal(*captions)
        assert captions[0].shape[0] == 3 * options.get("num_return_sequences", 1)
        assert (captions[0][:, 0] == model.config.decoder_start_token_id).all()

    def test_cached_logits_equal_the_parallel_ones(self, model, features, labels):
        ids = model.shift_labels(labels)
        whole = model(image_features=features, decoder_input_ids=ids).logits
        first = model(image_features=features, decoder_input_ids=ids[:, :2], use_cache=True)
        encoded = model.encode_images(image_features=features)
        cache, steps = first.past_key_values, [first.logits]
        for t in range(2, ids.shape[1]):
            step = model(encoder_outputs=encoded, decoder_input_ids=ids[:, t : t + 1], past_key_values=cache)
            steps.append(step.logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)

    def test_scores_are_the_log_probabilities_of_the_captions(self, model, features):
        out = model.generate(
            image_features=features,
            num_beams=3,
            num_return_sequences=3,
            max_length=9,
            return_dict_in_generate=True,
            output_scores=True,
        )
        log_probs = model.sequence_log_probs(out.sequences, image_features=features)
        steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
        torch.testing.assert_close(steps, log_probs, atol=1e-4, rtol=1e-4)

    def test_sequence_log_probs_are_those_of_the_words(self, model, features, labels, sequences):
        log_probs = model.sequence_log_probs(sequences, image_features=features)
        expected = model(image_features=features, labels=labels).logits.log_softmax(-1)
        gold = expected.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0.0)
        torch.testing.assert_close(log_probs, gold)

    def test_refuses_unknown_ways_of_decoding(self, model, features):
        with pytest.raises(ValueError, match="beam_rule must be one of"):
            model.generate(image_features=features, beam_rule="mine")
