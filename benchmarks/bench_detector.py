"""Time and memory of the bottom-up detector at its released size, against the plain steps in the same run.

    OMP_NUM_THREADS=1 python benchmarks/bench_detector.py

Random weights, one image of noise. "plain" is what the specification says, step by step: channels first, convolution
then normalisation, a loop over regions and bins, a suppression in each of the 1,600 classes. Times are CPU seconds of
this process, so that other work on the machine counts little, or milliseconds of the device with `--device cuda`.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_captioners import BottomUpConfig, BottomUpForRegionFeatures
from hf_captioners.modeling.modeling_bottom_up import frames_of
from hf_captioners.modeling.ops_bottom_up import nms
from hf_captioners.modeling.selection_bottom_up import Selection, select_regions

PARTS = ("backbone", "proposals", "pooling", "res5", "selection")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(600, 1000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--proposals", type=int, default=300, metavar="N", help="max_proposals (%(default)s)")
    parser.add_argument("--preset", default="caffe", help="caffe, frcnn or vinvl (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--repeat", type=int, default=2, metavar="N", help="runs, of which the fastest counts")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain steps out")
    return parser.parse_args()


class Clock:
    """Seconds by part; the fastest of its runs each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, function: Callable[[], Any]) -> Any:
        start = self._now()
        result = function()
        took = self._now() - start
        self.seconds[part] = min(took, self.seconds.get(part, took))
        return result

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


def run_parts(model: BottomUpForRegionFeatures, pixels: Tensor, clock: Clock) -> tuple[Tensor, Selection]:
    """The model part by part; the features of the proposals, and which of them become regions."""
    heads, config = model.roi_heads, model.config
    frame = frames_of(pixels, None, None, None)[0]
    features = clock("backbone", lambda: model.backbone(pixels))
    boxes = clock("proposals", lambda: model.proposal_generator(features, frame)).boxes
    clock("pooling", lambda: [crops.shape for crops in heads.pool(features, boxes)])
    pooled = clock("pooling and res5", lambda: heads(features, boxes))
    probs = heads.box_predictor.without_background(heads.box_predictor(pooled)[0].softmax(1))
    chosen = clock("selection", lambda: select_regions(probs, boxes, boxes, config, *model.limits()))
    return pooled, chosen


def plain_pool(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    """RoIPool of `features` `(C, h, w)` by its definition, bin by bin."""
    height, width = features.shape[1:]
    corners = torch.floor(boxes / 16 + 0.5).long().tolist()  # boxes are not negative here
    pooled = features.new_zeros(len(boxes), len(features), size, size)
    for region, (x1, y1, x2, y2) in enumerate(corners):
        rows, columns = bins(y1, y2, size, height), bins(x1, x2, size, width)
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                if bottom > top and right > left:
                    pooled[region, :, i, j] = features[:, top:bottom, left:right].amax((1, 2))
    return pooled


def bins(first: int, last: int, count: int, limit: int) -> list[tuple[int, int]]:
    """First cell and the cell behind the last of each bin."""
    step = torch.tensor(float(max(last - first + 1, 1))) / count
    index = torch.arange(count)
    starts = (torch.floor(index * step).long() + first).clamp(0, limit)
    ends = (torch.ceil((index + 1) * step).long() + first).clamp(0, limit)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def plain_confidences(probs: Tensor, boxes: Tensor, config: BottomUpConfig) -> Tensor:
    """Each box's best score in a class that it survives, class by class."""
    best = torch.zeros(len(probs))
    for scores in probs.t():
        kept = nms(boxes, scores, config.nms_thresholds[0], offset=config.nms_offset, inclusive=config.nms_inclusive)
        best[kept] = torch.maximum(best[kept], scores[kept])
    return best


def run_plain(model: BottomUpForRegionFeatures, pixels: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
    """Every step as the specification says it; the features and confidences of the proposals."""
    config, heads, backbone = model.config, model.roi_heads, model.backbone

    def run_backbone() -> Tensor:
        x = pixels
        for part in (backbone.stem, backbone.res2, backbone.res3, backbone.res4):
            x = part.prepare(False, torch.float32)(x)
        return x

    def run_res5() -> Tensor:
        layer = heads.res5.prepare(False, torch.float32)
        return torch.cat([layer(part).mean((2, 3)) for part in crops.split(config.regions_per_chunk)])

    features, frame = clock("backbone", run_backbone), frames_of(pixels, None, None, None)[0]
    boxes = clock("proposals", lambda: model.proposal_generator(features, frame)).boxes
    crops = clock("pooling", lambda: plain_pool(features[0], boxes, config.pooler_size))
    pooled = clock("res5", run_res5)
    probs = heads.box_predictor.without_background(heads.box_predictor(pooled)[0].softmax(1))
    return pooled, clock("selection", lambda: plain_confidences(probs, boxes, config))


def finish(clock: Clock) -> dict[str, float]:
    """Seconds by part, and of all."""
    seconds = dict(clock.seconds)
    if "pooling and res5" in seconds:
        seconds["res5"] = seconds.pop("pooling and res5") - seconds["pooling"]
    return {**seconds, "all": sum(seconds.values())}


def main() -> None:
    """Run all ways and print the table."""
    args = parse()
    device = torch.device(args.device)
    torch.manual_seed(0)
    config = BottomUpConfig.from_preset(args.preset, max_proposals=args.proposals)
    model = BottomUpForRegionFeatures(config).eval().to(device)
    pixels = 50 * torch.randn(1, 3, *args.size, device=device)
    ways: dict[str, dict[str, Any]] = {
        "float32": {},
        "float32, norms folded": {"fold_norms": True},
        "bfloat16 res5": {"res5_dtype": "bfloat16"},
    }
    table: dict[str, dict[str, float]] = {}
    print(
        f"{args.preset}, {args.size[0]} x {args.size[1]}, {args.proposals} proposals, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    exact: Tensor | None = None
    with torch.no_grad():
        for name, changes in ways.items():
            for field in ("fold_norms", "res5_dtype"):
                setattr(config, field, changes.get(field, getattr(BottomUpConfig(), field)))
            clock = Clock(device)
            for _ in range(args.repeat):
                pooled, chosen = run_parts(model, pixels, clock)
            table[name] = finish(clock)
            exact = pooled if exact is None else exact
            print(
                f"{name}: {len(chosen.rows)} regions, features differ by {difference(pooled, exact)}, {memory(device)}"
            )
        if not args.no_plain and device.type == "cpu" and args.preset == "caffe":
            config.fold_norms, config.res5_dtype = False, None
            clock = Clock(device)
            pooled, confidences = run_plain(model, pixels, clock)
            table = {"plain": finish(clock), **table}
            count = int((confidences >= config.score_threshold).sum())
            print(f"plain: {count} regions of the threshold, features differ by {difference(pooled, exact)}")
    show(table, 1000.0 if device.type == "cuda" else 1.0)


def difference(features: Tensor, others: Tensor | None) -> str:
    """The relative distance of all features."""
    assert others is not None
    return f"{float((features - others).norm() / others.norm()):.1e}"


def memory(device: torch.device) -> str:
    """The most memory until now, of the process or of the device."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"peak memory {most / 1e9:.2f} GB"


def show(table: dict[str, dict[str, float]], factor: float) -> None:
    """Print the table in Markdown, with ratios to its first column."""
    names = list(table)
    print("\n| part |", " | ".join(names), "|\n|---|" + "---|" * len(names))
    for part in (*PARTS, "all"):
        print(f"| {part} |", " | ".join(f"{factor * table[name].get(part, 0.0):.2f}" for name in names), "|")
    first = table[names[0]]["all"]
    print("| times as fast |", " | ".join(f"{first / table[name]['all']:.1f}" for name in names), "|")


if __name__ == "__main__":
    main()
