"""Options of several verbs: what some captioners need beside a picture, a detector of its regions or a sentence."""

import argparse
from typing import Any


def add_retrieval_options(group: argparse._ActionsContainer) -> None:
    """`--retrieval` and `--sentences`: the sentences that SCD-Net sees beside a picture."""
    group.add_argument(
        "--retrieval",
        metavar="DIR",
        help="caption retriever of SCD-Net (that in the captioner's folder), or none: see an empty sentence",
    )
    group.add_argument(
        "--sentences",
        nargs="+",
        default=[],
        metavar="COLUMN=FILE",
        help="sentences of a data set's pictures, such as retrieved=FILE of `hf-captioners retrieval lookup`",
    )


def use_retrieval(model: Any, processor: Any, retrieval: str | None, trust_remote_code: bool) -> None:
    """Let a captioner see sentences of a retriever, or none.

    Args:
        model (`PreTrainedModel`), processor (`ProcessorMixin`): the captioner.
        retrieval (`str`, *optional*): of `--retrieval`: the folder of a retriever, or `"none"`.
        trust_remote_code (`bool`): whether code that comes with the retriever's dual encoder may run.

    Raises:
        ValueError: a captioner that sees no such sentences, or a folder that is no retriever.
    """
    if retrieval is None:
        return
    from ..modeling.captioner_retriever import CaptionRetriever
    from ..modeling.processing_scdnet import ScdnetProcessor

    if not isinstance(processor, ScdnetProcessor):
        raise ValueError(f"--retrieval is for captioners that see retrieved sentences, not a {type(model).__name__}")
    if retrieval == "none":
        model.config.retrieval, processor.retriever = "none", None
    else:
        processor.retriever = CaptionRetriever.from_pretrained(retrieval, trust_remote_code=trust_remote_code)


def add_detector_option(group: argparse._ActionsContainer) -> None:
    """`--detector`: what finds the regions that a captioner reads."""
    group.add_argument(
        "--detector", metavar="DIR", help="detector of the regions that the captioner reads (that of its configuration)"
    )


def use_detector(model: Any, processor: Any, detector: str | None, trust_remote_code: bool) -> None:
    """Let a captioner of regions take pictures.

    Args:
        model (`PreTrainedModel`), processor (`ProcessorMixin`): the captioner.
        detector (`str`, *optional*): of `--detector`: a folder or Hub name.
        trust_remote_code (`bool`): whether code that comes with the detector may run.

    Raises:
        ValueError: a captioner that sees pictures itself; no such detector, or one of features of another width.
    """
    from ..modeling import captioner_detector
    from ..modeling.processing_captioner import CaptionerProcessor

    if isinstance(processor, CaptionerProcessor):
        captioner_detector.use_detector(model, processor, detector, trust_remote_code)
    elif detector is not None:
        raise ValueError(f"--detector is for captioners that read regions, not a {type(model).__name__}")
