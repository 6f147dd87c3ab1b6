"""Runs that go on where they were stopped: whatever stops them, each image has one record, in order."""

from __future__ import annotations

import json
import random

import pytest

from hf_captioners.inference.caption_run import CaptionRun, RunError, Share, merge_parts, state_of

SETTINGS = {"model": "mine", "num_beams": 3}
NAMES = [f"{number:02d}.jpg" for number in range(23)]


class Killed(BaseException):
    pass


def caption(name, broken=()):
    return {"image": name, "error": "broken"} if name in broken else {"image": name, "caption": f"a {name}"}


def rows(names, share=None):
    share = share or Share()
    return ((place, 0, {"image": name}) for place, name in share.of(names))


def go(path, names=NAMES, stop=None, broken=(), batch=4, share=None, settings=SETTINGS, **options):
    """A run that captions in batches, as a captioner does, and is killed behind so many records."""
    written = 0
    with CaptionRun(path, settings, share, **options) as run:
        remaining = run.remaining(rows(names, share))
        while chunk := [row for _, row in zip(range(batch), remaining, strict=False)]:
            for row in chunk:
                if written == stop:
                    raise Killed
                run.add(caption(row["image"], broken))
                written += 1
        return run.finish()


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("stop", range(0, 23, 3))
def test_goes_on_after_a_kill(tmp_path, stop):
    path = tmp_path / "captions.jsonl"
    with pytest.raises(Killed):
        go(path, stop=stop)
    with path.open("a") as file:
        file.write('{"image": "99.jp')  # a line in the middle of which the process was killed
    summary = go(path)
    assert records(path) == [caption(name) for name in NAMES]
    assert (summary["captioned"], summary["skipped"]) == (23 - stop, stop)
    assert go(path)["captioned"] == 0
    assert records(path) == [caption(name) for name in NAMES]


def test_failed_images_are_tried_again_in_their_places(tmp_path):
    path, broken = tmp_path / "captions.jsonl", {NAMES[3], NAMES[10], NAMES[22]}
    assert go(path, broken=broken)["failed"] == 3
    summary = go(path)
    assert (summary["skipped"], summary["failed"], summary["failed_before"]) == (23, 0, 3)  # not without the option
    assert go(path, NAMES[:2])["failed_before"] == 3  # of all images that are there, whatever is asked for now
    with pytest.raises(Killed):
        go(path, retry_failed=True, stop=1, broken={NAMES[10]})
    assert sum("error" in record for record in records(path)) == 3  # the old ones, until the next start
    summary = go(path, retry_failed=True, broken={NAMES[10]})
    assert (summary["captioned"], summary["failed"], summary["skipped"]) == (1, 1, 21)
    assert summary["failed_before"] == 0
    assert records(path) == [caption(name, {NAMES[10]}) for name in NAMES]


def test_new_images_come_behind_the_old_ones(tmp_path):
    path = tmp_path / "captions.jsonl"
    go(path, NAMES[5:])
    go(path)
    assert records(path) == [caption(name) for name in NAMES[5:] + NAMES[:5]]


def test_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "captions.jsonl"
    go(path)
    with pytest.raises(RunError, match=r"made with model 'mine' and now 'other', num_beams 3 and now None"):
        go(path, settings={"model": "other"})
    weights = {"model_name": "runs/mine", "weights_sha256": 32 * "ab", "image_processor_sha256": 32 * "12"}
    go(tmp_path / "named.jsonl", settings=weights)
    go(tmp_path / "named.jsonl", settings=weights | {"model_name": "elsewhere/mine"})  # the same weights
    other = {"model_name": "runs/other", "weights_sha256": 32 * "cd", "image_processor_sha256": 32 * "34"}
    with pytest.raises(
        RunError,
        match=r"made with image_processor_sha256 121212121212… and now 343434343434…, model runs/mine "
        r"\(weights abababababab…\) and now runs/other \(weights cdcdcdcdcdcd…\); go on",
    ):
        go(tmp_path / "named.jsonl", settings=other)
    (tmp_path / "notes.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match="is there, and not from such a run"):
        go(tmp_path / "notes.jsonl")
    with pytest.raises(RunError, match=r"begun with 1 process\(es\); go on with as many, not 2"):
        go(path, share=Share(0, 2))


def test_two_writers_of_a_part(tmp_path):
    with CaptionRun(tmp_path / "a.jsonl", SETTINGS), pytest.raises(BlockingIOError):
        go(tmp_path / "a.jsonl")


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_processes_make_the_file_of_one(tmp_path, seed):
    draw, path, broken = random.Random(seed), tmp_path / "captions.jsonl", {NAMES[7]}
    number = draw.randint(2, 4)
    for index in range(number):
        share = Share(index, number)
        for _ in range(draw.randint(0, 2)):
            with pytest.raises(Killed):
                go(path, stop=draw.randint(0, 1), share=share, broken=broken)
        if index == number - 1:
            with pytest.raises(RunError, match=rf"not finished: part-0000{index}"):
                merge_parts(path)
        go(path, share=share, broken=broken)
    assert merge_parts(path) == (23, 1)
    assert records(path) == [caption(name, broken) for name in NAMES]
    assert not list(state_of(path).glob("part-*"))
    assert go(path)["skipped"] == 23  # one process can go on with it
    with pytest.raises(RunError, match="has no parts of several processes"):
        merge_parts(path)


def test_processes_go_on_behind_a_merge(tmp_path):
    path, broken, shares = tmp_path / "captions.jsonl", {NAMES[2], NAMES[9]}, [Share(0, 2), Share(1, 2)]
    for share in shares:
        go(path, NAMES[:15], share=share, broken=broken)
    merge_parts(path)
    summaries = [go(path, share=share, broken={NAMES[9], NAMES[20]}, retry_failed=True) for share in shares]
    assert sum(summary["captioned"] for summary in summaries) == 8 - 1 + 1  # new ones, and one that had failed
    assert records(path) == [caption(name, broken) for name in NAMES[:15]]  # until they are merged
    assert merge_parts(path) == (23, 2)
    assert records(path) == [caption(name, {NAMES[9], NAMES[20]}) for name in NAMES]


@pytest.mark.parametrize("number", [1, 2])
def test_images_that_are_named_twice_have_one_record(tmp_path, number, caplog):
    path = tmp_path / "captions.jsonl"
    names = [*NAMES[:6], *NAMES[3:9], NAMES[3]]
    if number == 1:
        with pytest.raises(Killed):
            go(path, names, stop=5)
        assert go(path, names)["repeated"] == 4
    else:
        shares = [Share(index, number) for index in range(number)]
        within = [go(path, names, share=share)["repeated"] for share in shares]
        merge_parts(path)
        assert f"{4 - sum(within)} images were named twice, for several processes" in caplog.text
    assert records(path) == [caption(name) for name in NAMES[:9]]
