"""Options that every trainer of captioners has."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .schedules import SCHEDULES


@dataclass
class CaptionerTrainingArguments(TrainingArguments):
    r"""Options of every captioner's training, beside those of `TrainingArguments`.

    Parameters:
        > Parameters that control the data

        skip_broken_images (`bool`, defaults to `False`):
            Leave out training pictures that cannot be opened, with a warning, instead of stopping.

        > Parameters that control what learns

        train_backbone (`str`, defaults to `"none"`):
            `"none"`, `"all"`, or a regular expression over the backbone's parameter names.

        > Parameters that control optimizer and schedule

        optimizer (`str`, *optional*):
            `"radam"` for the rectified Adam of ExpansionNet v2, betas (0.9, 0.98), eps 1e-9, without weight decay. By
            default `optim` says.
        max_grad_value (`float`, *optional*):
            Clamp every element of the gradients to +- this, as SATIC does (0.1), besides `max_grad_norm`.
        schedule (`str`, *optional*):
            `"custom_warmup_anneal"` or `"annealing"`, ExpansionNet v2's schedules, or `"noam"`, SATIC's. By default
            `lr_scheduler_type` says.
        warmup_iters (`int`, defaults to 10000), anneal_coeff (`float`, defaults to 0.8), anneal_every_epoch (`float`,
            defaults to 2.0), min_learning_rate (`float`, defaults to 5e-7): of `schedule`, counted in batches, not in
            optimizer steps.

        > Parameters that control evaluation by generation

        eval_with_generation (`bool`, defaults to `False`):
            Also caption the evaluation pictures, and score the captions.
        caption_metrics (`list[str]`, defaults to `["bleu", "rouge_l", "cider_d"]`):
            Metrics of [`CaptionMetrics`] for that. Keep the best checkpoint by one with
            `metric_for_best_model="cider_d"`, `greater_is_better=True` and `load_best_model_at_end=True`.
        generation_num_beams (`int`, defaults to 3):
            Beams of that (ExpansionNet v2's number in its phases).
        generation_max_length (`int`, defaults to 20):
            Longest caption in tokens, start token included.
        num_logged_captions (`int`, defaults to 3):
            How many of the captions to log.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Rows are read by the collator; keep their columns."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log every that many optimizer steps."})
    skip_broken_images: bool = field(
        default=False, metadata={"help": "Leave out training pictures that cannot be opened."}
    )
    train_backbone: str = field(
        default="none", metadata={"help": "'none', 'all' or a regular expression over the backbone's parameter names."}
    )
    optimizer: str | None = field(default=None, metadata={"help": "'radam': the paper's. By default --optim says."})
    max_grad_value: float | None = field(
        default=None, metadata={"help": "Clamp every element of the gradients to +- this (SATIC: 0.1)."}
    )
    schedule: str | None = field(
        default=None,
        metadata={"help": "'custom_warmup_anneal', 'annealing' or 'noam'. By default --lr_scheduler_type says."},
    )
    warmup_iters: int = field(default=10000, metadata={"help": "Batches of the schedule's warm-up; 1 for none."})
    anneal_coeff: float = field(default=0.8, metadata={"help": "Factor by which the schedule falls."})
    anneal_every_epoch: float = field(default=2.0, metadata={"help": "Epochs between two falls."})
    min_learning_rate: float = field(default=5e-7, metadata={"help": "Lowest rate after the warm-up."})
    eval_with_generation: bool = field(default=False, metadata={"help": "Also caption the evaluation pictures."})
    caption_metrics: list[str] = field(
        default_factory=lambda: ["bleu", "rouge_l", "cider_d"], metadata={"help": "Metrics of the generated captions."}
    )
    generation_num_beams: int = field(default=3, metadata={"help": "Beams of evaluation by generation."})
    generation_max_length: int = field(
        default=20, metadata={"help": "Longest caption in tokens, with the start token."}
    )
    num_logged_captions: int = field(default=3, metadata={"help": "How many generated captions to log."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in (None, "radam"):
            raise ValueError(f"optimizer must be 'radam' or not given, not {self.optimizer!r}.")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {sorted(SCHEDULES)} or not given, not {self.schedule!r}.")
        self.check_at_least_one("warmup_iters", "generation_num_beams")
        if self.max_grad_value is not None and self.max_grad_value <= 0:
            raise ValueError(f"max_grad_value must be positive or not given, not {self.max_grad_value}.")

    def check_at_least_one(self, *names: str) -> None:
        """Raise a `ValueError` for the first of these options that is below 1."""
        for name in names:
            if vars(self)[name] < 1:
                raise ValueError(f"{name} must be at least 1, not {vars(self)[name]}.")
