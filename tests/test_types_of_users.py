"""Type checkers see the package in an editable installation, the documented one: they check a user's script."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
from typing import assert_type

import jax
import jax.numpy as jnp
import moejax

model = moejax.load("demo", dtype=jnp.bfloat16, mesh={"expert": 2}, devices=jax.devices())
assert_type(model, moejax.Model)
assert_type(model.get("embed.table"), jax.Array)
assert_type(model.with_params({"embed.table": model.get("embed.table")}), moejax.Model)
assert_type(moejax.decode(model, jnp.ones((2, 3), jnp.int32)), list[moejax.DecodeResult])
moejax.decode(model, [[1, 2], "text"])[0].outputs[0].text.upper()
for event in moejax.decode(model, "text", stream=True):
    assert_type(event, moejax.DecodeEvent)


async def main() -> None:
    assert_type(await moejax.adecode(model, "text"), list[moejax.DecodeResult])
    async for event in moejax.adecode(model, "text", stream=True):
        assert_type(event, moejax.DecodeEvent)


moejax.load(3)  # wrong
moejax.decode(model, "text")[0].texts  # wrong
model.gets("embed.table")  # wrong
"""


def test_pyright_knows_the_api_and_finds_what_is_wrong(tmp_path: Path) -> None:
    tree, home = tmp_path / "tree", tmp_path / "venv"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("moejax", "sharding", "convert"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "venv", "--without-pip", str(home)])
    interpreter = home / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "--python", str(interpreter), "install", *options, "-e", str(tree)], build=True)
    (site_packages,) = home.glob("lib/python*/site-packages")
    # Dependencies come from this session; a .pth file that is found through another one is not read.
    (site_packages / "session.pth").write_text(sysconfig.get_path("purelib"))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(interpreter), str(script)]
    found = json.loads(run(command, check=False))["generalDiagnostics"]
    wrong = [number for number, line in enumerate(SCRIPT.splitlines()) if line.endswith("# wrong")]
    lines = {one["range"]["start"]["line"] for one in found if one["severity"] == "error"}
    assert lines == set(wrong), [one["message"] for one in found]


def run(command: list[str], *, check: bool = True, build: bool = False) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if build:  # the build backend is this session's
        env["PYTHONPATH"] = sysconfig.get_path("purelib")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
