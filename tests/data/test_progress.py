"""Progress where stderr is no terminal: lines, seldom, and none for short work. The clock is the test's own."""

from __future__ import annotations

import sys
from threading import Event

import pytest
from tqdm import tqdm

from hf_captioners.data import progress as module
from hf_captioners.data.progress import progress, progress_of


@pytest.fixture()
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_line_every_few_seconds(clock, capsys):
    for _ in progress(range(30), unit="picture"):
        clock[0] += 1
        with tqdm.external_write_mode(file=sys.stdout):
            print("caption")
    out, err = capsys.readouterr()
    assert out == "caption\n" * 30
    lines = err.splitlines()
    assert err.endswith("\n")
    assert "\r" not in err
    assert 5 <= len(lines) <= 7
    assert [line for line in lines if "/30 [" not in line] == []
    assert "30/30" in lines[-1]


def test_short_work_says_nothing(clock, capsys):
    with progress(total=3) as bar:
        for _ in range(3):
            clock[0] += 1
            bar.update()
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress(range(2))
    assert type(bar) is tqdm is not module._Lines
    assert list(bar) == [0, 1]
    assert "\r100%" in capsys.readouterr().err


def test_a_line_every_so_many_rows_however_long_they_take(clock, capsys):
    bar = progress(range(7), log_every=3)
    for _ in bar:
        clock[0] += 100
        if bar.miniters > 1 and clock[0] - bar.last_print_t >= bar.maxinterval:  # tqdm's thread does this
            bar.miniters = 1
            bar.refresh(nolock=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/7")[0].split()[-1] for line in lines] == ["3", "6", "7"]


def test_work_that_says_nothing_itself_is_measured(clock, capsys):
    done, measured = [], Event()

    def measure():
        clock[0] += 6
        count = len(done)
        measured.set()
        return count

    with progress_of(measure, desc="writing", total=3):
        done.append(1)
        measured.wait()
        done += [2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("writing:  33%") and lines[-1].startswith("writing: 100%")


def test_an_error_in_measured_work_passes():
    with pytest.raises(ValueError, match="mine"), progress_of(lambda: 0):
        raise ValueError("mine")
