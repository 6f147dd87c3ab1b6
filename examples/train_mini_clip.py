"""Train a small CLIP on a few thousand captioned pictures, to score and to reward captions without any download.

    accelerate launch examples/train_mini_clip.py --config examples/recipes/mini_clip/flickr8k_mini.yaml \
        --annotations dataset_karpathy.json --image_root images --backbone vision_backbone --output_dir runs/mini_clip

The result is a plain `VisionTextDualEncoderModel` in a folder with its tokenizer and its image processor:
`ClipScorer("runs/mini_clip")` opens it. Recall of the test pictures and of their captions goes to stdout as JSON and to
`retrieval.json` in the folder.

Pictures: a pretrained MobileNetV2, of which the last layers may learn. What comes before them never changes, so it runs
once, on each picture and on some random crops of it, and its feature maps are all that training looks at.

Captions: a small CLIP text tower from scratch, with the words of the training captions. A batch has one caption of each
of its pictures, so that none of the others is right too. The loss is that of Radford et al., 2021, "Learning
Transferable Visual Models From Natural Language Supervision", section 2.3.

Every option of the YAML file can be given on the command line too, where it wins. `--help` lists them. The options that
are not below are those of transformers' `TrainingArguments`.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    MobileNetV2Model,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    set_seed,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_captioners import build_vocabulary, build_word_tokenizer
from hf_captioners.cli.common import TrustArguments, exit_with_usage_errors, mistakes
from hf_captioners.cli.training.options import read_options
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.files import system_errors, write_whole
from hf_captioners.data.rows import training_captions
from hf_captioners.metrics.clip.clip_score import PREFIX, ClipScorer
from hf_captioners.metrics.clip.features import ClipFeatures
from hf_captioners.metrics.clip.retrieval import clip_recall
from hf_captioners.modeling.captioner_trust import load_pretrained
from hf_captioners.modeling.image_processing_captioner import open_for_processor
from hf_captioners.modeling.tokenization_words import SPECIAL_TOKENS

KS = (1, 5, 10)


@dataclass
class ScriptArguments(TrustArguments):
    """Pictures and captions to learn from, and the sizes of the model."""

    annotations: str = field(metadata={"help": "Captions in Karpathy's layout (dataset_*.json)."})
    image_root: str = field(metadata={"help": "Folder of their pictures."})
    backbone: str = field(metadata={"help": "Pretrained MobileNetV2, a folder or Hub name."})
    train_split: str = field(default="train+restval", metadata={"help": "Splits to learn from."})
    eval_split: str = field(default="val", metadata={"help": "Split that says which epoch is the best."})
    test_split: str = field(default="test", metadata={"help": "Split that recall is reported on."})
    whole_image: bool = field(
        default=False, metadata={"help": "Squash pictures to the size of the backbone instead of cropping them."}
    )
    views: int = field(default=4, metadata={"help": "Views of each training picture: itself and random crops."})
    smallest_crop: float = field(default=0.6, metadata={"help": "Least share of the picture in a crop."})
    vision_layers: int = field(default=0, metadata={"help": "Last layers of the backbone that learn; 0 for none."})
    vision_learning_rate: float = field(default=3e-4, metadata={"help": "Their learning rate."})
    vision_dropout: float = field(default=0.2, metadata={"help": "Dropout of the pooled output, in training."})
    text_width: int = field(default=256, metadata={"help": "Width of the text tower."})
    text_layers: int = field(default=1, metadata={"help": "Its layers."})
    text_heads: int = field(default=4, metadata={"help": "Its attention heads."})
    text_ffn: int = field(default=512, metadata={"help": "Width of its feed-forward layers."})
    text_positions: int = field(default=40, metadata={"help": "Longest caption in words, start and end included."})
    projection_dim: int = field(default=256, metadata={"help": "Width of the features that are compared."})
    min_count: int = field(default=2, metadata={"help": "Words seen less often become the unknown word."})
    word_dropout: float = field(default=0.2, metadata={"help": "Share of words that become the unknown word."})
    prefix_rate: float = field(
        default=0.5, metadata={"help": "Share of captions after 'A photo depicts ', which CLIP-S puts before them."}
    )


def layers_of(backbone: MobileNetV2Model) -> list[nn.Module]:
    """Layers of a MobileNetV2 in their order, before it takes the mean."""
    return [backbone.conv_stem, *backbone.layer, backbone.conv_1x1]


class LastLayers(nn.Module):
    """The last layers of a MobileNetV2 as a vision tower of its own. They are the backbone's, not copies.

    Args:
        backbone (`MobileNetV2Model`): all of it.
        number (`int`): how many of its layers belong to the tower; with none, what is left is the mean.
        dropout (`float`, defaults to 0): of the pooled output, in training.
    """

    def __init__(self, backbone: MobileNetV2Model, number: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers = layers_of(backbone)
        self.layer = nn.ModuleList(layers[len(layers) - number :])
        self.dropout = nn.Dropout(dropout)

    def train(self, mode: bool = True) -> LastLayers:
        """Batch norm keeps the statistics of the pretraining: those of a few pictures are worse."""
        super().train(mode)
        self.layer.eval()
        return self

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The pooled output; in the place of pixels it takes the maps of [`feature_maps`]."""
        hidden = pixel_values.float()
        for layer in self.layer:
            hidden = layer(hidden)
        pooled = self.dropout(hidden.mean((2, 3)))
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


@torch.no_grad()
def feature_maps(backbone: MobileNetV2Model, number: int, pixel_values: Tensor) -> Tensor:
    """Output of the layers before [`LastLayers`]: float16 of shape (images, channels, height, width)."""
    layers = layers_of(backbone)
    hidden = pixel_values
    for layer in layers[: len(layers) - number]:
        hidden = layer(hidden)
    if not number:
        hidden = hidden.mean((2, 3), keepdim=True)  # takes less room, and its mean is the same
    return hidden.half()


def random_crop(picture: Image.Image, smallest: float) -> Image.Image:
    """A part of the picture in the shape of the picture, mirrored or not: few captions say left or right."""
    scale = random.uniform(smallest, 1.0) ** 0.5
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top = random.randint(0, picture.width - width), random.randint(0, picture.height - height)
    part = picture.crop((left, top, left + width, top + height))
    return part if random.random() < 0.5 else part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class MappedPictures(torch.utils.data.Dataset):
    """Captions of pictures with the feature maps of the pictures, computed here.

    Args:
        rows (`Dataset`): with `image` and `captions`.
        backbone (`MobileNetV2Model`): whose first layers make the maps.
        image_processor (`BaseImageProcessor`): prepares the pictures.
        script ([`ScriptArguments`]): says which maps.
        views (`int`, defaults to 1): of each picture: itself, and random crops.
    """

    def __init__(
        self,
        rows: Any,
        backbone: MobileNetV2Model,
        image_processor: BaseImageProcessor,
        script: ScriptArguments,
        views: int = 1,
    ) -> None:
        self.captions: list[list[str]] = list(rows["captions"])
        maps = []
        for image in tqdm(rows["image"], desc="feature maps", unit="image", disable=None):
            picture = open_for_processor(image, image_processor)
            crops = [random_crop(picture, script.smallest_crop) for _ in range(views - 1)]
            pixels = image_processor(images=[picture, *crops], return_tensors="pt")["pixel_values"]
            maps.append(feature_maps(backbone, script.vision_layers, pixels))
        self.maps = torch.stack(maps)  # [images, views, channels, height, width]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"maps": self.maps[row], "captions": self.captions[row]}


class PairCollator:
    """A view of each picture and one of its captions, with words left out.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the captions.
        word_dropout (`float`): share of words that become the unknown word, which so gets a meaning.
        prefix_rate (`float`): share of captions with the prefix of CLIP-S.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, word_dropout: float, prefix_rate: float) -> None:
        self.tokenizer = tokenizer
        self.word_dropout = word_dropout
        self.prefix_rate = prefix_rate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`pixel_values`, `input_ids`, `attention_mask`, and `return_loss` for the contrastive loss."""
        maps = torch.stack([random.choice(row["maps"]) for row in rows])
        captions = [self._prefix() + random.choice(row["captions"]) for row in rows]
        inputs = self.tokenizer(
            captions, padding=True, truncation=True, return_special_tokens_mask=True, return_tensors="pt"
        )
        ids = inputs["input_ids"]
        left_out = (torch.rand(ids.shape) < self.word_dropout) & ~inputs["special_tokens_mask"].bool()
        ids = ids.masked_fill(left_out, self.tokenizer.unk_token_id)
        return {
            "pixel_values": maps,
            "input_ids": ids,
            "attention_mask": inputs["attention_mask"],
            "return_loss": True,
        }

    def _prefix(self) -> str:
        return PREFIX if random.random() < self.prefix_rate else ""


class ContrastiveTrainer(Trainer):
    """Evaluates by recall: `eval_recall` is the mean over both directions and the k."""

    model: Any
    eval_dataset: Any
    processing_class: Any

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Recall of the pictures and all their captions, on every process the same."""
        pictures = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        scorer = ClipFeatures(model, self.processing_class, batch_size=self.args.eval_batch_size)
        corpus = clip_recall(pictures.maps[:, 0], pictures.captions, scorer=scorer, ks=KS).corpus
        recalls = [value for name, value in corpus.items() if "recall" in name]
        corpus = {"recall": sum(recalls) / len(recalls), **corpus}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in corpus.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def word_tokenizer(captions: list[str], script: ScriptArguments) -> PreTrainedTokenizerBase:
    """A tokenizer with the words of the captions and of the prefix.

    The special tokens come last: an end token with the id 2 would make transformers' CLIP pool as it did when its
    configurations had a wrong id, at the highest id of a caption.
    """
    words = build_vocabulary([*captions, *[PREFIX] * script.min_count], script.min_count)
    special = list(SPECIAL_TOKENS.values())
    words = [word for word in words if word not in special]
    return build_word_tokenizer([*words, *special], model_max_length=script.text_positions)


def new_model(
    backbone: MobileNetV2Model, tokenizer: PreTrainedTokenizerBase, script: ScriptArguments
) -> VisionTextDualEncoderModel:
    """The backbone and a fresh text tower, with fresh projections."""
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=script.text_width,
        intermediate_size=script.text_ffn,
        num_hidden_layers=script.text_layers,
        num_attention_heads=script.text_heads,
        max_position_embeddings=script.text_positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    backbone.config.name_or_path = ""  # a folder of this machine says nothing elsewhere
    backbone.config.hidden_size = backbone.conv_1x1.convolution.out_channels  # the dual encoder asks for it
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        backbone.config, text_config, projection_dim=script.projection_dim
    )
    return VisionTextDualEncoderModel(config, vision_model=backbone, text_model=CLIPTextModel(text_config))


def optimizer_of(
    model: VisionTextDualEncoderModel, script: ScriptArguments, args: TrainingArguments
) -> torch.optim.Optimizer:
    """AdamW: the pretrained layers at their own rate, no decay for biases, norms and the temperature."""
    fresh = [one for name, one in model.named_parameters() if not name.startswith("vision_model.")]
    groups: list[dict[str, Any]] = [
        {"params": list(model.vision_model.parameters()), "lr": script.vision_learning_rate},
        {"params": [one for one in fresh if one.dim() > 1]},
        {"params": [one for one in fresh if one.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, weight_decay=args.weight_decay)


def load_towers(script: ScriptArguments) -> tuple[MobileNetV2Model, BaseImageProcessor]:
    """The backbone and what prepares its pictures."""
    backbone = load_pretrained(AutoModel, script.backbone, script.trust_remote_code).eval()
    if not isinstance(backbone, MobileNetV2Model):
        raise SystemExit(f"--backbone {script.backbone}: a {type(backbone).__name__}; expected a MobileNetV2Model.")
    number = len(layers_of(backbone))
    if not 0 <= script.vision_layers <= number:
        raise ValueError(f"--vision_layers {script.vision_layers}: expected 0 to {number}.")
    options: dict[str, Any] = {}
    if script.whole_image:
        size = backbone.config.image_size
        options = {"size": {"height": size, "width": size}, "do_center_crop": False}
    options |= {"backend": "pil"}
    return backbone, load_pretrained(AutoImageProcessor, script.backbone, script.trust_remote_code, **options)


def train(script: ScriptArguments, args: TrainingArguments) -> None:
    """Train, and write the model, the tokenizer and the image processor."""
    names = (script.train_split, script.eval_split)
    with mistakes(ValueError, OSError):
        splits = [load_karpathy(script.annotations, script.image_root, split=name) for name in names]
        tokenizer = word_tokenizer(training_captions(splits[0]), script)
        backbone, image_processor = load_towers(script)
    set_seed(args.seed)
    model = new_model(backbone, tokenizer, script)
    pictures = [
        MappedPictures(rows, backbone, image_processor, script, views)
        for rows, views in zip(splits, (script.views, 1), strict=True)
    ]
    model.vision_model = LastLayers(backbone, script.vision_layers, script.vision_dropout)
    trainer = ContrastiveTrainer(
        model,
        args,
        PairCollator(tokenizer, script.word_dropout, script.prefix_rate),
        train_dataset=pictures[0],
        eval_dataset=pictures[1],
        processing_class=tokenizer,
        optimizers=(optimizer_of(model, script, args), None),
    )
    with mistakes(ValueError, OSError), system_errors(str(args.output_dir)):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_state()
    model.vision_model = backbone  # whole again, with the layers that have learnt
    if trainer.is_world_process_zero():
        for part in (model, tokenizer, image_processor):
            part.save_pretrained(str(args.output_dir))


def measure(script: ScriptArguments, folder: str) -> dict[str, dict[str, float]]:
    """Recall of the test pictures and captions with the saved model, from the picture files, as captions are and with
    the prefix of CLIP-S."""
    rows = load_karpathy(script.annotations, script.image_root, split=script.test_split)
    scorer = ClipScorer(folder, prefix="", show_progress=True)
    features = scorer.image_features(list(rows["image"]), rows["image_id"])
    result = {}
    for name, prefix in (("plain", ""), ("with_prefix", PREFIX)):
        scorer.prefix = prefix
        corpus = clip_recall(features, list(rows["captions"]), scorer=scorer, ks=KS, image_ids=rows["image_id"]).corpus
        result[name] = {key: round(value, 4) for key, value in corpus.items()}
    return result


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    prog = Path(sys.argv[0]).name
    with exit_with_usage_errors(prog), contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
        script, args = read_options([ScriptArguments, TrainingArguments], argv, prog)
        args.remove_unused_columns = False  # the collator chooses
        train(script, args)
    if args.process_index == 0:
        text = json.dumps(measure(script, args.output_dir), indent=2)
        write_whole(Path(args.output_dir) / "retrieval.json", lambda path: path.write_text(text + "\n"))
        print(text)


if __name__ == "__main__":
    main()
