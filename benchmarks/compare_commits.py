"""Two commits in one run: a benchmark of this working tree with the package of each commit, in turns.

    python benchmarks/compare_commits.py c60c67b HEAD -- bench_reward_training.py --only scst --cpu-time

Prints the benchmark's tables, in the place of each number the median of the first commit, that of the second, and the
first divided by the second. The benchmark must be one that runs with both packages.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
NUMBER = re.compile(r"-?[\d,]*\.?\d+")
Table = list[list[str]]


def unpack(commit: str, folder: Path) -> str:
    """Put the package of a commit into a folder; return its short name."""
    archive = subprocess.run(
        ["git", "archive", commit, "hf_captioners"], cwd=HERE.parent, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)
    name = subprocess.run(
        ["git", "rev-parse", "--short", commit], cwd=HERE.parent, check=True, capture_output=True, text=True
    )
    return name.stdout.strip()


def measure(command: list[str], package: Path) -> Table:
    """The table rows that a benchmark prints."""
    environment = {**os.environ, "PYTHONPATH": str(package)}
    run = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]], env=environment, capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(f"{command[0]} with {package.name}:\n{run.stderr[-3000:]}")
    lines = [line for line in run.stdout.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def compare(before: list[Table], after: list[Table]) -> list[str]:
    """Lines of a table of medians and their ratios, from the tables of several runs of each side."""
    lines = []
    for row, cells in enumerate(before[0]):
        shown = cells[:1]
        for column in range(1, len(cells)):
            sides = [[table[row][column] for table in tables] for tables in (before, after)]
            if all(NUMBER.fullmatch(cell) for side in sides for cell in side):
                old, new = (median(float(cell.replace(",", "")) for cell in side) for side in sides)
                ratio = f"{old / new:.2f}" if new else ""
                shown.append(f"{old:g} → {new:g} ({ratio})" if ratio else f"{old:g} → {new:g}")
            else:
                shown.append(cells[column])
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", help="another")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each (default: 3)")
    parser.add_argument("benchmark", nargs="+", help="behind --: a file of this folder and its options")
    args = parser.parse_args(words)
    results: dict[str, list[Table]] = {}
    with tempfile.TemporaryDirectory() as folder:
        packages = {}
        for side, commit in (("before", args.before), ("after", args.after)):
            packages[side] = Path(folder) / side
            packages[side].mkdir()
            print(f"{side}: {unpack(commit, packages[side])}")
        for _ in range(args.rounds):
            for side, package in packages.items():
                results.setdefault(side, []).append(measure(args.benchmark, package))
    print("\n".join(["", *compare(results["before"], results["after"])]))


if __name__ == "__main__":
    main()
