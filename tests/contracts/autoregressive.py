"""The contract of captioners that write word by word, besides that of all: caches, beams, scores of their words."""

from __future__ import annotations

import json

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
            {"num_beams": 3, "decoding": "standard"},
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

    @pytest.mark.parametrize("decoding", ["paper", "standard"])
    @pytest.mark.parametrize(
        "options",
        [
            {"num_beams": 1},
            {"num_beams": 1, "do_sample": True, "top_k": 0},
            {"num_beams": 3, "num_return_sequences": 3},
        ],
        ids=["greedy", "sampling", "beams"],
    )
    def test_scores_and_logits_mean_the_same_in_every_decoding(self, model, features, decoding, options):
        """Logits are the model's; scores are the log-probabilities of the words, where no processor changes them."""
        out = model.generate(
            image_features=features,
            decoding=decoding,
            max_length=9,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **options,
        )
        expected = model.sequence_log_probs(out.sequences, image_features=features)
        sources = out.beam_indices if options["num_beams"] > 1 else None
        for scores in (out.scores, tuple(logits.log_softmax(-1) for logits in out.logits)):
            got = model.compute_transition_scores(out.sequences, scores, sources)
            torch.testing.assert_close(got.masked_fill(expected == 0, 0.0), expected, atol=1e-4, rtol=1e-4)
        first = model.shift_labels(out.sequences[:: options.get("num_return_sequences", 1), 1:])[:, :1]
        raw = model(image_features=features, decoder_input_ids=first).logits[:, 0]
        torch.testing.assert_close(out.logits[0][:: options["num_beams"]], raw, atol=1e-4, rtol=1e-4)

    def test_generation_configs_of_earlier_versions_are_read(self, model, features, tmp_path):
        """They say `beam_rule`, and a model's own rule had a name of its own."""
        options = {"image_features": features, "num_beams": 3, "max_length": 10, "num_return_sequences": 3}
        captions = {name: model.generate(**options, decoding=name) for name in ("paper", "standard")}
        model.save_pretrained(tmp_path)
        path = tmp_path / "generation_config.json"
        saved = json.loads(path.read_text())
        del saved["decoding"]
        for older, name in (("paper", "paper"), ("dico", "paper"), ("clipcap", "paper"), ("standard", "standard")):
            path.write_text(json.dumps({**saved, "beam_rule": older}))
            assert torch.equal(type(model).from_pretrained(tmp_path).generate(**options), captions[name])

    def test_sequence_log_probs_are_those_of_the_words(self, model, features, labels, sequences):
        log_probs = model.sequence_log_probs(sequences, image_features=features)
        expected = model(image_features=features, labels=labels).logits.log_softmax(-1)
        gold = expected.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0.0)
        torch.testing.assert_close(log_probs, gold)

    def test_loss_without_scores_of_padding_is_the_same(self, model, features, labels):
        labels = labels.clone()
        labels[0, 1:] = -100
        losses, gradients = [], []
        for options in ({}, {"skip_logits": True}):
            model.zero_grad()
            output = model(image_features=features, labels=labels, **options)
            output.loss.backward()
            assert (output.logits is None) == bool(options)
            losses.append(output.loss.detach())
            gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
        torch.testing.assert_close(*losses)
        assert gradients[0].keys() == gradients[1].keys()
        for name, expected in gradients[0].items():
            close = {"atol": 1e-5 * float(expected.abs().max()) + 1e-7, "rtol": 1e-5}
            torch.testing.assert_close(gradients[1][name], expected, **close)

    def test_attention_to_the_picture(self, model, features, labels):
        """Weights of every layer, each row a distribution over what is real, the same as without and with a cache."""
        mask = torch.ones(3, 7, dtype=torch.long)
        mask[1, 4:] = 0
        inputs = {"image_features": features, "image_attention_mask": mask}
        twice = labels.repeat_interleave(2, dim=0)
        plain, output = model(**inputs, labels=twice), model(**inputs, labels=twice, output_attentions=True)
        assert plain.cross_attentions is None and plain.decoder_attentions is None
        torch.testing.assert_close(output.logits, plain.logits, atol=5e-5, rtol=1e-4)
        name = "cross_attentions" if output.cross_attentions is not None else "decoder_attentions"
        layers = output[name]
        for weights in layers:
            assert weights.ndim == 4 and weights.shape[0] == 6 and weights.shape[2] >= labels.shape[1]
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        if name == "cross_attentions":
            assert all(weights.shape[-1] == 7 and (weights[2:4, ..., 4:] == 0).all() for weights in layers)
        model.set_attn_implementation("eager")
        for weights, expected in zip(layers, model(**inputs, labels=twice, output_attentions=True)[name], strict=True):
            torch.testing.assert_close(weights, expected, atol=5e-5, rtol=1e-4)
        for options in ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "decoding": "standard"}):
            written = model.generate(
                **inputs, **options, max_length=5, output_attentions=True, output_hidden_states=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            assert len(written[name]) == len(written.decoder_hidden_states) == written.sequences.shape[1] - 1
            assert [len(one) for one in written[name][:1]] == [len(layers)]
            assert written[name][0][0].shape[:2] == (3 * options["num_beams"], layers[0].shape[1])
            torch.testing.assert_close(
                written[name][0][0][:, :, 0, :7][0], layers[0][0, :, 0, :7], atol=1e-4, rtol=1e-4
            )

    def test_refuses_unknown_ways_of_decoding(self, model, features):
        with pytest.raises(ValueError, match="decoding must be one of"):
            model.generate(image_features=features, decoding="mine")
