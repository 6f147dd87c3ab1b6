"""Settings and names beside a checkpoint of the bottom-up detector: `config.yaml` and the vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..extras import of_extra
from .pickle_limits import show
from .safe_load import load_json
from .writing import ConversionError, raise_problems

with of_extra():
    import yaml

_MAX_BYTES = 2**20
_MISSING = object()


@dataclass
class Settings:
    """The content of an original configuration, in our names.

    Attributes:
        fields (`dict[str, Any]`): of the model's configuration.
        sizes (`dict[str, Any]`): sizes, to compare with the tensors.
        processor (`dict[str, Any]`): of the image processor.
        assumed (`dict[str, Any]`): the most important settings that the configuration lacks, with the published value.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)


def _number(value: Any) -> float:
    return float(value)


def _list(value: Any) -> list[float]:
    return [float(number) for number in (value if isinstance(value, (list, tuple)) else [value])]


def _pool(value: Any) -> str:
    return "ceil" if value else "pad1"


def _not(value: Any) -> bool:
    return not value


_Table = Mapping[str, tuple[str, str, Callable[[Any], Any]]]

# path in the original -> the field of `Settings`, our name, and the function that reads its value
_FRCNN: _Table = {
    "min_detections": ("fields", "min_regions", int),
    "max_detections": ("fields", "max_regions", int),
    "model.max_pool": ("fields", "stem_pool", _pool),
    "model.pixel_mean": ("processor", "image_mean", _list),
    "model.pixel_std": ("processor", "image_std", _list),
    "input.min_size_test": ("processor", "shortest_edge", int),
    "input.max_size_test": ("processor", "longest_edge", int),
    "resnets.stem_out_channels": ("sizes", "stem_channels", int),
    "resnets.res2_out_channels": ("sizes", "res2_channels", int),
    "resnets.num_groups": ("sizes", "num_groups", int),
    "resnets.stride_in_1x1": ("fields", "stride_in_1x1", bool),
    "proposal_generator.min_size": ("fields", "min_proposal_size", _number),
    "rpn.pre_nms_topk_test": ("fields", "rpn_pre_nms", int),
    "rpn.post_nms_topk_test": ("fields", "max_proposals", int),
    "rpn.nms_thresh": ("fields", "rpn_nms_threshold", _number),
    "roi_heads.num_classes": ("sizes", "num_labels", int),
    "roi_heads.nms_thresh_test": ("fields", "nms_thresholds", _list),
    "roi_box_head.pooler_resolution": ("fields", "pooler_size", int),
    "roi_box_head.res5halve": ("fields", "res5_dilated", _not),
    "roi_box_head.bbox_reg_weights": ("fields", "bbox_weights", _list),
}
_CAFFE: _Table = {
    "MODEL.BUA.EXTRACTOR.MIN_BOXES": ("fields", "min_regions", int),
    "MODEL.BUA.EXTRACTOR.MAX_BOXES": ("fields", "max_regions", int),
    "MODEL.BUA.EXTRACTOR.CONF_THRESH": ("fields", "score_threshold", _number),
    "MODEL.PIXEL_MEAN": ("processor", "image_mean", _list),
    "MODEL.PIXEL_STD": ("processor", "image_std", _list),
    "INPUT.MIN_SIZE_TEST": ("processor", "shortest_edge", int),
    "INPUT.MAX_SIZE_TEST": ("processor", "longest_edge", int),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": ("sizes", "stem_channels", int),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": ("sizes", "res2_channels", int),
    "MODEL.RESNETS.NUM_GROUPS": ("sizes", "num_groups", int),
    "MODEL.RESNETS.STRIDE_IN_1X1": ("fields", "stride_in_1x1", bool),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": ("fields", "min_proposal_size", _number),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": ("fields", "rpn_pre_nms", int),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("fields", "max_proposals", int),
    "MODEL.RPN.NMS_THRESH": ("fields", "rpn_nms_threshold", _number),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": ("fields", "pooler_size", int),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": ("fields", "bbox_weights", _list),
}
_VINVL: _Table = {
    "MODEL.ROI_HEADS.MIN_DETECTIONS_PER_IMG": ("fields", "min_regions", int),
    "MODEL.ROI_HEADS.DETECTIONS_PER_IMG": ("fields", "max_regions", int),
    "MODEL.ROI_HEADS.SCORE_THRESH": ("fields", "score_threshold", _number),
    "MODEL.ROI_ATTRIBUTE_HEAD.POSTPROCESS_ATTRIBUTES_THRESHOLD": ("fields", "attribute_threshold", _number),
    "MODEL.RESNETS.STRIDE_IN_1X1": ("fields", "stride_in_1x1", bool),
    "MODEL.RESNETS.NUM_GROUPS": ("sizes", "num_groups", int),
    "MODEL.RPN.PRE_NMS_TOP_N_TEST": ("fields", "rpn_pre_nms", int),
    "MODEL.RPN.POST_NMS_TOP_N_TEST": ("fields", "max_proposals", int),
    "INPUT.PIXEL_MEAN": ("processor", "image_mean", _list),
    "INPUT.MIN_SIZE_TEST": ("processor", "shortest_edge", int),
    "INPUT.MAX_SIZE_TEST": ("processor", "longest_edge", int),
}
_TABLES = {"frcnn": _FRCNN, "caffe": _CAFFE, "vinvl": _VINVL}

# settings of the original of which this model supports only these values
_REQUIRED: dict[str, dict[str, tuple[Any, ...]]] = {
    "frcnn": {
        "input.format": ("BGR",),
        "roi_box_head.cls_agnostic_bbox_reg": (False,),
        "rpn.bbox_reg_weights": ([1.0] * 4,),
    },
    "caffe": {
        "INPUT.FORMAT": ("BGR",),
        "MODEL.BUA.CAFFE": (True,),
        "MODEL.BUA.RESNET_VERSION": (1,),  # 2 is the ResNet-152 that normalises before its convolutions
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
        "MODEL.RPN.BBOX_REG_WEIGHTS": ([1.0] * 4,),
    },
    "vinvl": {},
}


def read_settings(original_config: str | Path | Mapping[str, Any] | None, layout: str) -> Settings:
    """Read an original configuration.

    Args:
        original_config (`str`, `Path` or `Mapping`, *optional*): the YAML file, or its content.
        layout (`str`): `"caffe"`, `"frcnn"` or `"vinvl"`, whose configurations name their settings differently.

    Returns:
        [`Settings`]

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: the file is no YAML, is the configuration of another layout, or has a setting that this model
            does not know.
    """
    if original_config is None:
        return Settings(assumed={"regions": "10 to 100", "image sizes": "600 to 1000 pixels"})
    content = original_config if isinstance(original_config, Mapping) else _read_yaml(Path(original_config))
    where = "original_config" if isinstance(original_config, Mapping) else str(original_config)
    settings = Settings()
    problems = [
        f"{path} is {show(_at(content, path))}, but this model knows {' or '.join(map(repr, values))} only"
        for path, values in _REQUIRED[layout].items()
        if _at(content, path) is not _MISSING and _at(content, path) not in values
    ]
    for path, (place, name, parse) in _TABLES[layout].items():
        value = _at(content, path)
        if value is _MISSING:
            continue
        try:
            vars(settings)[place][name] = parse(value)
        except (TypeError, ValueError):
            problems.append(f"{path} is {show(value)}, expected a number, or a list of them")
    raise_problems(where, problems)
    if not (settings.fields or settings.processor):
        raise ConversionError(
            f"{where}: none of its settings is known; expected a configuration of the {layout} layout"
        )
    _join_edges(settings, where)
    return settings


def _join_edges(settings: Settings, where: str) -> None:
    edges = {
        name: settings.processor.pop(name) for name in ("shortest_edge", "longest_edge") if name in settings.processor
    }
    if len(edges) == 1:
        raise ConversionError(f"{where}: gives {next(iter(edges))} of the images only; expected both edges")
    if edges:
        settings.processor["size"] = edges


def _at(content: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(content, Mapping) or key not in content:
            return _MISSING
        content = content[key]
    return content


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"configuration not found: {path}")
    _check_size(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConversionError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, expected settings")
    return content


def _check_size(path: Path) -> None:
    if path.stat().st_size > _MAX_BYTES:
        raise ConversionError(f"{path}: larger than the limit of {_MAX_BYTES} bytes")


def read_names(path: str | Path, key: str, count: int) -> list[str]:
    """Read the names of classes or attributes, without background.

    Args:
        path (`str` or `Path`): a text with a name per line, of which the part before the first comma counts; or
            VinVL's JSON, where numbers from 1 belong to names.
        key (`str`): where they are in the JSON: `"label_to_idx"` or `"attribute_to_idx"`.
        count (`int`): how many the checkpoint has.

    Returns:
        `list[str]`

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: it holds another number of names, or none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"vocabulary not found: {path}")
    if path.suffix == ".json":
        content = load_json(path)
        numbers = content.get(key) if isinstance(content, dict) else None
        if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
            raise ConversionError(f"{path}: no {key!r} in it; expected VinVL's names with their numbers")
        names = {number - 1: name for name, number in numbers.items() if number > 0}
        if sorted(names) != list(range(count)):
            raise ConversionError(f"{path}: {key!r} numbers {len(names)} names, but the checkpoint has {count}")
        return [names[index] for index in range(count)]
    _check_size(path)
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: not UTF-8: {error}") from error
    if len(lines) != count:
        raise ConversionError(f"{path}: has {len(lines)} lines, but the checkpoint has {count} names")
    return [line.split(",")[0].strip() for line in lines]
