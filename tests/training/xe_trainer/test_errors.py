"""What cross-entropy training refuses."""

import datasets
import pytest
import torch

from hf_captioners import ExpansionNetV2Config, ExpansionNetV2ForImageCaptioning, FeatureStore, XEConfig, XETrainer
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features


class TestErrors:
    def test_no_processor(self, new_model, tmp_path):
        with pytest.raises(ValueError, match="give the captioner's processor as processing_class"):
            XETrainer(new_model(), XEConfig(output_dir=str(tmp_path)), [])

    def test_metrics_of_predictions(self, new_model, processor, tmp_path):
        with pytest.raises(ValueError, match="evaluation keeps no predictions; give compute_caption_metrics"):
            args = XEConfig(output_dir=str(tmp_path))
            XETrainer(new_model(), args, processing_class=processor, compute_metrics=lambda _: {})

    def test_a_backbone_that_is_not_there(self, trainer):
        config = ExpansionNetV2Config(
            vocab_size=19, d_model=16, num_attention_heads=2, ffn_dim=16, encoder_layers=1, decoder_layers=1,
            encoder_expansion_groups=[2], decoder_expansion_size=2, features_only=True, feature_size=8,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, unk_token_id=3,
        )  # fmt: skip
        with pytest.raises(ValueError, match="no backbone to train, but 'all' of it was asked for"):
            trainer(ExpansionNetV2ForImageCaptioning(config), train_backbone="all")
        assert trainer(ExpansionNetV2ForImageCaptioning(config)).model.backbone is None

    @pytest.mark.parametrize("adapted", [False, True])
    def test_a_backbone_beside_adapters(self, trainer, new_model, adapted):
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=2, target_modules=ExpansionNetV2ForImageCaptioning.LORA_TARGET_MODULES)
        model = get_peft_model(new_model(), adapters) if adapted else new_model()
        options = {} if adapted else {"peft_config": adapters}
        with pytest.raises(ValueError, match=r"train_backbone='all' and adapters \(lora_rank, peft_config\) exclude"):
            trainer(model, train_backbone="all", **options)
        assert trainer(model, **options).model.peft_config

    def test_fewer_rows_than_a_batch_that_is_dropped(self, trainer, rows):
        run = trainer(train=rows[:5], per_device_train_batch_size=6, dataloader_drop_last=True, max_steps=1)
        with pytest.raises(ValueError, match="dataloader_drop_last=True leaves nothing to learn from: 5 training rows"):
            run.train()
        run = trainer(train=rows[:5], per_device_train_batch_size=5, dataloader_drop_last=True, max_steps=1)
        assert run.train().global_step == 1

    @pytest.mark.parametrize("kind", ["list", "dataset", "store"])
    @pytest.mark.parametrize("part", ["train", "evaluation"])
    def test_features_of_another_width(self, trainer, new_model, rows, tmp_path, kind, part):
        model = new_model()
        wide = model.config.feature_size + 1
        some = [{"image_id": row["image_id"], "captions": row["captions"]} for row in rows[:2]]
        if kind == "store":
            with FeatureWriter(tmp_path / "store", metadata={}) as writer:
                for row in some:
                    writer.add(row["image_id"], torch.zeros(3, wide))
            given = attach_features(datasets.Dataset.from_list(some), FeatureStore(tmp_path / "store"))
        else:
            given = [{**row, "image_features": [[0.0] * wide] * 3} for row in some]
            given = datasets.Dataset.from_list(given) if kind == "dataset" else given
        source = tmp_path / "store" if kind == "store" else "image_features of the first row"
        with pytest.raises(ValueError, match=f"{source} are {wide} wide, but .*reads {wide - 1} "):
            trainer(model, **{part: given})

    def test_an_expression_that_matches_nothing(self, trainer):
        with pytest.raises(ValueError, match=r"no backbone parameter matches 'layers\.9'"):
            trainer(train_backbone="layers.9")

    def test_captions_longer_than_the_model_knows(self, trainer):
        with pytest.raises(
            ValueError, match="generation_max_length=21 is beyond the model's max_position_embeddings=20"
        ):
            trainer(eval_with_generation=True, generation_max_length=21)

    def test_rows_without_pictures(self, trainer):
        with pytest.raises(ValueError, match="needs 'image' or 'image_features'"):
            trainer(train=[{"captions": ["a"], "image_id": 0}], max_steps=1).train()
