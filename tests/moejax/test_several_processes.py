"""Two processes with 4 devices each, as a JAX program of a user's own: what they read, refuse and draw."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.messages import says
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600  # for both to load and compile, on a machine that is busy with other things


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    """What each process of the program says."""
    command, port = [sys.executable, "-m", "tests.moejax.process_program"], free_port()
    processes = [
        subprocess.Popen(
            [*command, str(id), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for id in (0, 1)
    ]
    try:
        written = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], written
    return [json.loads(out.splitlines()[-1]) for out, _ in written]


def test_each_process_reads_what_its_devices_hold(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["read"] == report["held"]  # every distinct part once: 5% more would be within the promise
        assert report["held"] < 0.6 * report["whole"], "this mesh splits too little for the test to mean anything"
    assert sum(report["held"] for report in reports) >= reports[0]["whole"]


def test_processes_draw_the_same_tokens_without_a_seed(reports: list[dict[str, Any]]) -> None:
    first, second = (report["sampled"] for report in reports)
    assert len(first) == 24
    assert first == second


def test_what_differs_is_refused_in_every_process(reports: list[dict[str, Any]]) -> None:
    differ = ("dtype", "prompts", "sampling parameters", "output", "prompts")
    first, second = (report["refusals"] for report in reports)
    assert first == second and len(first) == len(differ)
    for message, what in zip(first, differ, strict=True):
        says(message, "process 1", what, "process 0")
