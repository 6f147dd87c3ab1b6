"""Caption the pictures of Parquet files with Ray Data, on any number of GPUs and machines.

    pip install -e ".[ray]"
    python examples/caption_ray.py photos/ captions/ --model captioner --actors 4 --num-gpus 1

Rows keep their columns, without the pictures, and get `caption` and `error`.
"""

import argparse

import ray

from hf_captioners.inference import CaptionBatches


def main() -> None:
    """Read Parquet files, caption their pictures, write Parquet files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="Parquet file or folder, also of a bucket")
    parser.add_argument("out", help="folder of Parquet files")
    parser.add_argument("--model", required=True, help="folder or Hub name of a captioner")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--actors", type=int, default=1, help="copies of the captioner")
    parser.add_argument("--num-gpus", type=float, default=0, help="GPUs of each")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    captioned = ray.data.read_parquet(args.source).map_batches(
        CaptionBatches,
        fn_constructor_args=[args.model],
        fn_constructor_kwargs={"image_column": args.image_column, "batch_size": args.batch_size},
        batch_size=args.batch_size,
        concurrency=args.actors,
        num_gpus=args.num_gpus,
    )
    captioned.drop_columns([args.image_column]).write_parquet(args.out)


if __name__ == "__main__":
    main()
