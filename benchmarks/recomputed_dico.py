"""A step of DiCO as the original does it, with transformers' modules of today.

The vision tower runs in every step; the beam search records gradients, which nothing uses, and projects the memory's
keys and values for every beam in every step; CLIP reads the pictures, and captions of 77 tokens; reference and policy
have a copy of the memory for each caption. `bench_reward_training.py` compares with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import CLIPModel, DynamicCache, EncoderDecoderCache, GPT2LMHeadModel

from hf_captioners import DiCOConfig
from hf_captioners.training.reward.losses import dico_loss


class RecomputedStep:
    """Optimizer steps, one at a time.

    Args:
        policy, reference ([`DicoForImageCaptioning`]): the captioners; the reference has the policy's vision tower.
        clip (`CLIPModel`): the evaluator.
        args ([`DiCOConfig`]): beams, length, beta and the like.
        part (`Callable`): a context manager that is entered for each part of a step, with its name.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        clip: CLIPModel,
        args: DiCOConfig,
        part: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.policy, self.reference, self.clip, self.args, self.part = policy, reference, clip, args, part
        self.decoders = {id(model): stock_decoder(model) for model in (policy, reference)}
        self.decoder = self.decoders[id(policy)]
        learning = [*policy.encoder.parameters(), *policy.vis_enc_to_enc_proj.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.AdamW(learning, lr=args.learning_rate, fused=True)  # as Trainer's

    def __call__(self, pixel_values: torch.Tensor) -> float:
        """Learn from pictures; return the loss."""
        pixel_values, part = pixel_values.to(self.policy.device), self.part
        self.policy.eval()  # the trainers leave it in training mode
        with part("vision tower"), torch.no_grad():
            features = self.policy.backbone(pixel_values).last_hidden_state
        with part("candidates"):
            ids = self.beam_search(self.encode(self.policy, features))
        with part("reference"), torch.no_grad():
            reference = self.log_probs(self.reference, features, ids)
        with part("reward"), torch.no_grad():
            rewards = self.pac_score(pixel_values, ids)
        with part("policy, forward"):
            policy = self.log_probs(self.policy, features, ids)
        out = dico_loss(policy, reference, rewards, self.args.beta, self.args.reward_temperature)
        loss = out.per_image.mean()
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()

    def encode(self, model: Any, features: torch.Tensor) -> torch.Tensor:
        """The memory of the pictures, (B * k, N, d): a copy for each caption."""
        hidden = model.encoder(inputs_embeds=model.vis_enc_to_enc_proj(features)).last_hidden_state
        return hidden.repeat_interleave(self.args.num_generations, dim=0)

    def beam_search(self, memory: torch.Tensor) -> torch.Tensor:
        """The k best captions of each picture, (B * k, L), all of the full length."""
        k, device, config = self.args.num_generations, memory.device, self.policy.config
        first_beam = torch.arange(0, len(memory), k, device=device)[:, None]
        ids = torch.full((len(memory), 1), config.bos_token_id, device=device)
        sums = torch.full((len(memory) // k, k), -1e9, device=device)
        sums[:, 0] = 0.0
        captions = DynamicCache(config=self.decoder.config)
        while ids.shape[1] < self.args.max_completion_length:
            cache = EncoderDecoderCache(captions, DynamicCache(config=self.decoder.config))  # memory: not cached
            logits = self.decoder(ids[:, -1:], encoder_hidden_states=memory, past_key_values=cache).logits[:, -1]
            log_probs = logits.log_softmax(-1).index_fill(1, torch.tensor([config.eos_token_id], device=device), -1e9)
            sums, chosen = (log_probs.unflatten(0, (-1, k)) + sums[..., None]).flatten(1).topk(k, dim=1)
            rows = (first_beam + chosen // log_probs.shape[1]).flatten()
            ids = torch.cat((ids[rows], (chosen % log_probs.shape[1]).view(-1, 1)), dim=1)
            captions.reorder_cache(rows)
        return torch.nn.functional.pad(ids, (0, 1), value=config.eos_token_id)

    def pac_score(self, pixel_values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The rewards of captions, (B, k)."""
        filled = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))
        image_features = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        text_features = self.clip.get_text_features(input_ids=filled).pooler_output
        image_features = image_features.repeat_interleave(self.args.num_generations, dim=0)
        return 2 * torch.cosine_similarity(text_features, image_features).view(-1, self.args.num_generations)

    def log_probs(self, model: Any, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The log-probabilities of whole captions, (B, k)."""
        memory = self.encode(model, features)
        logits = self.decoders[id(model)](ids, encoder_hidden_states=memory, use_cache=False).logits
        log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        return log_probs.sum(dim=(1, 2)).view(-1, self.args.num_generations)


def stock_decoder(model: Any) -> GPT2LMHeadModel:
    """transformers' own decoder that shares the weights of a captioner's."""
    decoder = GPT2LMHeadModel(model.decoder.config)
    decoder.load_state_dict(model.decoder.state_dict(), assign=True)
    decoder.tie_weights()
    return decoder.requires_grad_(model.decoder.transformer.wte.weight.requires_grad).eval()
