"""Scores at some places only: nobody else's, and not of an ensemble."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from contracts.reward_policies import tiny_policy, tiny_processor, tiny_rows

from hf_captioners.families import family_of
from hf_captioners.inference.ensemble import CaptionerEnsemble


@pytest.fixture
def inputs(tmp_path):
    return dict(family_of(tiny_policy("satic")).prepare_rows(tiny_processor("satic"), list(tiny_rows(tmp_path, 3))))


def test_another_thread_has_the_scores_of_all_places(inputs):
    model, words, found = tiny_policy("satic").eval(), torch.ones(3, 4, dtype=torch.long), []
    places = torch.zeros(3, 4, dtype=torch.bool)

    def score():
        with torch.no_grad():
            found.append(model(**inputs, decoder_input_ids=words).logits.shape[:-1])

    with model._words_at(places):
        other = Thread(target=score)
        other.start()
        other.join()
        score()
    assert found == [(3, 4), (0,)]


def test_an_ensemble_of_one_captioner_twice_scores_as_that_one(inputs):
    model = tiny_policy("satic").eval()
    with torch.no_grad():
        words = model.generate(**inputs, max_length=6)
        ensemble = CaptionerEnsemble([model, tiny_policy("satic").eval()])
        ensemble.models[1].load_state_dict(model.state_dict())
        found = ensemble.sequence_log_probs(words, use_cache=True, **inputs)
        torch.testing.assert_close(found, model.sequence_log_probs(words, **inputs), atol=1e-5, rtol=1e-4)
