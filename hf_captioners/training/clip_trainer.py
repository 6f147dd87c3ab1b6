"""Contrastive training of a small CLIP, evaluated by recall."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from ..metrics.clip.features import ClipFeatures
from ..metrics.clip.retrieval import clip_recall

KS = (1, 5, 10)
"""Places within which the right one counts as recalled."""


class ContrastiveTrainer(Trainer):
    """Evaluates by recall: `eval_recall` is the mean over both directions and the k."""

    model: Any
    eval_dataset: Any
    processing_class: Any

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Recall of the images and all their captions, on every process the same."""
        images = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        scorer = ClipFeatures(model, self.processing_class, batch_size=self.args.eval_batch_size)
        corpus = clip_recall(images.maps[:, 0], images.captions, scorer=scorer, ks=KS).corpus
        recalls = [value for name, value in corpus.items() if "recall" in name]
        corpus = {"recall": sum(recalls) / len(recalls), **corpus}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in corpus.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
