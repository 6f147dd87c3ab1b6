"""CLIP-GPT2's anchors between picture and caption, and the tag predictor that supplies them."""

from __future__ import annotations

import pytest
import torch
from contracts.tiny_clip_gpt2 import by_hand, tiny_model

from hf_captioners import ClipGpt2ForImageCaptioning


def test_anchors_stand_between_picture_and_caption():
    model = tiny_model(prefix_length=2, separator_token_id=7).double()
    features, labels = torch.randn(2, 12).double(), torch.tensor([[3, 9, 0], [8, 0, -100]])
    anchors = torch.tensor([[21, 22, -100, 23], [-100, -100, -100, -100]])
    logits = model(image_features=features, anchor_ids=anchors, labels=labels).logits
    prefix = model.clip_project(features)
    first = by_hand(model, prefix[0], torch.tensor([21, 22, 23, 7]), labels[0, :-1])
    torch.testing.assert_close(logits[:1], model.gpt(inputs_embeds=first).logits[:, -3:], atol=1e-12, rtol=0)
    plain = model(image_features=features, labels=labels).logits
    torch.testing.assert_close(logits[1], plain[1], atol=1e-12, rtol=0)
    assert not torch.allclose(logits[0], plain[0])
    none = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(model(image_features=features, anchor_ids=none, labels=labels).logits, plain)


def test_every_caption_may_have_its_own_anchors():
    model, features = tiny_model(), torch.randn(2, 12)
    labels, anchors = torch.randint(1, 40, (4, 3)), torch.tensor([[5, 6], [8, -100], [-100, -100], [9, 9]])
    together = model(image_features=features, anchor_ids=anchors, labels=labels).logits
    for row in range(4):
        alone = model(
            image_features=features[row // 2 : row // 2 + 1],
            anchor_ids=anchors[row : row + 1],
            labels=labels[row : row + 1],
        )
        torch.testing.assert_close(together[row], alone.logits[0])
    with pytest.raises(ValueError, match="3 rows of anchor_ids cannot be shared out among 2 pictures"):
        model(image_features=features, anchor_ids=anchors[:3], labels=labels)
    encoded = model.encode_images(image_features=features)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="anchor_ids"):
            call(encoder_outputs=encoded, anchor_ids=anchors, **({"labels": labels} if call is model else {}))


def test_captions_are_generated_and_scored_behind_the_same_anchors():
    model, features = tiny_model(seed=4), torch.randn(2, 12)
    anchors = torch.tensor([[21, 22], [23, -100]])
    out = model.generate(
        image_features=features,
        anchor_ids=anchors,
        num_beams=3,
        return_dict_in_generate=True,
        output_scores=True,
        max_length=9,
    )
    log_probs = model.sequence_log_probs(out.sequences, image_features=features, anchor_ids=anchors)
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    torch.testing.assert_close(steps, log_probs, atol=1e-4, rtol=1e-4)
    encoded = model.encode_images(image_features=features, anchor_ids=anchors)
    again = model.generate(encoder_outputs=encoded, num_beams=3, max_length=9)
    assert torch.equal(again, out.sequences)


def tagged(**changes) -> ClipGpt2ForImageCaptioning:
    return tiny_model(tag_token_ids=[[21], [22, 23], [24], [25]], max_anchors=2, **changes)


def test_the_tag_predictor_supplies_anchors_when_none_are_given():
    model, features = tagged(), torch.randn(3, 12)
    probabilities = torch.tensor([[0.9, 0.6, 0.8, 0.1], [0.2, 0.7, 0.1, 0.3], [0.4, 0.3, 0.2, 0.1]])
    with torch.no_grad():  # a head that gives these
        model.tag_head.weight.copy_(torch.linalg.lstsq(features, probabilities.logit()).solution.T)
        model.tag_head.bias.zero_()
    torch.testing.assert_close(model.predict_tags(features[:, None]).sigmoid(), probabilities, atol=1e-4, rtol=0)
    labels = torch.tensor([[3, 0]] * 3)
    best_two = torch.tensor([[21, 24, -100], [22, 23, -100], [-100, -100, -100]])
    expected = model(image_features=features, anchor_ids=best_two, labels=labels).logits
    for images in ({"image_features": features}, {"encoder_outputs": model.encode_images(image_features=features)}):
        torch.testing.assert_close(model(**images, labels=labels).logits, expected)
        assert torch.equal(
            model.generate(**images, max_length=9),
            model.generate(image_features=features, anchor_ids=best_two, max_length=9),
        )
    none = torch.full((3, 1), -100)
    assert not torch.allclose(model(image_features=features, anchor_ids=none, labels=labels).logits, expected)
    model.config.max_anchors = 0
    without = model(image_features=features, labels=labels).logits
    torch.testing.assert_close(without, model(image_features=features, anchor_ids=none, labels=labels).logits)
    with pytest.raises(ValueError, match="no tag predictor"):
        tiny_model().predict_tags(features[:, None])


def test_tags_of_regions_are_predicted_from_their_mean():
    model, regions = tagged(), torch.randn(1, 3, 12)
    padded = torch.cat((regions, torch.full((1, 2, 12), torch.inf)), dim=1)
    scores = model.predict_tags(padded, torch.tensor([[1, 1, 1, 0, 0]]))
    torch.testing.assert_close(scores, model.tag_head(regions.mean(1)))


def test_the_tag_loss_is_binary_cross_entropy_and_adds_up():
    model, features = tagged(tag_loss_weight=0.5), torch.randn(2, 12)
    labels = torch.tensor([[3, 9, 4, 0], [7, 3, 0, -100], [7, 0, -100, -100], [0, -100, -100, -100]])
    anchors, targets = torch.full((4, 1), -100), torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    inputs = {"image_features": features, "anchor_ids": anchors}
    whole = model(**inputs, labels=labels, tag_targets=targets).loss
    probabilities = model.predict_tags(features[:, None]).sigmoid()
    entropy = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).mean(1)
    words = torch.tensor([7, 3])  # targets of each picture's captions
    expected = model(**inputs, labels=labels).loss + 0.5 * (entropy * words).sum() / 10
    torch.testing.assert_close(whole, expected)
    parts = [
        model(
            image_features=features[i : i + 1],
            anchor_ids=anchors[2 * i : 2 * i + 2],
            labels=labels[2 * i : 2 * i + 2],
            tag_targets=targets[i : i + 1],
            num_items_in_batch=10,
        ).loss
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)
    whole.backward()
    assert model.tag_head.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"tag_targets must be \(2, 4\), not \(2, 3\)"):
        model(**inputs, labels=labels, tag_targets=targets[:, :3])


def test_it_learns_captions_of_its_pictures_with_and_without_anchors():
    """Overfitting: the same picture gets one caption with an anchor and another without."""
    model = tiny_model(sharp=False, prefix_length=2).train()
    features = torch.randn(4, 12).repeat_interleave(2, dim=0)
    labels = torch.randint(1, 40, (8, 5))
    labels[:, -1] = 0
    anchors = torch.tensor([[39], [-100]]).repeat(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(image_features=features, anchor_ids=anchors, labels=labels).loss.backward()
        optimizer.step()
    captions = model.eval().generate(image_features=features, anchor_ids=anchors, num_beams=3)
    assert torch.equal(captions[:, 1:], labels)
