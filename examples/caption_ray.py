"""Caption the pictures of Parquet files or of WebDataset's tars with Ray Data, on any number of GPUs and machines.

    pip install -e ".[ray]"
    python examples/caption_ray.py photos/ captions/ --model captioner --actors 4 --num-gpus 1
    python examples/caption_ray.py shards/ captioned/ --model captioner --format webdataset

Rows of Parquet files keep their columns, without the pictures, and get `caption` and `error`. Samples of tars keep all
they have, and get a member `caption.txt` or, where there is none, `error.txt`. An actor that dies is started again.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import ray

from hf_captioners.inference import CaptionBatches

ADDED = {"parquet": ("caption", "error"), "webdataset": ("caption.txt", "error.txt")}


def read(args: argparse.Namespace) -> Any:
    """The rows, with pictures as they are stored."""
    if args.format == "parquet":
        return ray.data.read_parquet(args.source)
    return ray.data.read_webdataset(args.source, decoder=None)


def write(args: argparse.Namespace, captioned: Any) -> None:
    """Write the rows with their captions."""
    if args.format == "parquet":
        captioned.drop_columns([args.image_column]).write_parquet(args.out)
    else:  # a member for each field that is not empty
        rows = captioned.map(lambda row: {name: value or None for name, value in row.items()})
        rows.write_webdataset(args.out, encoder=None)


def main(words: Sequence[str] | None = None) -> None:
    """Read files, caption their pictures, write files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file or folder, also of a bucket")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--model", required=True, help="folder or Hub name of a captioner")
    parser.add_argument("--format", choices=ADDED, default="parquet", help="of what is read and written (%(default)s)")
    parser.add_argument("--image-column", help="column or suffix of the pictures (image; of tars jpg)")
    parser.add_argument("--actors", type=int, default=1, help="copies of the captioner")
    parser.add_argument("--num-gpus", type=float, default=0, help="GPUs of each")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, help="longest caption (the model's)")
    args = parser.parse_args(words)
    args.image_column = args.image_column or {"parquet": "image", "webdataset": "jpg"}[args.format]
    caption, error = ADDED[args.format]
    options = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    columns = {"image_column": args.image_column, "caption_column": caption, "error_column": error}
    captioned = read(args).map_batches(
        CaptionBatches,
        fn_constructor_args=[args.model],
        fn_constructor_kwargs={**columns, "batch_size": args.batch_size, **options},
        batch_size=args.batch_size,
        concurrency=args.actors,
        num_gpus=args.num_gpus,
    )
    write(args, captioned)


if __name__ == "__main__":
    main()
