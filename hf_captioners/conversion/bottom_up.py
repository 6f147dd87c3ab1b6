"""Conversion of the published checkpoints of the bottom-up detector to a `save_pretrained` folder.

Three layouts are recognised by the names of their tensors:

- "caffe": MILVLG's `bua-caffe-frcn-r101-k10-100.pth` and `-k36.pth`, whose numbers are Caffe's;
- "frcnn": `pytorch_model.bin` of `unc-nlp/frcnn-vg-finetuned` and the pickles `faster_rcnn_from_caffe*.pkl`;
- "vinvl": `vinvl_vg_x152c4.pth` of scene_graph_benchmark.

Every file keeps its parametrisation (one or two logits per anchor, background first or last), so that converting
renames tensors and changes no number. Anchors come from the file and go into the configuration. Sizes are read from the
tensors, thresholds from the original's configuration (`bottom_up_config.py`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hf_captioners.modeling.configuration_bottom_up import PRESETS, BottomUpConfig, caffe_anchors
from hf_captioners.modeling.image_processing_bottom_up import BottomUpImageProcessor
from hf_captioners.modeling.modeling_bottom_up import BottomUpForRegionFeatures

from .bottom_up_config import Settings, read_names, read_settings
from .command import Command
from .pickled_arrays import load_pickled_arrays
from .safe_load import load_checkpoint
from .source import Source
from .writing import ConversionError, ConversionReport, check_out_dir, raise_problems, write_folder

MODEL_TYPE = "bottom_up"
COUNTERS = ".num_batches_tracked"  # of batch normalisations, without influence on any number
ANCHORS = {
    "detectron2": "proposal_generator.anchor_generator.cell_anchors.0",
    "maskrcnn": "rpn.anchor_generator.cell_anchors.0",
}
SECOND_COPY = "attribute.feature_extractor."  # of vinvl's res5, shared with the boxes' one
CONVENTIONS = ("caffe", "frcnn", "vinvl")

# beginnings of original names -> ours; the first match counts
_CAFFE_NAMES = {
    "roi_heads.box_predictor.cls_embed.": "roi_heads.box_predictor.cls_embedding.",
    "roi_heads.box_predictor.attr_linear1.": "roi_heads.box_predictor.fc_attr.",
    "roi_heads.box_predictor.attr_linear2.": "roi_heads.box_predictor.attr_score.",
}
_VINVL_NAMES = {
    "backbone.body.stem.": "backbone.stem.",
    "backbone.body.layer1.": "backbone.res2.",
    "backbone.body.layer2.": "backbone.res3.",
    "backbone.body.layer3.": "backbone.res4.",
    "rpn.head.conv.": "proposal_generator.rpn_head.conv.",
    "rpn.head.cls_logits.": "proposal_generator.rpn_head.objectness_logits.",
    "rpn.head.bbox_pred.": "proposal_generator.rpn_head.anchor_deltas.",
    "roi_heads.box.feature_extractor.head.layer4.": "roi_heads.res5.",
    "roi_heads.box.predictor.": "roi_heads.box_predictor.",
    "attribute.predictor.": "roi_heads.box_predictor.",
}
_VINVL_LAYERS = {
    ".bn1.": ".conv1.norm.",
    ".bn2.": ".conv2.norm.",
    ".bn3.": ".conv3.norm.",
    ".downsample.0.": ".shortcut.",
    ".downsample.1.": ".shortcut.norm.",
}


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    original_config: str | Path | Mapping[str, Any] | None = None,
    objects: str | Path | None = None,
    attributes: str | Path | None = None,
    convention: str | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Convert a checkpoint into a folder for `from_pretrained`: detector and image processor.

    Args:
        checkpoint (`str` or `Path`):
            `.pth`, `.bin`, `.safetensors`, or `.pkl` with arrays.
        out_dir (`str` or `Path`), overwrite (`bool`, *optional*, defaults to `False`):
            As in [`hf_captioners.conversion.convert`], which names the result and the errors too.
        original_config (`str`, `Path` or `Mapping`, *optional*):
            The original's `config.yaml`, or the same as a dict. By default what was published: 10 to 100 regions,
            images of 600 to 1000 pixels.
        objects (`str` or `Path`, *optional*), attributes (`str` or `Path`, *optional*):
            Names of classes and attributes: `objects_vocab.txt`, `attributes_vocab.txt`, or for `vinvl` the one JSON
            with `label_to_idx` and `attribute_to_idx`, as both.
        convention (`str`, *optional*):
            `"caffe"` for a checkpoint of the frcnn layout whose regions are to be selected as by Caffe, on Caffe's
            anchors: the features that SATIC was trained on, out of the file that the Hub has. This follows from the
            mathematics, and could not be tried on the published weights. By default the file's own convention.
    """
    check_out_dir(out_dir, MODEL_TYPE, overwrite)
    path = Path(checkpoint)
    is_torch = path.suffix != ".pkl" or (path.is_file() and zipfile.is_zipfile(path))
    tensors = load_checkpoint(path) if is_torch else load_pickled_arrays(path)
    layout = find_layout(path, tensors)
    anchors = tensors.pop(ANCHORS["maskrcnn" if layout == "vinvl" else "detectron2"], None)
    dropped = [name for name in tensors if name.endswith(COUNTERS) or name.startswith(SECOND_COPY)]
    source = Source(path, tensors, dropped)
    settings = read_settings(original_config, layout)
    config = build_config(source, layout, anchors, settings, convention, objects, attributes)
    model = fill_model(source, layout, config)
    processor = BottomUpImageProcessor.from_preset(convention or layout, **settings.processor)
    folder = write_folder(out_dir, MODEL_TYPE, overwrite, model, processor, source=checkpoint)
    anchor_names = [] if anchors is None else [ANCHORS["maskrcnn" if layout == "vinvl" else "detectron2"]]
    return ConversionReport(
        out_dir=folder,
        used=[*source.used, *anchor_names],
        dropped=source.dropped,
        config=config,
        assumed={**settings.assumed, **({"anchors": "the published ones"} if anchors is None else {})},
    )


COMMAND = Command(
    MODEL_TYPE,
    convert,
    checkpoint="the checkpoint: .pth, .bin, .safetensors, or .pkl with arrays; its layout is told by its tensors",
    example="pytorch_model.bin --original-config config.yaml --objects objects_vocab.txt --out bottom-up",
    options={
        "original_config": {
            "type": Path,
            "metavar": "FILE.yaml",
            "help": "the original's config.yaml (default: 10 to 100 regions, images of 600 to 1000 pixels)",
        },
        "objects": {
            "type": Path,
            "metavar": "FILE",
            "help": "names of the classes, one a line, or VinVL's JSON",
        },
        "attributes": {"type": Path, "metavar": "FILE", "help": "names of the attributes, as --objects"},
        "convention": {
            "choices": ("caffe",),
            "help": "find the regions in the layout of the Hub as Caffe does: those that SATIC was trained on",
        },
    },
)


def find_layout(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Tell a checkpoint's layout from the names and shapes of its tensors.

    Args:
        path (`Path`): the checkpoint, for messages.
        tensors (`Mapping[str, Tensor]`): its tensors.

    Returns:
        `str`: `"caffe"`, `"frcnn"` or `"vinvl"`.

    Raises:
        ConversionError: it is none of them.
    """
    if any(name.startswith("roi_heads.box.feature_extractor.") for name in tensors):
        return "vinvl"
    head = "proposal_generator.rpn_head"
    logits, deltas = tensors.get(f"{head}.objectness_logits.weight"), tensors.get(f"{head}.anchor_deltas.weight")
    if logits is None or deltas is None or not logits.dim() or not deltas.dim():
        raise ConversionError(
            f"{path}: not a bottom-up detector: there is neither {head}.objectness_logits, as in the files of MILVLG, "
            "LXMERT and airsplay, nor roi_heads.box.feature_extractor, as in VinVL's"
        )
    return "caffe" if 2 * logits.shape[0] == deltas.shape[0] else "frcnn"


def build_config(
    source: Source,
    layout: str,
    anchors: Tensor | None,
    settings: Settings,
    convention: str | None = None,
    objects: str | Path | None = None,
    attributes: str | Path | None = None,
) -> BottomUpConfig:
    """Make the configuration from the shapes of the tensors and the original's settings.

    Args:
        source ([`Source`]): the tensors.
        layout (`str`): as [`find_layout`] tells it.
        anchors (`torch.Tensor` of shape `(A, 4)`, *optional*): those of the file.
        settings ([`Settings`]): the original's.
        convention, objects, attributes: as in [`convert`].

    Returns:
        [`BottomUpConfig`]

    Raises:
        ConversionError: sizes, settings and names contradict each other.
    """
    sizes = read_sizes(source, layout)
    problems = [
        f"{name}: the configuration says {settings.sizes[name]!r}, but the tensors say {value!r}"
        for name, value in sizes.items()
        if name in settings.sizes and settings.sizes[name] != value
    ]
    raise_problems(str(source.path), problems)
    fields = {**PRESETS[layout], **settings.fields, **sizes}
    if anchors is not None:
        if anchors.dim() != 2 or anchors.shape[1] != 4 or not torch.isfinite(anchors.float()).all():
            raise ConversionError(
                f"{source.path}: its anchors, of shape {list(anchors.shape)}, are not boxes of four finite numbers"
            )
        fields["anchors"] = anchors.float().tolist()
    if convention is not None and convention != layout:
        fields = _as_caffe(fields, layout, convention, str(source.path))
    if objects is not None:
        fields["id2label"] = dict(enumerate(read_names(objects, "label_to_idx", sizes["num_labels"])))
        del fields["num_labels"]
    if attributes is not None:
        fields["id2attribute"] = dict(enumerate(read_names(attributes, "attribute_to_idx", sizes["num_attributes"])))
    try:
        return BottomUpConfig(**fields)
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"{source.path}: {' '.join(str(error).split())}") from error


def _as_caffe(fields: dict[str, Any], layout: str, convention: str, path: str) -> dict[str, Any]:
    """The fields of an frcnn checkpoint that makes boxes and regions as Caffe does."""
    if (layout, convention) != ("frcnn", "caffe"):
        raise ConversionError(
            f"{path}: is of the {layout} layout and cannot follow convention={convention!r}; only a checkpoint of the "
            "frcnn layout can follow another one, 'caffe'"
        )
    parametrisation = ("objectness", "background", "bbox_weights")  # how the weights are written down
    conventional = {name for name in PRESETS["frcnn"] if name not in parametrisation}
    fields_of_caffe = {name: value for name, value in fields.items() if name not in conventional}
    if "anchors" in fields:
        fields_of_caffe["anchors"] = [_caffe_anchor(anchor, path) for anchor in fields["anchors"]]
    return fields_of_caffe


def _caffe_anchor(anchor: list[float], path: str) -> list[float]:
    """Caffe's anchor of the same size and shape."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    ratio = min((0.5, 1.0, 2.0), key=lambda value: abs(value - height / width))
    size = round((width * height) ** 0.5)
    if abs(height / width / ratio - 1) > 0.1:
        raise ConversionError(f"{path}: anchor {anchor} is of another shape than 1:2, 1:1 and 2:1")
    return caffe_anchors([size], [ratio])[0]


def read_sizes(source: Source, layout: str) -> dict[str, Any]:
    """Read the sizes that tensors show, under the names of the configuration.

    Args:
        source ([`Source`]): the tensors.
        layout (`str`): as [`find_layout`] tells it.

    Raises:
        ConversionError: a tensor that shows a size is missing.
    """
    original_names = {rename(name, layout): name for name in source.tensors}
    predictor, head = "roi_heads.box_predictor", "proposal_generator.rpn_head"
    places = {
        "stem_channels": ("backbone.stem.conv1.weight", 0),
        "res2_channels": ("backbone.res2.0.conv3.weight", 0),
        "bottleneck_width": ("backbone.res2.0.conv1.weight", 0),
        "group_width": ("backbone.res2.0.conv2.weight", 1),
        "rpn_channels": (f"{head}.conv.weight", 0),
        "classes": (f"{predictor}.cls_score.weight", 0),
    }
    if f"{predictor}.attr_score.weight" in original_names:
        places |= {
            "embedding_size": (f"{predictor}.cls_embedding.weight", 1),
            "attribute_hidden_size": (f"{predictor}.attr_score.weight", 1),
            "attributes": (f"{predictor}.attr_score.weight", 0),
        }
    places = {size: (original_names.get(name, name), axis) for size, (name, axis) in places.items()}
    source.check_places(places.values(), "a bottom-up detector")
    sizes: dict[str, Any] = {name: source.shape(tensor)[axis] for name, (tensor, axis) in places.items()}
    renamed = Source(source.path, {name: source.tensors[tensor] for name, tensor in original_names.items()})
    stages = ("backbone.res2.", "backbone.res3.", "backbone.res4.", "roi_heads.res5.")
    return {
        **{name: value for name, value in sizes.items() if name not in ("group_width", "classes", "attributes")},
        "depths": [renamed.count(stage) for stage in stages],
        "num_groups": sizes["bottleneck_width"] // sizes["group_width"],
        "num_labels": sizes["classes"] - 1,
        "num_attributes": sizes.get("attributes", 1) - 1,
    }


def rename(name: str, layout: str) -> str:
    """Translate an original tensor's name into the model's.

    Args:
        name (`str`): the original's name.
        layout (`str`): as [`find_layout`] tells it.
    """
    names = {"caffe": _CAFFE_NAMES, "vinvl": _VINVL_NAMES}.get(layout, {})
    start = next((start for start in names if name.startswith(start)), "")
    model_name = names.get(start, "") + name.removeprefix(start)
    if layout == "vinvl":
        for layer, part in _VINVL_LAYERS.items():
            model_name = model_name.replace(layer, part)
    return model_name


def fill_model(source: Source, layout: str, config: BottomUpConfig) -> BottomUpForRegionFeatures:
    """Make the model and give it the original's weights.

    Names and shapes of all tensors are compared with a model without storage before the first weight is read.

    Args:
        source ([`Source`]): the tensors.
        layout (`str`): as [`find_layout`] tells it.
        config ([`BottomUpConfig`]): the sizes.

    Returns:
        [`BottomUpForRegionFeatures`]: in float32.

    Raises:
        ConversionError: tensors are missing, extra, misshapen or not of floating point.
    """
    with torch.device("meta"):
        model = BottomUpForRegionFeatures(config)
    original_names = {rename(name, layout): name for name in source.used}
    targets = {original_names.get(name, name): {name: value.shape} for name, value in model.state_dict().items()}
    source.check(targets)
    model.load_state_dict(source.state_dict(targets), assign=True)
    return model
