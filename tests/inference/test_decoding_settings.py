"""Settings by which captions were decoded, of models of all kinds."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from hf_captioners.inference.decoding_settings import decoding_settings


def test_a_model_with_a_generate_of_its_own_has_no_generation_settings():
    model = SimpleNamespace(config=SimpleNamespace(), dtype=torch.bfloat16)
    found = decoding_settings(model, num_beams=3, max_new_tokens=None)
    assert found == {"num_beams": 3, "dtype": "bfloat16"}
