"""The quickstart: draw a captioned world, train a small ExpansionNet v2 on it end to end, caption unseen pictures.

Nothing is downloaded, and everything follows from one seed. The captioner that it leaves behind loads like any other.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..data.captions.karpathy import load_karpathy
from ..data.drawn.world import load_scenes, names_shape_and_color, write_sample_world
from ..data.files import write_whole
from ..modeling.image_processing_captioner import CaptionerImageProcessor
from ..modeling.modeling_expansionnet_v2 import ExpansionNetV2ForImageCaptioning
from ..modeling.processing_captioner import ExpansionNetV2Processor
from ..reports.contact_sheet import SheetItem, contact_sheet
from ..training.xe_config import XEConfig
from ..training.xe_trainer import XETrainer

IMAGE_SIZE = 64
# Small enough to learn from scratch within the quickstart; any vision backbone of transformers could stand here.
BACKBONE: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 32,
    "hidden_sizes": [48, 96, 128],
    "depths": [1, 1, 1],
    "layer_type": "basic",
}


@dataclass
class Unseen:
    """A test picture with its generated caption and its references."""

    image: Path
    caption: str
    references: list[str]
    right: bool


@dataclass
class QuickstartResult:
    """The result of the quickstart.

    Args:
        unseen (`list[Unseen]`): every test picture.
        accuracy (`float`): share of the captions that name shape and colour right.
        captioner (`Path`): folder of the trained captioner.
        sheet (`Path`): the contact sheet.
        seconds (`float`): wall time.
    """

    unseen: list[Unseen]
    accuracy: float
    captioner: Path
    sheet: Path
    seconds: float


def small_captioner(captions: list[str], seed: int = 0) -> tuple[Any, ExpansionNetV2Processor]:
    """A fresh ExpansionNet v2 of about a million parameters for pictures of 64 x 64 pixels, and its processor."""
    set_seed(seed)
    return ExpansionNetV2ForImageCaptioning.new(
        captions,
        min_count=2,
        image_processor=CaptionerImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        d_model=128,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        ffn_dim=256,
        encoder_expansion_groups=[8, 16],
        decoder_expansion_size=4,
        max_position_embeddings=24,
        vision_config=dict(BACKBONE),
        feature_size=BACKBONE["hidden_sizes"][-1],
        label_smoothing=0.0,
        encoder_dropout=0.0,
        decoder_dropout=0.0,
        encoder_input_dropout=0.0,
        decoder_input_dropout=0.0,
        other_dropout=0.0,
    )


def quickstart(out_dir: str | Path, *, num_train: int = 3500, epochs: int = 9, seed: int = 0) -> QuickstartResult:
    """Draw a world, train a captioner on it, and caption its test pictures.

    Args:
        out_dir (`str` or `Path`): folder for the world, the captioner, the contact sheet and `captions.json`.
        num_train (`int`, defaults to 3500): training pictures.
        epochs (`int`, defaults to 9): passes over them.
        seed (`int`, defaults to 0): of the world and the training.

    Returns:
        [`QuickstartResult`]

    Raises:
        FileExistsError: `out_dir` holds the world of another `num_train` or `seed`.
    """
    start = time.perf_counter()
    out_dir = Path(out_dir)
    world = write_sample_world(
        out_dir / "world",
        num_train=num_train,
        num_val=100,
        num_test=200,
        size=IMAGE_SIZE,
        seed=seed,
    )
    train, test = (
        load_karpathy(world / "dataset_karpathy.json", world / "images", split=name) for name in ("train", "test")
    )
    model, processor = small_captioner([caption for captions in train["captions"] for caption in captions], seed)
    trainer = XETrainer(model, _options(out_dir, epochs, seed), train, processing_class=processor)
    trainer.train()
    captioner = out_dir / "captioner"
    trainer.save_model(str(captioner))  # the processor too

    unseen = _compare(world, test, trainer.generate_captions(test))
    accuracy = sum(card.right for card in unseen) / len(unseen)
    sheet = out_dir / "contact_sheet.png"
    cards = [SheetItem(card.image, card.caption, card.references, right=card.right) for card in unseen[:24]]
    title = f"{len(cards)} of {len(unseen)} unseen pictures; shape and colour right in {accuracy:.1%} of all"
    contact_sheet(cards, sheet, columns=6, cell_width=220, title=title)
    result = QuickstartResult(unseen, accuracy, captioner, sheet, time.perf_counter() - start)
    _write_result(out_dir / "captions.json", result)
    return result


def _compare(world: Path, test: Any, captions: list[str]) -> list[Unseen]:
    scenes = load_scenes(world)
    rows = test.remove_columns("image")  # so that no picture is decoded for its name
    return [
        Unseen(
            image=world / "images" / row["file_name"],
            caption=caption,
            references=row["captions"],
            right=names_shape_and_color(caption, scenes[row["image_id"]]),
        )
        for caption, row in zip(captions, rows, strict=True)
    ]


def _options(out_dir: Path, epochs: int, seed: int) -> XEConfig:
    return XEConfig(
        output_dir=str(out_dir / "training"),
        train_backbone="all",
        captions_per_image=2,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=100,
        learning_rate=1.5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.01,
        generation_num_beams=1,
        save_strategy="no",
        logging_steps=10**9,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _write_result(path: Path, result: QuickstartResult) -> None:
    rows = []
    for card in result.unseen:
        record = asdict(card)
        rows.append({"picture": str(record.pop("image")), **record})
    summary = {"accuracy": result.accuracy, "seconds": result.seconds, "captions": rows}
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
