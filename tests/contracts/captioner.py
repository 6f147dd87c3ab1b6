"""The contract of every captioner. A model's test module subclasses `CaptionerContract` with a tiny model."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.modeling.captioner_base import CaptionerPreTrainedModel

REMOTE_SCRIPT = """
import json, sys
sys.modules["hf_captioners"] = None  # importing it raises ImportError
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
folder, picture = sys.argv[1:]
captioner = pipeline("image-to-text", model=folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
ids = model.generate(**processor(images=picture))
model.save_pretrained(folder + "_again")
print(json.dumps([captioner(picture)[0]["generated_text"], processor.batch_decode(ids)[0]]))
"""


class CaptionerContract:
    """Subclass with the two fixtures below and, where a model differs, the class attributes.

    Captioners that write word by word subclass `AutoregressiveContract`, which asks for more.
    """

    writing: dict[str, Any] = {"max_length": 10}  # options of `generate`
    sampling: dict[str, Any] = {"max_length": 10, "do_sample": True}
    dtype_tolerance = {torch.bfloat16: 0.25, torch.float16: 0.1}  # on log-probabilities, tiny random models

    @pytest.fixture()
    def model(self) -> CaptionerPreTrainedModel:
        """A tiny model in evaluation mode, the same one every time, without dropout."""
        raise NotImplementedError

    @pytest.fixture()
    def processor(self) -> Any:
        """Its processor."""
        raise NotImplementedError

    # -- inputs ------------------------------------------------------------------------------------------------------

    @pytest.fixture()
    def pixels(self, model: CaptionerPreTrainedModel) -> torch.Tensor:
        side = model.config.vision_config.image_size
        return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))

    @pytest.fixture()
    def features(self, model: CaptionerPreTrainedModel) -> torch.Tensor:
        return torch.randn(3, 7, model.config.feature_size, generator=torch.Generator().manual_seed(2))

    @pytest.fixture()
    def labels(self, model: CaptionerPreTrainedModel) -> torch.Tensor:
        words = torch.randint(0, model.config.vocab_size, (3, 6), generator=torch.Generator().manual_seed(3))
        special = [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id]
        words[torch.isin(words, torch.tensor(special))] = model.config.unk_token_id
        words[0, -1] = words[1, 3] = words[2, 4] = model.config.eos_token_id
        words[1, 4:] = words[2, 5:] = -100
        return words

    # -- pictures ----------------------------------------------------------------------------------------------------

    def test_takes_pixels_or_features_never_both(self, model, pixels, features, labels):
        with pytest.raises(ValueError, match="both was given"):
            model(pixel_values=pixels, image_features=features, labels=labels)
        with pytest.raises(ValueError, match="neither was given"):
            model(labels=labels)
        with pytest.raises(ValueError, match="neither was given"):
            model.generate()

    def test_refuses_features_of_a_wrong_shape_by_name(self, model, features):
        with pytest.raises(ValueError, match=r"image_features must be \(pictures, tokens, "):
            model.generate(image_features=features[..., :-1])
        with pytest.raises(ValueError, match="image_attention_mask must be"):
            model.generate(image_features=features, image_attention_mask=torch.ones(3, 2))
        with pytest.raises(ValueError, match=r"pictures \[1\] of the batch have no token"):
            model.generate(image_features=features, image_attention_mask=torch.tensor([[1] * 7, [0] * 7, [1] * 7]))

    def test_refuses_features_that_are_no_numbers_to_compute_with(self, model, features):
        for value, message in (
            (torch.nan, "NaN or infinity"),
            (1e38, r"contains 1e\+38"),
            (1j, "must be real numbers"),
        ):
            wrong = features.to(torch.complex64) if value == 1j else features.clone()
            wrong[1, 2, 3] = value
            with pytest.raises(ValueError, match=f"image_features .*{message}"):
                model.encode_images(image_features=wrong)
        if model.backbone is not None:
            with pytest.raises(ValueError, match="pixel_values contains NaN or infinity"):
                model.encode_images(torch.full((1, 3, 32, 32), torch.nan))
        mask = torch.ones(3, 7, dtype=torch.long)
        mask[1, 2] = 0  # padding may be anything
        wrong = features.clone()
        wrong[1, 2] = torch.nan
        model.encode_images(image_features=wrong, image_attention_mask=mask)
        with pytest.raises(ValueError, match=r"contains 1e\+05, and numbers beyond 6.55e\+04"):
            copy.deepcopy(model).half().encode_images(image_features=features + 1e5)

    def test_cached_features_equal_the_backbone(self, model, pixels, labels):
        cached = model.extract_image_features(pixels)
        assert cached.shape[-1] == model.config.feature_size
        direct = model(pixel_values=pixels, labels=labels)
        through = model(image_features=cached, labels=labels)
        torch.testing.assert_close(through.logits, direct.logits)

    def test_encoded_pictures_are_accepted_back_and_left_alone(self, model, features, labels):
        encoded = model.encode_images(image_features=features)
        memory = encoded.last_hidden_state.clone()
        expected = model(image_features=features, labels=labels)
        torch.testing.assert_close(model(encoder_outputs=encoded, labels=labels).logits, expected.logits)
        ids = model.generate(encoder_outputs=encoded, **self.writing)
        assert torch.equal(ids, model.generate(image_features=features, **self.writing))
        assert torch.equal(encoded.last_hidden_state, memory)
        with pytest.raises(ValueError, match="give image_features to encode_images"):
            model(encoder_outputs=encoded, image_features=features, labels=labels)

    def test_refuses_inputs_that_it_does_not_know(self, model, features, labels):
        with pytest.raises(TypeError, match="does not know sentiment"):
            model(image_features=features, labels=labels, sentiment=labels)
        with pytest.raises(TypeError, match="sentiment"):
            model.encode_images(image_features=features, sentiment=labels)
        with pytest.raises(ValueError, match="not used by the model"):
            model.generate(image_features=features, sentiment=labels)
        assert set(model.image_inputs[:3]) == {"pixel_values", "image_features", "image_attention_mask"}

    # -- loss --------------------------------------------------------------------------------------------------------

    def test_loss_ignores_padding_and_honours_num_items(self, model, features, labels):
        whole = model(image_features=features, labels=labels).loss
        items = int((labels != -100).sum())
        wider = torch.nn.functional.pad(labels, (0, 3), value=-100)
        torch.testing.assert_close(model(image_features=features, labels=wider).loss, whole)
        parts = [
            model(image_features=features[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss
            for i in range(3)
        ]
        torch.testing.assert_close(sum(parts), whole)

    def test_several_captions_of_a_picture_share_it(self, model, features, labels):
        twice = labels.repeat_interleave(2, dim=0)
        shared = model(image_features=features, labels=twice)
        copied = model(image_features=features.repeat_interleave(2, dim=0), labels=twice)
        torch.testing.assert_close(shared.logits, copied.logits)
        with pytest.raises(ValueError, match="cannot be shared out"):
            model(image_features=features, labels=labels[:2])

    def test_every_parameter_learns(self, model, pixels, labels):
        model.train()
        model(pixel_values=pixels, labels=labels).loss.backward()
        idle = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum()]
        assert idle == []

    def test_activation_checkpointing_gives_the_same_gradients(self, model, features, labels):
        def gradients(captioner):
            captioner.zero_grad()
            torch.manual_seed(0)  # some draw noise in training
            captioner(image_features=features, labels=labels).loss.backward()
            return torch.cat([one.grad.flatten() for one in captioner.parameters() if one.grad is not None])

        model.train()
        plain = gradients(model)
        model.activation_checkpointing_enable()
        torch.testing.assert_close(gradients(model), plain)

    # -- captions ----------------------------------------------------------------------------------------------------

    @pytest.fixture()
    def sequences(self, model, labels) -> torch.Tensor:
        """The captions of `labels` as `generate` writes them: start token, words, end token, padding."""
        start = torch.full((3, 1), model.config.decoder_start_token_id)
        return torch.cat((start, labels.masked_fill(labels == -100, model.config.pad_token_id)), dim=1)

    def test_captions_begin_with_the_start_token_and_come_as_often_as_asked(self, model, features):
        ids = model.generate(image_features=features, num_return_sequences=2, **self.sampling)
        assert ids.shape[0] == 6 and ids.shape[1] <= 10
        assert (ids[:, 0] == model.config.decoder_start_token_id).all()
        out = model.generate(image_features=features, return_dict_in_generate=True, **self.writing)
        assert torch.equal(out.sequences, model.generate(image_features=features, **self.writing))

    def test_sequence_log_probs_carry_gradient_and_stop_at_the_end(self, model, features, labels, sequences):
        log_probs, entropies = model.sequence_log_probs(sequences, image_features=features, return_entropies=True)
        assert log_probs.shape == entropies.shape == labels.shape
        for scores in (log_probs, -entropies):
            assert (scores[labels == -100] == 0).all() and (scores[labels != -100] < 0).all()
        encoded = model.encode_images(image_features=features)
        torch.testing.assert_close(model.sequence_log_probs(sequences, encoder_outputs=encoded), log_probs)
        log_probs.sum().backward()
        assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in model.parameters())

    def test_batch_size_does_not_change_a_caption(self, model, pixels):
        together = model.generate(pixel_values=pixels, **self.writing)
        alone = [model.generate(pixel_values=pixels[i : i + 1], **self.writing)[0] for i in range(3)]
        for batched, single in zip(together, alone, strict=True):
            assert batched[: len(single)].tolist() == single.tolist()
            assert (batched[len(single) :] == model.config.pad_token_id).all()

    def test_padded_features_do_not_change_a_caption(self, model, features):
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[:, 7:] = 0
        garbage = torch.full((3, 5, features.shape[-1]), 7.0)
        padded = torch.cat((features, garbage), dim=1)
        plain = model.generate(image_features=features, **self.writing)
        assert torch.equal(plain, model.generate(image_features=padded, image_attention_mask=mask, **self.writing))

    def test_refuses_unknown_options_and_lengths(self, model, features):
        with pytest.raises(ValueError, match="beyond this model's max_position_embeddings"):
            model.generate(image_features=features, max_length=model.config.max_position_embeddings + 1)
        with pytest.raises(ValueError, match="not used by the model"):
            model.generate(image_features=features, num_beems=3)

    # -- precision and attention -------------------------------------------------------------------------------------

    def written_before(self, model, pixels):
        """What the model decides of pictures before it scores captions; a rounding could decide otherwise."""
        return {}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_finite_and_near(self, model, pixels, labels, dtype):
        known = self.written_before(model, pixels)
        expected = model(pixel_values=pixels, labels=labels, **known).logits.log_softmax(-1)
        half = copy.deepcopy(model).to(dtype)
        output = half(pixel_values=pixels.to(dtype), labels=labels, **known)
        assert torch.isfinite(output.loss)
        got = output.logits.float().log_softmax(-1)
        assert (got - expected).abs().max() < self.dtype_tolerance[dtype]
        ids = half.generate(pixel_values=pixels.to(dtype), **self.writing)
        assert ids.shape[0] == 3

    @pytest.fixture()
    def in_half(self, model, processor, tmp_path):
        """A folder with the model, by type another that was saved in it, paths of pictures, captions by type."""
        paths = [tmp_path / f"{index}.png" for index in range(2)]
        for path, right in zip(paths, (1.0, 0.2), strict=True):
            Image.effect_mandelbrot((40, 30), (-2, -1.5, right, 1.5), 50).convert("RGB").save(path)
        model.generation_config.max_length = 6  # quick
        model.save_pretrained(tmp_path / "captioner")
        processor.save_pretrained(tmp_path / "captioner")

        def captions(dtype):
            half = copy.deepcopy(model).to(dtype)
            half.save_pretrained(tmp_path / "half")
            return processor.batch_decode(half.generate(**processor.prepare_rows([{"image": path} for path in paths])))

        return tmp_path / "captioner", tmp_path / "half", [str(path) for path in paths], captions

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_the_same_however_it_is_loaded(self, model, processor, in_half, dtype):
        """`from_pretrained(dtype=…)`, a folder saved in half and the pipeline give what `.to(dtype)` gives."""
        folder, saved, paths, captions = in_half
        expected = captions(dtype)
        types = {name: one.dtype for name, one in copy.deepcopy(model).to(dtype).named_parameters()}
        assert dtype in types.values()
        captioner = hf_captioners.pipeline(model=str(folder), dtype=dtype)
        assert [one[0]["generated_text"] for one in captioner(paths, batch_size=2)] == expected
        for loaded in (captioner.model, type(model).from_pretrained(saved)):
            assert {name: one.dtype for name, one in loaded.named_parameters()} == types
            inputs = processor.prepare_rows([{"image": path} for path in paths])
            assert processor.batch_decode(loaded.generate(**inputs)) == expected

    def test_half_precision_is_the_same_in_the_verbs(self, in_half, tmp_path, capfd):
        folder, _, paths, captions = in_half
        expected = captions(torch.bfloat16)
        rows = [{"file_name": Path(path).name, "captions": ["a square"]} for path in paths]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        options = ["--model", str(folder), "--dtype", "bfloat16"]
        assert main(["caption", *paths, *options]) == 0
        assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == expected
        results = tmp_path / "results.json"
        options += ["--dataset", str(tmp_path), "--metrics", "rouge_l", "--save-predictions", str(results)]
        assert main(["evaluate", *options]) == 0
        assert [row["caption"] for row in json.loads(results.read_text())] == expected

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_is_finite(self, model, pixels, labels, dtype):
        model.train()
        with torch.autocast("cpu", dtype=dtype):
            loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)

    def test_sdpa_and_eager_agree(self, model, pixels, labels):
        outputs = []
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            outputs.append(model(pixel_values=pixels, labels=labels).logits)
        torch.testing.assert_close(outputs[0], outputs[1], atol=5e-5, rtol=1e-4)

    def test_can_be_exported_with_a_mask(self, model, features, sequences):
        """The graph of one mask is right for others: nothing in it may depend on values."""

        class Scores(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model.requires_grad_(False)

            def forward(self, features, mask, ids):
                return self.model.sequence_log_probs(ids, image_features=features, image_attention_mask=mask)

        lengths = torch.tensor([[7, 5, 7], [7, 7, 7], [2, 7, 3]])
        masks = (torch.arange(7) < lengths[..., None]).long()
        graph = torch.export.export(Scores(), (features, masks[0], sequences)).module()
        for mask in masks:
            torch.testing.assert_close(graph(features, mask, sequences), Scores()(features, mask, sequences))

    # -- files -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("change", ["missing", "not of the model"])
    def test_a_folder_is_loaded_whole_or_refused(self, model, tmp_path, change):
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        name = next(name for name in sorted(weights) if name.endswith(".bias") and not name.startswith("backbone."))
        if change == "missing":
            del weights[name]
        else:
            name = "another.weight"
            weights[name] = torch.zeros(2)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        message = f"not a whole checkpoint of {type(model).__name__}; weights 1 {change}: {name}"
        for loader in (type(model), AutoModel, AutoModelForImageTextToText):
            with pytest.raises(ValueError, match=message):
                loader.from_pretrained(tmp_path)
        _, report = type(model).from_pretrained(tmp_path, strict=False, output_loading_info=True)
        assert report["missing_keys"] | report["unexpected_keys"] == {name}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_beams": 0}, "num_beams must be a whole number of at least 1, not 0"),
            ({"num_beams": "three"}, "num_beams must be a whole number of at least 1, not 'three'"),
            ({"num_return_sequences": 0}, "num_return_sequences must be a whole number of at least 1"),
            ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be a whole number of at least 0"),
            ({"length_penalty": float("nan")}, "length_penalty must be a finite number, not nan"),
            ({"top_p": 2.0, "do_sample": True}, "top_p must be at most 1, not 2.0"),
            ({"suppress_tokens": [10**6]}, "suppress_tokens must be ids of tokens, from 0 to"),
        ],
    )
    def test_refuses_numbers_that_would_be_passed_over(self, model, features, options, message):
        with pytest.raises(ValueError, match=message):
            model.generate(image_features=features, **options)

    def test_a_folder_without_generation_config_has_the_models_own_decoding(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").unlink()
        fresh, loaded = type(model)(copy.deepcopy(model.config)), type(model).from_pretrained(tmp_path)
        assert loaded.generation_config.to_diff_dict() == fresh.generation_config.to_diff_dict()

    @pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText])
    def test_save_and_load_keep_weights_buffers_and_decoding(self, model, features, tmp_path, auto_class):
        model.save_pretrained(tmp_path)
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is type(model)
        assert not loaded.training
        for kind in ("named_parameters", "named_buffers"):
            ours, theirs = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                assert torch.equal(value, theirs[name]), name
        assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
        assert torch.equal(loaded.generate(image_features=features), model.generate(image_features=features))
        assert not list(tmp_path.glob("*.py"))

    def test_can_be_copied(self, model, features):
        assert torch.equal(
            copy.deepcopy(model).generate(image_features=features), model.generate(image_features=features)
        )

    def test_new_words_can_be_added(self, model, features):
        size = model.config.vocab_size
        model.resize_token_embeddings(size + 4)
        assert model.config.vocab_size == size + 4
        assert model(image_features=features, labels=torch.full((3, 2), size + 3)).logits.shape[-1] == size + 4

    def test_adapters(self, model, features, labels):
        from peft import LoraConfig, get_peft_model

        model, features = model.double(), features.double()  # merging rounds, and differences add up over the layers
        before = model.generate(image_features=features, **self.writing)
        adapted = get_peft_model(model, LoraConfig(target_modules=model.LORA_TARGET_MODULES, r=2))
        assert torch.equal(adapted.generate(image_features=features, **self.writing), before)
        optimizer = torch.optim.SGD([one for one in adapted.parameters() if one.requires_grad], lr=0.5)
        for _ in range(2):  # the first step moves only the second factor, which starts at zero
            optimizer.zero_grad()
            adapted(image_features=features, labels=labels).loss.backward()
            optimizer.step()
        trained = adapted(image_features=features, labels=labels).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(image_features=features, labels=labels).logits, trained)

    def test_shipped_code_runs_where_the_package_is_missing(self, model, processor, tmp_path):
        folder, picture = tmp_path / "shipped", tmp_path / "picture.png"
        Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(picture)
        model.save_pretrained(folder, ship_code=True)
        processor.save_pretrained(folder, ship_code=True)
        expected = hf_captioners.pipeline(model=str(folder))(str(picture))[0]["generated_text"]
        run = subprocess.run(
            [sys.executable, "-c", REMOTE_SCRIPT, str(folder), str(picture)],
            capture_output=True,
            text=True,
            env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert json.loads(run.stdout.splitlines()[-1]) == [expected, expected]
        shipped = {path.name for path in folder.glob("*.py")}
        assert shipped == {path.name for path in Path(f"{folder}_again").glob("*.py")}
        model.save_pretrained(tmp_path / "clean")
        assert not list((tmp_path / "clean").glob("*.py"))
        assert "auto_map" not in (tmp_path / "clean" / "config.json").read_text()
