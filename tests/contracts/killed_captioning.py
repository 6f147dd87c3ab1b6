"""A process of `hf-captioners caption --out` that is killed when it has written so many records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

_CODE = """
import os, signal, sys
from hf_captioners.cli.main import main
from hf_captioners.data.json_lines import JsonLines
append, left = JsonLines.append, [int(sys.argv[1])]
def append_and_die(lines, record):
    append(lines, record)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
JsonLines.append = append_and_die
main(["caption", *sys.argv[2:]])
"""


def caption_until_killed(arguments: Iterable[Any], records: int, environment: Mapping[str, str] | None = None) -> None:
    command = [sys.executable, "-c", _CODE, str(records), *map(str, arguments)]
    killed = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **(environment or {})})
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
