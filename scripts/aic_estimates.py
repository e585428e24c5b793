"""AIConfigurator's estimates of whole steps of Mixtral 8x7B, in an environment of its own.

    python -m venv AIC && AIC/bin/pip install aiconfigurator==0.12.0
    AIC/bin/python scripts/aic_estimates.py FOLDER_WITH_config.json

Writes docs/predictions/aiconfigurator.json: milliseconds of a decode step (5 tokens in, 200 out: the mean over them)
and of a prefill of 512 tokens, bf16, for each GPU, engine, split and batch size that it has tables for. Takes minutes.
Needs nothing of moejax, whose environment has other versions.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from aiconfigurator.cli.api import cli_estimate  # type: ignore[import-not-found]

FILE = Path(__file__).resolve().parents[1] / "docs" / "predictions" / "aiconfigurator.json"
# By the name of a hardware file, what it is called there.
SYSTEMS = {"a100-80gb": "a100_sxm", "h100-sxm": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm"}
ENGINES = ("vllm", "trtllm", "sglang")
SPLITS = ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2), (8, 1), (1, 8), (4, 2), (2, 4))  # tensor, expert
BATCHES = (1, 8, 32, 128)
DECODE, PREFILL = {"mode": "static_gen", "isl": 5, "osl": 200}, {"mode": "static_ctx", "isl": 512, "osl": 2}


def estimates(model: str, hardware: str, engine: str, split: tuple[int, int]) -> list[dict[str, object]]:
    """At each batch size; none where a table that it needs is missing."""
    tensor, expert = split
    ways = {"tp_size": tensor * expert, "moe_tp_size": tensor, "moe_ep_size": expert}
    found = []
    for batch in BATCHES:
        given = {"backend_name": engine, "batch_size": batch, **ways}
        try:
            decode = cli_estimate(model, SYSTEMS[hardware], **DECODE, **given).tpot
            prefill = cli_estimate(model, SYSTEMS[hardware], **PREFILL, **given).ttft
        except RuntimeError as error:
            if "data missing" not in str(error):
                raise
            print(f"left out: {hardware} {engine} tensor={tensor} expert={expert} batch {batch}: {error}")
            continue
        where = {"hardware": hardware, "software": engine, "tensor": tensor, "expert": expert, "batch": batch}
        found.append({**where, "decode_ms": round(decode, 4), "prefill_ms": round(prefill, 3)})
    return found


def main(model: str) -> None:
    rows = [
        row
        for hardware in SYSTEMS
        for engine in ENGINES
        for split in SPLITS
        for row in estimates(model, hardware, engine, split)
    ]
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"source": "aiconfigurator {version("aiconfigurator")}", "rows": [\n{lines}\n]}}\n'
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
