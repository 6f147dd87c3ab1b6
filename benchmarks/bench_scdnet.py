"""SCD-Net's sampler: speed at the released size, and the worth of a trained model's captions by number of steps.

    python benchmarks/bench_scdnet.py speed --threads 1
    python benchmarks/bench_scdnet.py curve --model runs/scdnet/captioner --annotations dataset_karpathy.json \
        --features runs/features --retrieved runs/retrieved.jsonl --out runs/curve

`speed` has random weights. "Plain" computes in every step what does not depend on it: keys and values of the picture,
projections of the retrieved sentence, the sentence's rows behind the last semantic layer, and the time's vector. All
cases take turns in each round, and the median of the rounds counts, so that a ratio is of two times of one machine.

`curve` captions the pictures of a split with every sampler, number of steps and spacing of time, and prints CIDEr-D
with a 95 % interval over pictures, its difference to the paper's sampler with the most steps, and the processor time of
a caption; with `--out` also `curve.png` and `curve.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_satic import show
from train_flickr8k_rewards import interval
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import ScdnetConfig, ScdnetForImageCaptioning
from hf_captioners.data.captions.attached import attach_sentences
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.features.store import FeatureStore
from hf_captioners.data.rows import attach_features
from hf_captioners.metrics import CaptionMetrics
from hf_captioners.modeling.captioner_trust import load_pretrained
from hf_captioners.modeling.modeling_scdnet import Known

REGIONS, SENTENCE = 50, 15


class PlainScdnet(ScdnetForImageCaptioning):
    """SCD-Net that computes everything in every step."""

    def _known(self, encoded: Any, captions: int, previous_ids: Any = None) -> Known:
        self.memory = encoded.last_hidden_state
        return super()._known(encoded, captions, previous_ids)

    def predict(self, state: Any, known_bits: Any, time: Any, known: Known, *unused: Any, **more: Any) -> Any:
        """See `ScdnetForImageCaptioning.predict`."""
        self.token_embed.time_embed(torch.zeros(1, device=state.device))
        parts = [known_bits, state] if known.previous is None else [known_bits, state, known.previous]
        hidden = self.token_embed(torch.cat(parts, dim=-1), time)  # (N, L, d)
        length = hidden.shape[1]
        hidden = torch.cat((hidden, known.retrieved_states), dim=1)  # (N, L + T, d)
        for layer in self.r_encoder.layers:
            hidden = layer(hidden, known.semantic_mask)
        hidden = hidden[:, :length]
        for layer in self.decoder.g_layers:
            hidden = layer(hidden, *layer.x_att.self.keys_and_values(self.memory), known.memory_mask)
        return self.predictor(hidden), []


# --- speed ------------------------------------------------------------------------------------------------------------


def measure_speed(args: argparse.Namespace) -> Iterator[list[Any]]:
    """The rows of the table of times."""
    torch.manual_seed(0)
    config = ScdnetConfig(**json.loads(args.sizes))
    ours = ScdnetForImageCaptioning(config).eval()
    plain = PlainScdnet(config).eval()
    plain.load_state_dict(ours.state_dict())
    models = {"float32": (ours, plain)}
    if "bfloat16" in args.dtypes:
        models["bfloat16"] = tuple(
            load.from_pretrained(None, config=config, state_dict=ours.state_dict(), dtype=torch.bfloat16).eval()
            for load in (ScdnetForImageCaptioning, PlainScdnet)
        )
    for batch in args.batch_sizes:
        cases = [(dtype, steps, kind) for dtype in args.dtypes for steps in args.steps for kind in ("ours", "plain")]
        times: dict[Any, list[float]] = {case: [] for case in cases}
        for turn in range(args.repeats + 1):
            for case in cases:
                dtype, steps, kind = case
                model = models[dtype][kind == "plain"]
                features = torch.randn(batch, REGIONS, int(config.feature_size or 0), dtype=model.dtype)
                sentences = torch.randint(1, config.vocab_size, (batch, SENTENCE))
                start = time.process_time()
                model.generate(image_features=features, retrieved_ids=sentences, num_inference_steps=steps)
                if turn:  # the first is to warm up
                    times[case].append(time.process_time() - start)
        slowest = median(times[args.dtypes[0], args.steps[0], "ours"])
        for dtype in args.dtypes:
            for steps in args.steps:
                own, other = (median(times[dtype, steps, kind]) for kind in ("ours", "plain"))
                row = [batch, dtype, steps, f"{own / batch * 1e3:.0f}", f"{other / own:.2f}", f"{slowest / own:.1f}"]
                yield row


# --- quality ----------------------------------------------------------------------------------------------------------


def caption(model: Any, processor: Any, rows: Any, batch_size: int, **options: Any) -> tuple[list[str], float]:
    """Captions of all rows, and the seconds of processor time that `generate` took."""
    captions, seconds = [], 0.0
    for first in range(0, len(rows), batch_size):
        inputs = processor.prepare_rows([rows[i] for i in range(first, min(first + batch_size, len(rows)))])
        start = time.process_time()
        ids = model.generate(**inputs, **options)
        seconds += time.process_time() - start
        captions += processor.batch_decode(ids)
    return captions, seconds


def measure_curve(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """For every way of sampling its options, scores of all pictures and processor time."""
    model = load_pretrained(AutoModelForImageTextToText, args.model).eval()
    processor = load_pretrained(AutoProcessor, args.model)
    rows = load_karpathy(args.annotations, split=args.split)
    if args.num_images:
        rows = rows.select(range(args.num_images))
    rows = attach_sentences(rows, args.retrieved, "retrieved") if args.retrieved else rows
    references = rows["captions"]
    rows = attach_features(rows, FeatureStore(args.features))
    metrics = CaptionMetrics(["cider_d"])
    for sampler in args.samplers:
        for spacing in args.spacings if sampler != "paper" else [1.0]:
            for ahead in args.time_differences:
                for steps in args.steps:
                    options = {"num_inference_steps": steps, "sampler": sampler, "time_spacing": spacing}
                    options["time_difference"] = ahead
                    captions, seconds = caption(model, processor, rows, args.batch_size, **options)
                    scores = np.asarray(metrics(captions, references).per_image["cider_d"]) * 100
                    yield {**options, "scores": scores, "milliseconds": seconds / len(captions) * 1e3}


def describe_curve(results: list[dict[str, Any]]) -> Iterator[list[Any]]:
    """The rows of the table of scores."""
    papers = [result for result in results if result["sampler"] == "paper" and not result["time_difference"]]
    best = max(papers or results, key=lambda result: result["num_inference_steps"])
    for result in results:
        low, high = interval(result["scores"])
        gains = result["scores"] - best["scores"]
        below, above = interval(gains)
        yield [
            *(result[name] for name in ("sampler", "time_spacing", "time_difference", "num_inference_steps")),
            f"{result['scores'].mean():.1f} ({low:.1f} to {high:.1f})",
            f"{gains.mean():+.1f} ({below:+.1f} to {above:+.1f})",
            f"{result['milliseconds']:.1f}",
        ]


def plot_curve(results: list[dict[str, Any]], path: Path) -> None:
    """Plot CIDEr-D against steps, and against milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    names = {(result["sampler"], result["time_spacing"], result["time_difference"]): None for result in results}
    for name in names:
        own = [one for one in results if (one["sampler"], one["time_spacing"], one["time_difference"]) == name]
        label = f"{name[0]}, spacing {name[1]:g}" + (f", {name[2]:g} steps ahead" if name[2] else "")
        for axis, key in zip(axes, ("num_inference_steps", "milliseconds"), strict=True):
            points = sorted((result[key], result["scores"].mean()) for result in own)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes[0].set(xlabel="steps", ylabel="CIDEr-D x 100", xscale="log")
    axes[1].set(xlabel="processor time of a caption, ms", xscale="log")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# --- the command ------------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parts = parser.add_subparsers(dest="part", required=True)
    speed = parts.add_parser("speed", help="milliseconds of a caption at the released size")
    speed.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="pictures at a time (default: 1 8)")
    speed.add_argument("--steps", type=int, nargs="+", default=[50, 20, 10], help="of the sampler (default: 50 20 10)")
    speed.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    speed.add_argument("--repeats", type=int, default=3, help="rounds whose median counts (default: 3)")
    speed.add_argument("--sizes", default="{}", help="fields of the config in JSON, for another size")
    curve = parts.add_parser("curve", help="CIDEr-D and time by sampler and number of steps")
    curve.add_argument("--model", required=True, help="folder of a trained SCD-Net")
    curve.add_argument("--annotations", required=True, help="JSON file in Karpathy's layout")
    curve.add_argument("--split", default="val", help="default: val")
    curve.add_argument("--features", required=True, help="store of the pictures' features")
    curve.add_argument("--retrieved", help="sentences of the pictures, of `hf-captioners retrieval lookup`")
    curve.add_argument("--num-images", type=int, help="only the first pictures")
    curve.add_argument("--batch-size", type=int, default=50, help="pictures at a time (default: 50)")
    curve.add_argument("--samplers", nargs="+", default=["paper", "ddim"], help="default: paper ddim")
    curve.add_argument("--steps", type=int, nargs="+", default=[50, 20, 10, 5, 3, 2, 1], help="numbers of steps")
    curve.add_argument("--spacings", type=float, nargs="+", default=[1.0], help="of the time, but for the paper's")
    curve.add_argument("--time-differences", type=float, nargs="+", default=[0.0], help="in steps (default: 0)")
    curve.add_argument("--out", type=Path, help="folder for curve.png and curve.json")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), {platform.machine()}, processor time\n")
    with torch.inference_mode():
        if args.part == "speed":
            columns = ["batch", "dtype", "steps", "ms per caption", "plain / ours", "50 steps / these"]
            show(columns, measure_speed(args))
            return
        results = list(measure_curve(args))
    columns = ["sampler", "spacing", "ahead", "steps", "CIDEr-D x 100", "to the paper's", "ms per caption"]
    show(columns, describe_curve(results))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        plot_curve(results, args.out / "curve.png")
        kept = [{**result, "scores": result["scores"].mean()} for result in results]
        (args.out / "curve.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
