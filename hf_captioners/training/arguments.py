"""Options that every trainer of captioners has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, cast

from transformers import SchedulerType, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames
from transformers.utils import ExplicitEnum

from ..extras import install
from .option_checks import check_scheduler, check_values
from .schedules import SCHEDULES, check_schedule, radam_options

ScheduleName = ExplicitEnum("ScheduleName", {name.upper(): name for name in SCHEDULES})  # type: ignore[call-overload]
"""The papers' schedules in the form that transformers' own names have."""


@dataclass
class CaptionerTrainingArguments(TrainingArguments):
    r"""Options of every captioner's training, beside those of `TrainingArguments`.

    Parameters:
        > Parameters that control the data

        skip_broken_images (`bool`, defaults to `False`):
            Leave out training pictures that cannot be opened, with a warning, instead of stopping.

        > Parameters that control checkpoints

        check_disk_space (`bool`, defaults to `True`):
            Do not begin where the disk has no space for the checkpoints that are asked for, as far as that is known.
        hub_strategy (`str`, defaults to `"end"`):
            With `push_to_hub` the captioner is pushed when it has been trained, as one commit with its card;
            checkpoints stay here.

        > Parameters that control what learns

        train_backbone (`str`, defaults to `"none"`):
            `"none"`, `"all"`, or a regular expression over the backbone's parameter names.

        > Parameters that control optimizer and schedule

        optim (`str`, defaults to that of `TrainingArguments`):
            Also `"radam"`, the rectified Adam of ExpansionNet v2; `optim_args` then has by default
            `"beta1=0.9,beta2=0.98,eps=1e-9"`.
        lr_scheduler_type (`str`, defaults to `"linear"`):
            Also `"custom_warmup_anneal"` or `"annealing"`, ExpansionNet v2's schedules, or `"noam"`, SATIC's. Their
            options are `lr_scheduler_kwargs`: see [`~hf_captioners.training.schedules.custom_warmup_anneal`] and the
            others beside it. They count batches, not optimizer steps.
        max_grad_value (`float`, *optional*):
            Clamp every element of the gradients to +- this, as SATIC does (0.1), besides `max_grad_norm`.
        moving_average_decay (`float`, *optional*):
            Keep a moving average of the weights that learn, as SCD-Net does (0.9999): it is what is evaluated, and what
            the saved model has at the end; the folder's `raw/` has the weights as they are. Checkpoints hold both.

        > Parameters that control evaluation by generation

        eval_with_generation (`bool`, defaults to `False`):
            Also caption the evaluation pictures, and score the captions. The options below are of that, and of
            `generate_captions`.
        caption_metrics (`list[str]`, defaults to `["bleu", "rouge_l", "cider_d"]`):
            Metrics of [`CaptionMetrics`] for that. Keep the best checkpoint by one with
            `metric_for_best_model="cider_d"`, `greater_is_better=True` and `load_best_model_at_end=True`.
        generation_num_beams (`int`, defaults to 3):
            Beams of that (ExpansionNet v2's number in its phases), of captioners that write word by word.
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
    check_disk_space: bool = field(
        default=True, metadata={"help": "Do not begin without space for the checkpoints on the disk."}
    )
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "When push_to_hub pushes: at the end; checkpoints are not pushed."}
    )
    train_backbone: str = field(
        default="none", metadata={"help": "'none', 'all' or a regular expression over the backbone's parameter names."}
    )
    optim: str = field(
        default=TrainingArguments.optim, metadata={"help": "An optimizer of transformers, or 'radam', ExpansionNet's."}
    )
    lr_scheduler_type: str = field(
        default="linear",
        metadata={
            "help": f"A schedule of transformers, or of the papers: {', '.join(SCHEDULES)}, with --lr_scheduler_kwargs."
        },
    )
    max_grad_value: float | None = field(
        default=None, metadata={"help": "Clamp every element of the gradients to +- this (SATIC: 0.1)."}
    )
    moving_average_decay: float | None = field(
        default=None,
        metadata={"help": "Evaluate and save a moving average of the weights with this decay (SCD-Net: 0.9999)."},
    )
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
        optim, schedule = self.optim, self.lr_scheduler_type
        check_values(self)
        # transformers refuses names that are not its own: it gets its own ones while it checks the other fields
        self.optim = _known("optim", optim, OptimizerNames, ["radam"]) or TrainingArguments.optim
        self.lr_scheduler_type = _known("lr_scheduler_type", schedule, SchedulerType, SCHEDULES) or "constant"
        super().__post_init__()
        if (said := str(self.resume_from_checkpoint).strip().lower()) in ("true", "false"):  # of a command line
            self.resume_from_checkpoint = said == "true"  # type: ignore[assignment]
        if optim == "radam":
            self.optim = optim
            radam_options(self.optim_args)
            self.refuse_unread("with optim=radam, which reads optim_args", "adam_beta1", "adam_beta2", "adam_epsilon")
        if schedule in SCHEDULES:
            self.lr_scheduler_type = ScheduleName(schedule)
            if self.learning_rate == 0:
                raise ValueError(
                    f"learning_rate must be above 0 with lr_scheduler_type={schedule}, which is a share of it."
                )
            check_schedule(schedule, cast(dict, self.lr_scheduler_kwargs or {}))
            self.refuse_unread(f"with lr_scheduler_type={schedule}, which reads lr_scheduler_kwargs", "warmup_steps")
        else:
            check_scheduler(schedule, cast(dict, self.lr_scheduler_kwargs or {}), self.learning_rate)
        if self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy={HubStrategy(self.hub_strategy).value}: checkpoints are not pushed, but the trained "
                "captioner is, at the end; leave it out."
            )
        self.refuse_unread("on a single push at the end", "hub_always_push")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would take the captions out of the rows; leave it out.")
        if "tensorboard" in (self.report_to or ()) and not is_tensorboard_available():
            raise ValueError(f"report_to=tensorboard: tensorboard is not installed; {install('tensorboard')}.")
        self.check_at_least_one("generation_num_beams", "generation_max_length")
        if self.num_logged_captions < 0:
            raise ValueError(f"num_logged_captions must not be negative, it is {self.num_logged_captions}.")
        if self.max_grad_value is not None and not self.max_grad_value > 0:
            raise ValueError(f"max_grad_value must be positive or not given, not {self.max_grad_value}.")
        if self.moving_average_decay is not None and not 0 < self.moving_average_decay < 1:
            raise ValueError(
                f"moving_average_decay must be between 0 and 1 or not given, not {self.moving_average_decay}."
            )

    def refuse_unread(self, where: str, *names: str) -> None:
        """Raise a `ValueError` for the first of these options that is not what it is by default.

        Args:
            where (`str`): what does not read them, for the message.
            names (`str`): of options.
        """
        usual = {option.name: option.default for option in fields(self)}
        for name in names:
            if vars(self)[name] != usual[name]:
                raise ValueError(f"{name}={vars(self)[name]!r} has no effect {where}; leave it out.")

    def check_at_least_one(self, *names: str) -> None:
        """Raise a `ValueError` for the first of these options that is below 1."""
        for name in names:
            if vars(self)[name] < 1:
                raise ValueError(f"{name} must be at least 1, not {vars(self)[name]}.")


def _known(option: str, name: str, theirs: Any, ours: Iterable[str]) -> str | None:
    """The name of something of transformers; `None` for something of this package.

    Raises:
        ValueError: neither.
    """
    names = [member.value for member in theirs]
    if name in names:
        return name
    if name in ours:
        return None
    raise ValueError(f"{option} must be one of {', '.join([*ours, *names])}, not {name!r}.")
