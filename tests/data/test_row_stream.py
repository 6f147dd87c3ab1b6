"""Streams of rows: each row once a pass, whatever processes and workers share them, and from any place on."""

from collections import Counter
from itertools import islice

import datasets
import pytest
import torch

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.row_stream import RowStream

NUMBER = 24


def stream(shards=4, **options):
    rows = datasets.Dataset.from_dict({"image_id": list(range(NUMBER))}).to_iterable_dataset(num_shards=shards)
    return RowStream(rows, **{"seed": 3, "buffer_size": 5, **options})


def ids(rows, number=NUMBER):
    return [row["image_id"] for row in islice(iter(rows), number)]


def test_a_pass_has_every_row_once_in_an_order_of_its_own():
    read = ids(stream(), 3 * NUMBER)
    passes = [read[start : start + NUMBER] for start in range(0, 3 * NUMBER, NUMBER)]
    assert all(sorted(one) == list(range(NUMBER)) for one in passes)
    assert len(set(map(tuple, passes))) == 3
    assert read == ids(stream(), 3 * NUMBER) != ids(stream(seed=4), 3 * NUMBER)


def test_without_a_buffer_rows_come_as_in_their_file():
    read = ids(stream(buffer_size=1))
    assert [read[start : start + 6] for start in range(0, NUMBER, 6)] == [
        list(range(first, first + 6)) for first in read[::6]
    ]


@pytest.mark.parametrize("shards", [1, 3, 4, 8])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_a_pass(shards, processes):
    """Until all have read a pass, and none begins the next one: each row once."""
    read = Counter()
    for process in range(processes):
        for row in stream(shards).for_process(process, processes):
            if row.position.epoch == 1:
                break
            read[row["image_id"]] += 1
    assert read == dict.fromkeys(range(NUMBER), 1)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_goes_on_behind_any_row(shards):
    """Also in the middle of a block, at its end, and at the end of a pass."""
    whole = list(islice(iter(stream(shards)), 2 * NUMBER + 5))
    for place in range(2 * NUMBER):
        later = stream(shards)
        later.go_on(place + 1, {0: whole[place].position})
        assert ids(later, 4) == [row["image_id"] for row in whole[place + 1 : place + 5]]


def test_workers_of_a_loader_go_on_in_their_turns():
    def loader(rows):
        return torch.utils.data.DataLoader(rows, batch_size=2, num_workers=2, collate_fn=list)

    whole = list(islice(iter(loader(stream(2))), 9))
    positions = {}
    for batch in whole[:5]:
        positions[batch[-1].share] = batch[-1].position
    later = stream(2)
    later.go_on(5, positions)
    again = list(islice(iter(loader(later)), 4))
    assert [[row["image_id"] for row in batch] for batch in again] == [
        [row["image_id"] for row in batch] for batch in whole[5:]
    ]


def captioned_stream(rows, shards=2, **options):
    table = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)
    return RowStream(table, source="mine", **{"seed": 3, "buffer_size": 3, "image_id": "image_id", **options})


def test_rows_of_one_picture_that_follow_each_other_are_one(caplog):
    """From any place on, whoever reads them."""
    numbers = [0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    rows = [{"image_id": image_id, "captions": [str(place)]} for place, image_id in enumerate(numbers)]
    expected = {image_id: [str(place) for place, one in enumerate(numbers) if one == image_id] for image_id in range(7)}
    for shards, processes in ((2, 1), (2, 2), (1, 3)):
        read = {}
        for process in range(processes):
            for row in captioned_stream(rows, shards).for_process(process, processes):
                if row.position.epoch == 1:
                    break
                assert row["image_id"] not in read
                read[row["image_id"]] = row["captions"]
        assert read == expected
    whole = list(islice(iter(captioned_stream(rows)), 18))
    for place in range(14):
        later = captioned_stream(rows)
        later.go_on(place + 1, {0: whole[place].position})
        assert list(islice(iter(later), 4)) == whole[place + 1 : place + 5]
    assert not caplog.messages


def test_rows_of_one_picture_that_lie_apart(caplog):
    rows = [{"image_id": image_id, "captions": [str(place)]} for place, image_id in enumerate([7, 8, 7, 8])]
    read = list(islice(iter(captioned_stream(rows, 1)), 8))
    assert sorted(row["captions"] for row in read[:4]) == [["0"], ["1"], ["2"], ["3"]]
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "mine: rows of image 7 do not follow each other"
    ]


def test_bad_rows_are_left_out_by_who_reads_them(caplog):
    def convert(row, place):
        if row["image_id"] % 5 == 0:
            raise ValueError(f"{place}: image {row['image_id']}")
        return dict(row)

    with pytest.raises(ValueError, match="file 0, row 0: image 0"):
        ids(stream(1, convert=convert, buffer_size=1))
    good = [number for number in range(NUMBER) if number % 5]
    for shards, processes in ((4, 1), (4, 2), (1, 3)):
        caplog.clear()
        read = []
        for process in range(processes):
            rows = stream(shards, convert=convert, bad_rows=BadRows("skip")).for_process(process, processes)
            for row in rows:
                if row.position.epoch == 2:
                    break
                read += [row["image_id"]]
        assert sorted(read) == sorted(2 * good)
        assert len({message for message in caplog.messages if message.startswith("left out: ")}) == 5
        for number in (1, 2):  # parts read other files in the next pass
            counts = [message for message in caplog.messages if f"pass {number}, part " in message]
            assert sum(int(message.split(" rows left out")[0].split()[-1]) for message in counts) == 5
    rows = stream(convert=convert, bad_rows=BadRows("skip"))
    whole = list(islice(iter(rows), 30))
    for place in range(24):
        later = stream(convert=convert, bad_rows=BadRows("skip"))
        later.go_on(place + 1, {0: whole[place].position})
        assert list(islice(iter(later), 3)) == whole[place + 1 : place + 4]
    assert [row["image_id"] for row in rows.passage()] == good


def test_mistakes():
    with pytest.raises(ValueError, match="buffer_size must be at least 1, not 0"):
        stream(buffer_size=0)
    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="mine: no rows for 1 of 1 processes"):
        next(iter(RowStream(empty, source="mine")))

    def convert(row, place):
        raise ValueError(place)

    with pytest.raises(ValueError, match="file 0, row 0"):
        next(iter(stream(1, convert=convert)))
    with pytest.raises(ValueError, match="row 0"):
        next(stream(1, convert=convert).passage())
