"""Options of several verbs: the sentences that SCD-Net sees beside a picture."""

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
