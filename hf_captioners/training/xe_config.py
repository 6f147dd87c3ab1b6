"""Options of cross-entropy training."""

from __future__ import annotations

from dataclasses import dataclass, field

from .arguments import CaptionerTrainingArguments


@dataclass
class XEConfig(CaptionerTrainingArguments):
    r"""Options of [`XETrainer`], beside those of [`CaptionerTrainingArguments`] and of `TrainingArguments`.

    Parameters:
        captions_per_image (`int`, defaults to 1):
            Captions of a picture in a batch: 1 for a random one every epoch, 5 for all five of COCO and Flickr.
        eval_captions_per_image (`int`, defaults to 5):
            Captions of a picture that the evaluation loss is computed on.
        label_smoothing_factor (`float`, *optional*, defaults to the model's `config.label_smoothing`):
            Probability mass of the other words, as the model's own loss defines it.
        max_unknown_words (`float`, defaults to 0.25):
            Share of the words of the training captions that may be unknown to a captioner with a vocabulary of words;
            above it, training does not begin.
        extend_vocabulary (`bool`, defaults to `False`):
            Give the captioner the words of the training captions that it does not know, see [`extend_vocabulary`]. Its
            old words stay as they are; model and processor are changed in place, and saved with the new words.
        extend_min_count (`int`, defaults to 5):
            Of these, words seen less often stay unknown.
    """

    captions_per_image: int = field(default=1, metadata={"help": "Captions of a picture in a batch."})
    eval_captions_per_image: int = field(default=5, metadata={"help": "Captions of a picture in the evaluation loss."})
    label_smoothing_factor: float | None = field(  # type: ignore[assignment]  # None: the model's own
        default=None, metadata={"help": "Mass of the other words; by default what the model's configuration says."}
    )
    max_unknown_words: float = field(
        default=0.25,
        metadata={"help": "Share of the training captions' words, from 0 to 1, that the captioner may not know."},
    )
    extend_vocabulary: bool = field(
        default=False, metadata={"help": "Give the captioner the training captions' words that it does not know."}
    )
    extend_min_count: int = field(default=5, metadata={"help": "Of these, words seen less often stay unknown."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("captions_per_image", "eval_captions_per_image", "extend_min_count")
        if self.label_smoothing_factor is not None and not 0 <= self.label_smoothing_factor < 1:
            raise ValueError(f"label_smoothing_factor must be in [0, 1), not {self.label_smoothing_factor}.")
        if not self.extend_vocabulary:
            self.refuse_unread("without extend_vocabulary", "extend_min_count")
        if not 0 <= self.max_unknown_words <= 1:
            raise ValueError(f"max_unknown_words must be from 0 to 1, not {self.max_unknown_words}.")
