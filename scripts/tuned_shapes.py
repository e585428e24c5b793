"""Which shapes of experts vLLM and SGLang tuned their Triton kernel for: names of files in their wheels.

    python -m scripts.tuned_shapes vllm-0.24.0-*.whl sglang-0.5.14-*.whl ... > scripts/tuned_shapes.json

A shape without such a file runs with defaults, up to 2.5 times slower; `scripts.fit_hardware` tells them apart.
"""

import json
import re
import sys
import zipfile
from pathlib import Path

DEVICES = {
    "NVIDIA_A100-SXM4-80GB": "a100-80gb",
    "NVIDIA_H100_80GB_HBM3": "h100-sxm",
    "NVIDIA_H200": "h200",
    "NVIDIA_B200": "b200",
    "NVIDIA_L40S": "l40s",
    "NVIDIA_RTX_PRO_6000_Blackwell_Server_Edition": "rtx-pro-6000",
}
DTYPES = {None: "bfloat16", "fp8_w8a8": "float8_e4m3fn"}
FILE = re.compile(r"E=(\d+),N=(\d+),device_name=([^,]+?)(?:,dtype=(\w+))?\.json")  # block-scaled ones have more
WHEEL = re.compile(r"(vllm|sglang)-([^-]+)-")


def tuned_shapes(wheel: Path) -> tuple[str, dict[str, dict[str, list[list[int]]]]]:
    """The engine and version, and by device and dtype [experts, width] on a device."""
    found: dict[str, dict[str, set[tuple[int, int]]]] = {}
    for name in zipfile.ZipFile(wheel).namelist():
        match = FILE.fullmatch(name.rpartition("/")[2])
        if match and match[3] in DEVICES and match[4] in DTYPES:
            by_dtype = found.setdefault(DEVICES[match[3]], {})
            by_dtype.setdefault(DTYPES[match[4]], set()).add((int(match[1]), int(match[2])))
    named = WHEEL.match(wheel.name)
    if named is None:
        raise ValueError(f"{wheel}: the name must be that of a wheel of vllm or sglang")
    shapes = {device: {dtype: sorted(map(list, one)) for dtype, one in found[device].items()} for device in found}
    return f"{named[1]} {named[2]}", shapes


if __name__ == "__main__":
    print(json.dumps(dict(tuned_shapes(Path(path)) for path in sys.argv[1:])))
