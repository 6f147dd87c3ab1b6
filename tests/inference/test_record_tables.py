"""Records as Parquet files: every record once, in order, in files of the given length."""

from __future__ import annotations

import pytest
from pyarrow.parquet import read_table

from hf_captioners.inference.record_tables import write_tables


@pytest.mark.parametrize("count, files", [(0, 1), (1, 1), (5, 1), (6, 2), (15, 3)])
def test_files_of_so_many_rows(tmp_path, count, files):
    records = [{"image": f"{number}.jpg", "caption": f"a {number}"} for number in range(count)]
    assert len(write_tables(tmp_path, lambda: records, rows_per_file=5)) == files
    rows = read_table(tmp_path).to_pylist()
    assert [{"image": row["image"], "caption": row["caption"]} for row in rows] == records


def test_fewer_files_than_before(tmp_path):
    records = [{"image_id": number, "captions": ["a", "b"]} for number in range(12)]
    write_tables(tmp_path, lambda: records, rows_per_file=3)
    write_tables(tmp_path, lambda: records[:4], rows_per_file=3)
    assert read_table(tmp_path)["image_id"].to_pylist() == [0, 1, 2, 3]
    assert read_table(tmp_path)["captions"].to_pylist() == [["a", "b"]] * 4


def test_ids_that_are_numbers_and_text(tmp_path):
    write_tables(tmp_path, lambda: [{"image_id": 7, "error": "none"}, {"image_id": "a"}, {"image": "b.jpg"}])
    assert read_table(tmp_path)["image_id"].to_pylist() == ["7", "a", None]
