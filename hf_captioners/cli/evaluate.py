"""`hf-captioners evaluate`: score captions, of a file or written now by a captioner, against references.

stdout has a table, or with `--json` one JSON object: `corpus`, `signature`, `data` (the fingerprint of what was scored)
and, if asked for, `per_image`. Progress and messages go to stderr. Exit status 0, or 1 if some pictures could not be
captioned, 2 if nothing could be scored, 3 if a disk is full.
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .captioners import add_family_options, add_speed_options, load_captioner_of, make_faster
from .card_results import check_card, update_card
from .common import MODEL_HELP, UsageError, add_model_options, check_file, mistakes, refuse_unread
from .image_options import add_detector_option, add_retrieval_options, use_detector, use_retrieval

if TYPE_CHECKING:
    from ..data.captions.predictions import References
    from ..data.fingerprint import DataFingerprint
    from ..metrics import CaptionMetrics, Evaluation

NUM_TIMED = 9  # pictures of --speed
_EPILOG = """\
metrics:
{metrics}

examples:
  hf-captioners evaluate --predictions captions.json --references captions_val2014.json --subset
  hf-captioners evaluate --model satic --dataset dataset_coco.json --image-root coco --split test --report report"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score captions against references",
        description="Score captions with the COCO metrics, equal to the reference tools and without Java.",
        epilog=_EPILOG.format(metrics=_describe_metrics()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_inputs(parser)
    _add_scores(parser)
    running = parser.add_argument_group("how --model runs")
    add_model_options(running)
    add_family_options(running)
    add_speed_options(running)
    add_detector_option(running)
    add_retrieval_options(running)
    parser.set_defaults(run=run)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    from_file = parser.add_argument_group("captions of a file")
    from_file.add_argument(
        "--predictions", metavar="FILE", help="COCO results, JSONL of `caption`, or a JSON object by id"
    )
    from_file.add_argument("--references", metavar="FILE", help="in any layout that training reads, or JSON by id")
    from_file.add_argument(
        "--subset", action="store_true", help="score the images that have both, leave out the others"
    )
    written = parser.add_argument_group("captions written now")
    written.add_argument("--model", nargs="+", metavar="MODEL", help=MODEL_HELP)
    written.add_argument("--dataset", metavar="PATH", help="references as above, or a folder as training reads it")
    written.add_argument(
        "--features", nargs="+", metavar="DIR", help="their cached features, to caption instead of the pictures"
    )
    written.add_argument("--save-predictions", metavar="FILE", type=Path, help="also write them, as COCO results")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="of Karpathy JSON or a folder: such as test, val+test or all (default: all; of --dataset its test "
        "split, or else its validation split)",
    )
    parser.add_argument("--image-root", metavar="DIR", type=Path, help="folder of the pictures")


def _describe_metrics() -> str:
    """A line per metric of the table: what it measures and needs."""
    from ..metric_table import METRICS

    lines = []
    for name, metric in METRICS.items():
        needs = [] if metric.needs is None else [f"needs {metric.needs}"]
        lines.append(f"  {name:<10} {'; '.join([metric.summary, *needs])}")
    return "\n".join(lines)


def _scorer_option(name: str) -> str:
    """The option that names the model of a metric: `--clip` of `clip_s`."""
    return f"--{name.removesuffix('_s')}"


def _add_scores(parser: argparse.ArgumentParser) -> None:
    from ..metric_table import DEFAULT_METRICS, METRICS

    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        default=DEFAULT_METRICS,
        help=f"default: {' '.join(DEFAULT_METRICS)}",
        metavar="NAME",
    )
    parser.add_argument(
        "--document-frequencies", metavar="FILE", help="of CIDEr: references of another corpus, or a saved file"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        default="ptb",
        help="what cuts captions into words: ptb (English, the default), unicode (any language; single characters in "
        "scripts without spaces), or a function as module:function, such as jieba:lcut",
    )
    parser.add_argument(
        "--in-sequence",
        action="store_true",
        help="read abbreviations at the end of captions in the light of the next caption, as the reference tools do",
    )
    for name, metric in METRICS.items():
        if metric.scorer is not None:
            help_text = f"folder or Hub name for {name}, which needs {metric.needs}"
            parser.add_argument(_scorer_option(name), metavar="MODEL", dest=f"{name}_scorer", help=help_text)
    parser.add_argument("--spice-java", metavar="JAVA", help="a Java 8 to 14 for spice, by name or path")
    parser.add_argument("--spice-jar", metavar="FILE", help="spice-1.0.jar with its libraries beside it")
    parser.add_argument("--spice-cache", metavar="DIR", help="folder that keeps results of spice for later runs")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    parser.add_argument("--per-image", action="store_true", help="with --json: the scores of every image as well")
    parser.add_argument("--report", metavar="DIR", type=Path, help="also write an HTML report with charts and pictures")
    parser.add_argument("--update-card", metavar="RUN", type=Path, help="also add the scores to the card in the folder "
                        "of the captioner")  # fmt: skip
    parser.add_argument("--speed", action="store_true", help="with --update-card and --model: also the time of "
                        "captions of single pictures, as a ratio to BLIP-base's in the same run")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Score the captions; returns the exit status."""
    # RuntimeError: of SPICE's Java; stdout is for scores, whatever a library has to say
    with mistakes(ValueError, OSError, ImportError, RuntimeError), contextlib.redirect_stdout(sys.stderr):
        if args.report is not None:
            from ..reports.score_report import check_report_folder

            check_report_folder(args.report)
        _check_sources(args)
        if args.update_card is not None:
            check_card(args.update_card, args.model)
        suite = _suite(args)
        captions = _read_captions(args) if args.predictions is not None else _write_captions(args, suite)
        written = {} if args.save_predictions is None else {"captions": args.save_predictions}
        evaluation = _evaluate(suite, captions)
        if captions.settings:
            evaluation = evaluation.of_captions(captions.settings)
        data = _fingerprint(captions)
        if args.report is not None:
            written["report"] = _report(args, captions, evaluation)
        if args.update_card is not None:
            source = args.references if args.dataset is None else args.dataset
            update_card(args.update_card, source, captions.split, evaluation, data, captions.speed)
            written["the card, with the scores"] = args.update_card / "README.md"
    print(_as_json(evaluation, data, args.per_image) if args.json else _as_table(evaluation))
    for what, path in written.items():
        print(f"hf-captioners evaluate: {what}: {path}", file=sys.stderr)
    return 1 if captions.failed else 0


@dataclass
class _Captions:
    """Captions to score: ids, captions, references and, where they are known, the pictures."""

    image_ids: list[Any]
    predictions: list[str]
    references: list[list[str]]
    images: Mapping[Any, Any]  # files, or what `open_image` takes
    file_names: Mapping[Any, str]  # as the references have them, where they do
    split: str | None = None
    failed: int = 0
    speed: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # that they were decoded with, where that is known


def _check_sources(args: argparse.Namespace) -> None:
    of_file, of_model = args.predictions is not None, args.model is not None
    if of_file == of_model:
        raise UsageError("give --predictions with --references, or --model with --dataset")
    if of_file and (args.references is None or args.dataset is not None):
        raise UsageError("--predictions goes with --references")
    if of_file and (args.sentences or args.retrieval):
        raise UsageError("--sentences and --retrieval are for captions that --model writes")
    if of_model and (args.dataset is None or args.references is not None):
        raise UsageError("--model goes with --dataset, which holds the references and names the pictures")
    if args.update_card is not None:
        altered = {"fast": args.fast == "int8", "backbone_dtype": args.backbone_dtype is not None}
        refuse_unread("the card has scores of the captioner as it is", **altered)
    refuse_unread(
        "the time of captions goes to the card; give --update-card", speed=args.speed and not args.update_card
    )
    if args.save_predictions is not None:
        check_file("save-predictions", args.save_predictions)
    _refuse_unread(args)


def _refuse_unread(args: argparse.Namespace) -> None:
    """Refuse options that would be without effect."""
    refuse_unread("the table has no scores of single images, --json has", per_image=args.per_image and not args.json)
    if "spice" not in args.metrics:
        spice = {name: getattr(args, name) is not None for name in ("spice_java", "spice_jar", "spice_cache")}
        refuse_unread("--metrics has no spice", **spice)
    if args.model is not None:
        refuse_unread("all images of --dataset are captioned", subset=args.subset)
        return
    names = ("features", "save_predictions", "num_beams", "max_new_tokens", "detector", "fast", "backbone_dtype")
    given = {name: getattr(args, name) is not None for name in names}
    refuse_unread("the captions are those of --predictions", **given, dtype=args.dtype != "auto", speed=args.speed)


def _read_captions(args: argparse.Namespace) -> _Captions:
    from ..data.captions.predictions import image_paths, match, read_predictions, read_references

    predictions, references = read_predictions(args.predictions), read_references(args.references, args.split)
    ids, captions, references_of_ids = match(predictions, references, args.subset)
    left_out = len(predictions.captions) - len(ids), len(references.captions) - len(ids)
    if any(left_out):
        print(f"--subset: {len(ids)} images scored; left out: {left_out[0]} predictions without references, "
              f"{left_out[1]} images without prediction", file=sys.stderr)  # fmt: skip
    images = _images_of_tars(args.references) if args.image_root is None else None
    if images is None:
        images = image_paths(predictions, references, ids, args.image_root)
    return _Captions(ids, captions, references_of_ids, images, references.file_names, args.split)


def _write_captions(args: argparse.Namespace, suite: "CaptionMetrics") -> _Captions:
    """Caption the images of the data set; an image that cannot be captioned is named and left out."""
    from tqdm import tqdm

    from ..data.captions.predictions import read_references
    from ..data.printable import printable
    from ..data.progress import progress
    from ..inference.captioning import caption_rows
    from ..inference.decoding_settings import decoding_settings

    source = Path(args.dataset)
    split = args.split or _evaluated_split(args.dataset)
    references = read_references(source, split)
    rows, images = _rows_to_caption(args, source, references)
    _check_images(suite, references.captions, images)
    rows = _with_sentences(rows, args, references)
    timed = list(itertools.islice(rows, NUM_TIMED if args.speed else 0))
    number = len(references.captions)
    model, processor = load_captioner_of(args)
    use_detector(model, processor, args.detector, args.trust_remote_code)
    use_retrieval(model, processor, args.retrieval, args.trust_remote_code)
    make_faster(args, model)
    options = {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}
    faster = {name: vars(args)[name] for name in ("fast", "backbone_dtype") if vars(args)[name] is not None}
    records = caption_rows(model, processor, itertools.chain(timed, rows), args.batch_size, **options)
    captions: dict[Any, str] = {}
    for record in progress(records, total=number, unit="picture"):
        if "error" in record:
            tqdm.write(f"hf-captioners evaluate: left out: {printable(record['error'])}", file=sys.stderr)
        else:
            captions[record["image_id"]] = record["caption"]
    if not captions:
        raise UsageError("none of the pictures could be captioned")
    if args.save_predictions is not None:
        _save_results(args.save_predictions, captions)
    speed = None
    if args.speed:
        from ..inference.speed import measure_speed

        speed = str(measure_speed(model, processor, [row for row in timed if row["image_id"] in captions]))
    return _Captions(
        list(captions),
        list(captions.values()),
        [references.captions[image_id] for image_id in captions],
        images,
        references.file_names,
        split,
        failed=number - len(captions),
        settings={**decoding_settings(model, **options), **faster},
        speed=speed,
    )


def _evaluated_split(dataset: str) -> str | None:
    """The split that nobody trained on, test or else validation, said in a line; `None` where there are no splits."""
    from ..data.captions.predictions import read_splits
    from ..data.printable import printable

    splits = read_splits(dataset)
    if len(splits) < 2:
        return None
    chosen = next((name for name in ("test", "validation", "val") if name in splits), "all")
    print(
        f"hf-captioners evaluate: {printable(dataset)} has {', '.join(splits)}; --split {chosen} is scored",
        file=sys.stderr,
    )
    return chosen


def _rows_to_caption(
    args: argparse.Namespace, source: Path, references: "References"
) -> tuple[Iterator[dict[str, Any]], Mapping[Any, Any]]:
    """Rows with a picture or cached features each, and the pictures as far as they are known."""
    from ..data.captions.folder_files import is_folder
    from ..data.features.joined_stores import open_features

    ids = list(references.captions)
    if args.features is None:
        images = _image_paths(references, args.image_root, source)
        nameless = [image_id for image_id in ids if image_id not in images]
        if nameless:
            raise UsageError(f"--dataset {source}: image {nameless[0]} has no file name to caption it by")
        return ({"image_id": image_id, "image": images[image_id]} for image_id in ids), images
    store = open_features(args.features)
    missing = [image_id for image_id in ids if image_id not in store]
    if missing:
        raise UsageError(f"--features {store.folder}: no features of {len(missing)} images, as image {missing[0]}")
    knows_where = args.image_root or is_folder(source)
    images = _image_paths(references, args.image_root, source) if knows_where else {}
    return ({"image_id": image_id, "image_features": store[image_id]} for image_id in ids), images


def _images_of_tars(source: Any) -> Mapping[Any, Any] | None:
    """The pictures of tars in WebDataset's layout; `None` of another source."""
    from ..data.captions.predictions import are_tars

    if not are_tars(source):
        return None
    from ..data.captions.load import load_captions
    from ..data.row_images import RowImages

    return RowImages(load_captions(source))


def _with_sentences(
    rows: Iterator[dict[str, Any]], args: argparse.Namespace, references: "References"
) -> Iterator[dict[str, Any]]:
    """The rows with the columns of `--sentences`."""
    from ..data.captions.attached import parse_sentences, sentences_of

    files = parse_sentences(args.sentences)
    columns = [
        [(name, sentences) for sentences in sentences_of(references.captions, file)] for name, file in files.items()
    ]
    if not columns:
        return rows
    return ({**row, **dict(cells)} for row, *cells in zip(rows, *columns, strict=True))


def _image_paths(references: "References", image_root: Path | None, source: Path) -> Mapping[Any, Any]:
    """The pictures of references: tars and folders have their own, a file takes an image root or has them beside it."""
    from ..data.captions.folder_files import is_folder
    from ..data.captions.predictions import Predictions, image_paths

    if image_root is None and (images := _images_of_tars(source)) is not None:
        return images
    if is_folder(source) and image_root is None:
        return {image_id: Path(name) for image_id, name in references.file_names.items()}
    return image_paths(Predictions("", {}), references, references.captions, image_root or source.parent)


def _save_results(path: Path, captions: dict[Any, str]) -> None:
    from ..data.files import write_whole

    rows = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(rows, ensure_ascii=False), "utf-8"))


def _suite(args: argparse.Namespace) -> "CaptionMetrics":
    """The metrics, with what they need: known to be there before a picture is captioned."""
    from ..metric_table import METRICS
    from ..metrics import CaptionMetrics

    models = {name: vars(args)[f"{name}_scorer"] for name, metric in METRICS.items() if metric.scorer is not None}
    metrics = list(dict.fromkeys([*args.metrics, *(name for name, model in models.items() if model is not None)]))
    options = {name: {"scorer": _scorer(name, models[name], args)} for name in metrics if name in models}
    if "spice" in metrics:
        spice = {"java": args.spice_java, "jar": args.spice_jar, "cache_dir": args.spice_cache}
        options["spice"] = {name: value for name, value in spice.items() if value is not None}
    frequencies = _frequencies(args.document_frequencies, args.tokenizer)
    return CaptionMetrics(metrics, frequencies, args.in_sequence, options, args.tokenizer)


def _evaluate(suite: "CaptionMetrics", captions: _Captions) -> "Evaluation":
    images = None
    if _check_images(suite, captions.image_ids, captions.images):
        images = [captions.images[image_id] for image_id in captions.image_ids]
    return suite(captions.predictions, captions.references, captions.image_ids, images)


def _check_images(suite: "CaptionMetrics", image_ids: Iterable[Any], images: Mapping[Any, Any]) -> bool:
    """Tell whether the metrics read pictures, which then must be named."""
    from ..metric_table import METRICS

    on_images = [name for name in suite.metrics if "images" in METRICS[name].reads]
    missing = [image_id for image_id in image_ids if image_id not in images]
    if on_images and missing:
        raise UsageError(f"{' and '.join(on_images)} read pictures, and that of image {missing[0]} is not named; "
                         "give --image-root and references with file names")  # fmt: skip
    return bool(on_images)


def _scorer(name: str, model: str | None, args: argparse.Namespace) -> Any:
    from ..inference.device import choose_device
    from ..metric_table import METRICS

    if model is None:
        raise UsageError(f"--metrics {name} needs {_scorer_option(name)} MODEL")
    return METRICS[name].load_scorer()(
        model, device=choose_device(args.device), show_progress=True, trust_remote_code=args.trust_remote_code
    )


def _frequencies(path: str | None, tokenizer: str) -> Any:
    """A saved file, or the references of a corpus."""
    if path is None:
        return None
    from ..data.captions.predictions import read_references
    from ..metrics import DocumentFrequencies

    if Path(path).suffix == ".safetensors":
        frequencies = DocumentFrequencies.load(path)
        if frequencies.token_ids:
            raise UsageError(
                f"--document-frequencies {path}: of token ids, which captions do not have; give those of words, as of "
                "coco-train-words.p"
            )
        try:
            frequencies.check_tokenizer(tokenizer)
        except ValueError as error:
            raise UsageError(f"--document-frequencies {path}: {error} (--tokenizer)") from error
        return frequencies
    return DocumentFrequencies.from_references(list(read_references(path).captions.values()), tokenizer=tokenizer)


def _report(args: argparse.Namespace, captions: _Captions, evaluation: "Evaluation") -> Path:
    from ..reports.score_report import write_report

    return write_report(
        args.report,
        evaluation,
        captions.image_ids,
        captions.predictions,
        captions.references,
        signature=evaluation.signature,
        images=captions.images,
    )


def _fingerprint(captions: _Captions) -> "DataFingerprint":
    """The fingerprint of the pictures and references that were scored; COCO scaled down is said."""
    from ..data.fingerprint import SCALED_DOWN, fingerprint

    paths = captions.images
    names = [captions.file_names.get(image_id, str(image_id)) for image_id in captions.image_ids]
    known = all(image_id in paths for image_id in captions.image_ids)
    images = [paths[image_id] for image_id in captions.image_ids] if known else None
    mark = fingerprint(names, captions.references, images)
    if mark.scaled_down:
        print(f"hf-captioners evaluate: scored on {SCALED_DOWN}", file=sys.stderr)
    return mark


def _as_json(evaluation: "Evaluation", data: "DataFingerprint", per_image: bool) -> str:
    from ..data.printable import printable_json

    content = {"corpus": evaluation.corpus, "signature": evaluation.signature, "data": asdict(data)}
    if per_image:
        names = evaluation.image_ids
        content["per_image"] = {
            metric: dict(zip(map(str, names), values.tolist(), strict=True))
            for metric, values in evaluation.per_image.items()
        }
    return printable_json(content)


def _as_table(evaluation: "Evaluation") -> str:
    from ..data.printable import printable

    rows = evaluation.table()
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value:>8}" for name, value in rows]
    return "\n".join([*lines, "", *map(printable, evaluation.signature_text.splitlines())])
