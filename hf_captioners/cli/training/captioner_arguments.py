"""Options of training that say what learns, and the captioner that they describe: a new one or a saved one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig

from ...data.rows import FeatureDataset, training_captions
from ...families import NoCaptionerError
from ...families.folder_parts import missing_part
from ...families.loading import WeightSizeError, load_captioner_model, load_processor, quantized
from ...families.prompt import ask, prompt_of_adapters
from ...modeling.captioner_adapters import AdapterError, absent_base, base_of
from ...modeling.captioner_hub import at_once
from ...modeling.captioner_new import check_fields, loading_problem
from ...modeling.captioner_trust import foreign_code, load_pretrained
from ..captioners import PROMPT_HELP, QUANTIZED_HELP
from ..common import TrustArguments

logger = logging.getLogger(__name__)

# arguments of `new` that come from elsewhere
_NOT_OF_RECIPES = {
    **{name: f"give --{name} in its place." for name in ("backbone", "features", "tokenizer", "trust_remote_code")},
    "captions": "they are those of the training pictures.",
    "image_processor": "it is that of the backbone.",
}
FEW_CAPTIONS = 5_000
"""Captions below which a new captioner hardly learns to write; 1,000 pictures with five each."""


@dataclass
class CaptionerArguments(TrustArguments):
    """Options of the captioner that learns; [`load_captioner`] reads it.

    Attributes:
        model (`str`, *optional*): captioner to start from; without it a new one is made, for cross-entropy.
        model_type (`str`, *optional*): of the captioner, as `"satic"`; needed for a new one, checked of a saved one.
        backbone (`str`, *optional*): pretrained vision model of a new captioner.
        tokenizer (`str`, *optional*): of a new captioner: `"words"` for the words of its captions, a folder or a Hub
            name; by default words, for DiCO that of the backbone, for CLIP-GPT2 that of a pretrained GPT-2.
        new_captioner (`dict`, *optional*): further arguments of a new captioner's `new`: its sizes, `min_count`,
            `word_rule`, ….
        model_options (`dict`, *optional*): fields of the configuration of a new or a saved captioner that are to
            differ, such as dropout rates.
        retrieval (`str`, *optional*): caption retriever of SCD-Net, which finds the sentences of pictures that come
            without and is saved with the captioner; by default that of `model`. `"none"`: the captioner sees an empty
            sentence.
        prompt (`str`, *optional*): what a captioner with a prompt is asked, or how its captions begin; saved with it.
        load_in_4bit, load_in_8bit (`bool`, defaults to `False`): whether the linear layers of `model` are quantised, by
            bitsandbytes; adapters learn on top of them.
        lora_rank (`int`, defaults to 0): rank of new adapters; 0 to train the model itself, or the adapters it has.
        lora_alpha (`float`, *optional*): of the adapters; by default twice the rank.
        lora_target_modules (`list[str]`, *optional*): layers that get adapters; by default those that the captioner
            names; for those of transformers peft knows some.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the model, with the backbone or
            with the CLIP model of a reward may run.
    """

    model: str | None = field(
        default=None, metadata={"help": "Captioner to start from, or adapters of one; a folder or Hub name."}
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Kind of captioner: of a new one, and what a recipe is for."}
    )
    backbone: str | None = field(
        default=None, metadata={"help": "Pretrained vision model of a new captioner, a folder or Hub name."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer of a new captioner: 'words' for the words of its captions, a folder or Hub name. By "
            "default words; for dico that of the backbone, for clip_gpt2 that of a pretrained GPT-2."
        },
    )
    new_captioner: dict | str | None = field(
        default=None,
        metadata={"help": "Sizes and other arguments of a new captioner, as JSON; not read where there is a --model."},
    )
    model_options: dict | str | None = field(
        default=None, metadata={"help": "Fields of the captioner's configuration that are to differ, as JSON."}
    )
    retrieval: str | None = field(
        default=None,
        metadata={"help": "Caption retriever of SCD-Net, of `hf-captioners retrieval build`, or none for no sentence."},
    )
    prompt: str | None = field(default=None, metadata={"help": PROMPT_HELP})
    load_in_4bit: bool = field(default=False, metadata={"help": QUANTIZED_HELP.format(4)})
    load_in_8bit: bool = field(default=False, metadata={"help": QUANTIZED_HELP.format(8)})
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of new LoRA adapters; 0 to train the model itself, or the adapters it has."}
    )
    lora_alpha: float | None = field(default=None, metadata={"help": "Of the adapters; by default twice the rank."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers that get adapters; by default the captioner's own choice."}
    )

    def __post_init__(self) -> None:
        self.new_captioner = _mapping("new_captioner", self.new_captioner)
        self.model_options = _mapping("model_options", self.model_options)
        for name in self.new_captioner.keys() & _NOT_OF_RECIPES.keys():
            raise ValueError(f"--new_captioner {name}: {_NOT_OF_RECIPES[name]}")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, it is {self.lora_rank}.")
        for name, value in (("lora_alpha", self.lora_alpha), ("lora_target_modules", self.lora_target_modules)):
            if value is not None and not self.lora_rank:
                raise ValueError(f"{name}={value} is of new adapters; give lora_rank too.")
        for name in ("load_in_4bit", "load_in_8bit"):
            if vars(self)[name] and not self.model:
                raise ValueError(f"{name}: a new captioner learns whole; it goes with model, and adapters.")


def _mapping(option: str, value: Any) -> dict[str, Any]:
    """The names and values of an option, which may be JSON."""
    try:
        mapping = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"--{option} {value!r}: not JSON: {error}") from error
    if mapping is not None and not isinstance(mapping, dict):
        raise ValueError(f"--{option} {mapping!r}: expected names and their values.")
    return mapping or {}


@contextmanager
def naming_option(option: str, value: Any) -> Iterator[None]:
    """Say which option named what cannot be found or read.

    Args:
        option (`str`): its name, without dashes.
        value: what it says.

    Raises:
        ValueError: in the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:  # among them of Hub names that cannot be names
        raise ValueError(f"--{option} {value}: {loading_problem(value, error)}") from error


@contextmanager
def naming_fields(option: str) -> Iterator[None]:
    """Say which option has a value that a configuration refuses.

    Args:
        option (`str`): its name, without dashes.

    Raises:
        ValueError: in the place of the error of a configuration's check.
    """
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"--{option}: {error.__cause__ or error}") from error


def load_captioner(
    arguments: CaptionerArguments, rows: Any = None, compute_dtype: str = "auto"
) -> tuple[Any, Any, Any]:
    """The captioner to train.

    A folder of adapters, as training with `lora_rank` leaves it, is opened as the model that they belong to with these
    adapters, which go on learning.

    Args:
        arguments ([`CaptionerArguments`]): which.
        rows (`Dataset`, *optional*): training rows, with the captions that a new captioner needs.
        compute_dtype (`str`, defaults to `"auto"`): what layers in 4 bits compute in, see [`quantized`].

    Returns:
        `tuple`: the model in float32, its processor, and the configuration of new adapters or `None`.

    Raises:
        ValueError: there is no such captioner, or it is of another `model_type`; a `lora_rank` for one that has
            adapters; a `VisionEncoderDecoderModel` whose tokenizer or generation settings say too little; see also
            [`CaptionerPreTrainedModel.new`].
    """
    from transformers.utils import find_adapter_config_file

    name = arguments.model
    if name is None:
        return (*_new(arguments, rows), _new_adapters(arguments))
    if arguments.backbone or arguments.tokenizer or arguments.new_captioner:
        logger.info("the captioner of --model has its backbone and sizes; those of a new one are not read.")
    with naming_option("model", name), at_once(name):
        has_adapters = find_adapter_config_file(name) is not None
    if has_adapters:
        return (*_load_adapters(name, arguments, compute_dtype), None)
    if not arguments.lora_rank and (arguments.load_in_4bit or arguments.load_in_8bit):
        raise ValueError("load_in_4bit, load_in_8bit: what is quantised does not learn; give lora_rank for adapters.")
    with naming_option("model", name):
        model = _load_model(name, arguments, compute_dtype)
        processor = _processor_of(model, name, arguments)
    return model, processor, _new_adapters(arguments)


def captioner_class(arguments: CaptionerArguments) -> Any:
    """The class of a new captioner.

    Args:
        arguments ([`CaptionerArguments`]): its `model_type`.

    Raises:
        ValueError: there is no such captioner.
    """
    from ...captioner_table import CAPTIONERS, captioner_classes

    if arguments.model_type not in CAPTIONERS:
        named = "" if arguments.model_type is None else f" {arguments.model_type}"
        known = ", ".join(CAPTIONERS)
        raise ValueError(f"--model_type{named}: expected one of {known} for a new captioner, or --model to start from.")
    return captioner_classes(arguments.model_type)[1]


def check_new_captioner(arguments: CaptionerArguments, features: str | None, train_backbone: str) -> None:
    """Refuse, before anything is read or built, a new captioner that could not see.

    Args:
        arguments ([`CaptionerArguments`]): of a captioner without `model`.
        features (`str`, *optional*): folder of cached features.
        train_backbone (`str`): what of the backbone learns.

    Raises:
        ValueError: there is no such captioner; nothing that it looks at pictures with, or a backbone that has learned
            nothing and is not to learn.
    """
    captioner_class(arguments)
    fresh = {**cast(dict, arguments.new_captioner), **cast(dict, arguments.model_options)}.get("vision_config")
    if arguments.backbone is None and features is None and fresh is None:
        raise ValueError(
            f"--backbone: a new {arguments.model_type} needs a pretrained vision model, a folder or Hub name; or give "
            "--features, cached ones, or --model, a captioner to start from."
        )
    if arguments.backbone is None and features is None and train_backbone == "none":
        raise ValueError(
            "--train_backbone none: the backbone of this vision_config has learned nothing yet; give --train_backbone "
            "all, or --backbone with a pretrained one."
        )


def _new(arguments: CaptionerArguments, rows: Any) -> tuple[Any, Any]:
    """A captioner that has learned nothing yet, and its processor."""
    options = {**cast(dict, arguments.new_captioner), **cast(dict, arguments.model_options)}
    if arguments.tokenizer is not None:
        options["tokenizer"] = arguments.tokenizer
    captions = training_captions(rows)
    if len(captions) < FEW_CAPTIONS and "gpt2" not in options:
        logger.warning(
            "%d captions of %d pictures are few to learn a language from, %d are a beginning: expect captions "
            "that repeat a few sentences, or start from a captioner that can write, with --model",
            len(captions),
            len(rows),
            FEW_CAPTIONS,
        )
    with naming_fields("new_captioner"):
        model, processor = captioner_class(arguments).new(
            captions,
            arguments.backbone,
            rows.store if isinstance(rows, FeatureDataset) else None,
            trust_remote_code=arguments.trust_remote_code,
            **options,
        )
    if arguments.backbone is None and model.backbone is not None:
        _check_fresh_backbone(model, processor)
    return model, processor


def _check_fresh_backbone(model: Any, processor: Any) -> None:
    """Let a picture go through a backbone of these sizes, which nobody may have tried before."""
    pixels = processor(images=Image.new("RGB", (8, 8)))["pixel_values"]
    try:
        with torch.no_grad():
            model.eval().extract_image_features(pixels)
    except (RuntimeError, ValueError) as error:
        size = " x ".join(map(str, pixels.shape[-2:]))
        raise ValueError(
            f"--new_captioner vision_config: no picture of {size} pixels goes through this "
            f"{model.config.vision_config.model_type}; do its sizes and head counts divide each other? ({error})"
        ) from error


def _new_adapters(arguments: CaptionerArguments) -> Any:
    """The configuration of new adapters, if there are to be any."""
    if not arguments.lora_rank:
        return None
    from peft import LoraConfig

    alpha = 2 * arguments.lora_rank if arguments.lora_alpha is None else arguments.lora_alpha
    targets = arguments.lora_target_modules
    return LoraConfig(r=arguments.lora_rank, lora_alpha=alpha, target_modules=targets)  # type: ignore[arg-type]


def _load_adapters(name: str, arguments: CaptionerArguments, compute_dtype: str) -> tuple[Any, Any]:
    """The model that saved adapters belong to with these, ready to learn, and the processor."""
    from peft import PeftModel
    from transformers.utils import CONFIG_NAME

    if arguments.lora_rank:
        raise ValueError(
            f"--lora_rank {arguments.lora_rank}: --model {name} has adapters already, and these go on learning; leave "
            "--lora_rank away, or merge them into their model first."
        )
    try:
        base = base_of(name) or _base_on_hub(name, arguments.trust_remote_code)
        if Path(name, CONFIG_NAME).is_file():
            raise AdapterError(f"{name}: has a captioner and adapters in one folder; move the adapters to their own.")
        model = _load_model(base, arguments, compute_dtype)
    except AdapterError as error:
        raise ValueError(f"--model {error}") from error
    except OSError as error:
        raise ValueError(f"--model {absent_base(name, base)}") from error
    with naming_option("model", name):
        if arguments.prompt is None:
            ask(model, prompt_of_adapters(name))
        return PeftModel.from_pretrained(model, name, is_trainable=True), _processor_of(model, name, arguments)


def _base_on_hub(name: str, trust_remote_code: bool) -> str:
    """The model that adapters of the Hub belong to."""
    from peft import PeftConfig

    with foreign_code(name, trust_remote_code):
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
    if not base:
        raise AdapterError(f"{name}: its adapter_config.json has no base_model_name_or_path, to find its model.")
    return base


def _load_model(name: str, arguments: CaptionerArguments, compute_dtype: str) -> Any:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"--model {name}: {missing_part(Path(name))}.")
    options, trust = cast(dict, arguments.model_options), arguments.trust_remote_code
    config = load_pretrained(AutoConfig, name, trust)
    if arguments.model_type not in (None, config.model_type):
        raise ValueError(
            f"--model {name}: is a {config.model_type}, and the options are those of a {arguments.model_type} "
            f"(model_type); take another recipe, or give --model_type {config.model_type}."
        )
    _check_options(config, options, "--model_options")
    with naming_fields("model_options"):
        try:
            bits = quantized(arguments.load_in_4bit, arguments.load_in_8bit, compute_dtype)
            model = load_captioner_model(name, trust, dtype=torch.float32, **bits, **options)
            ask(model, arguments.prompt)
        except WeightSizeError as error:
            if not options:
                raise
            raise ValueError(
                f"--model_options {options}: the weights of {name} are of other sizes; these are for a new captioner."
            ) from error
        except NoCaptionerError as error:
            raise ValueError(f"--model {error}") from error
    if arguments.prompt is not None:
        logger.info("the prompt is %r, here and wherever the captioner is loaded from what is saved", arguments.prompt)
    if options:
        model.name_or_path = ""  # it is another captioner than that in the folder
    return model


def _check_options(config: Any, options: Mapping[str, Any], source: str) -> None:
    """Refuse what is no field of a configuration, or of the configuration of a part."""
    check_fields(config, options, source)
    for name, value in options.items():
        part = vars(config)[name]
        if isinstance(value, Mapping) and part is None:
            raise ValueError(f"{source} {name}: this {config.model_type} has none.")
        if isinstance(value, Mapping) and isinstance(part, PreTrainedConfig):
            _check_options(part, value, f"{source} {name}")


def _processor_of(model: Any, name: str, arguments: CaptionerArguments) -> Any:
    try:
        return load_processor(model, name, arguments.trust_remote_code)
    except ValueError as error:
        raise ValueError(f"--model {error}") from error
