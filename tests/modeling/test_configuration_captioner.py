"""Values that a configuration may declare before anything is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_captioners import ClipGpt2Config, ExpansionNetV2Config, SaticConfig
from hf_captioners.modeling.configuration_captioner import CaptionerConfig
from hf_captioners.modeling.configuration_dico import DicoCaptionerConfig

DEEP = {"model_type": "swin", "depths": [2, 2, 18, 10**6]}
DECLARED = [
    (SaticConfig, {"encoder_layers": 100_000}, "encoder_layers=100000 is beyond the limit of 500"),
    (SaticConfig, {"max_position_embeddings": 10**10}, "beyond the limit of 65536"),
    (DicoCaptionerConfig, {"decoder_layers": 501}, "decoder_layers=501 is beyond"),
    (
        ExpansionNetV2Config,
        {"vision_config": DEEP},
        r"vision_config\.depths=\[",
    ),
    (ClipGpt2Config, {"text_config": {"n_layer": 100_000}}, r"text_config\.n_layer=100000 is beyond"),
    (ClipGpt2Config, {"mapping_layers": 100_000}, "mapping_layers=100000 is beyond"),
]


@pytest.mark.parametrize(("config_class", "fields", "message"), DECLARED)
def test_sizes_beyond_the_limit(
    tmp_path: Path, config_class: type[CaptionerConfig], fields: dict, message: str
) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        config_class(**fields)
    config_class().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for name, value in fields.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(StrictDataclassError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_the_limits_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaptionerConfig, "max_layers", 600)
    monkeypatch.setattr(CaptionerConfig, "max_positions", 10**6)
    config = SaticConfig(encoder_layers=600, max_position_embeddings=10**6)
    assert (config.encoder_layers, config.max_position_embeddings) == (600, 10**6)
