"""How tests start a fake peer."""

import sys
from pathlib import Path

from moejax.bench.peers import Settings

SETTINGS = Settings(folder="none", scratch="none", dtype="bfloat16", threads=1, max_batch=2, max_len=9)


def command(behaviour: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_peer.py")), behaviour]
