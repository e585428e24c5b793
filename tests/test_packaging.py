"""What a user installs: the wheel's contents, and decoding from it in a virtual environment that has no source tree."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("sharding", "convert")  # folders of the repository that are installed as moejax._sharding, moejax._convert
MAX_DEMO_BYTES = 10 * 10**6  # what every clone and every installation has to download for it


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of its sources: setuptools leaves build/ and *.egg-info in the folder it builds."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    # tests/ and scripts/ come along because the build has to leave them out.
    for name in ("moejax", *LINKED, "scripts", "tests"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)], cwd=out)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with this wheel in it and nothing else of ours.

    The dependencies come from this session's site-packages, through a .pth file: installing jax again would take a
    minute and 500 MB. That they suffice is checked by test_architecture's undeclared_imports. A .pth file found in a
    folder that was itself added by one is not read, so an editable installation of the source tree is not visible.
    """
    home = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", str(home)], cwd=home)
    interpreter = home / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    run([sys.executable, "-m", "pip", "--python", str(interpreter), *install], cwd=home)
    (site_packages,) = home.glob("lib/python*/site-packages")
    # Written only now: pip would take an installation that it sees through the .pth file for this one.
    (site_packages / "session.pth").write_text(
        "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    )
    return interpreter


def run(command: list[str], *, cwd: Path) -> str:
    # A PYTHONPATH that names the source tree would be found before the wheel.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_holds_every_source_of_the_package_and_no_other_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "moejax").rglob("*.py")}
    for name in LINKED:
        sources |= {f"moejax/_{path.relative_to(ROOT)}" for path in (ROOT / name).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    kernels = {
        f"moejax/ops/native/{path.name}"
        for path in (ROOT / "moejax/ops/native").iterdir()
        if path.suffix in (".cc", ".h")
    }
    assert {name for name in names if name.endswith((".cc", ".h"))} == kernels and len(kernels) > 3
    assert {name.partition("/")[0] for name in names} == {"moejax"} and "moejax/py.typed" in names


def test_wheel_holds_the_hardware_files(wheel: Path) -> None:
    folder = "moejax/planning/devices/"
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)}
    assert names == {path.name for path in (ROOT / folder).iterdir()} and len(names) >= 6


def test_wheel_holds_the_demo_checkpoint_and_it_is_small(wheel: Path) -> None:
    folder = "moejax/checkpoints/demo/"
    with zipfile.ZipFile(wheel) as archive:
        sizes = {
            info.filename.removeprefix(folder): info.file_size for info in archive.infolist() if folder in info.filename
        }
    assert {"config.json", "tokenizer.json", "model.safetensors", "README.md"} <= sizes.keys()
    assert sizes == {path.name: path.stat().st_size for path in (ROOT / folder).iterdir()}
    assert sum(sizes.values()) <= MAX_DEMO_BYTES


def test_wheel_holds_the_page(wheel: Path) -> None:
    folder = "moejax/serving/page/"
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)}
    assert {"index.html", "main.js", "style.css"} <= held
    assert held == {path.name for path in (ROOT / folder).iterdir()}


def test_metadata_says_what_pyproject_says(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["Name"] == "moejax"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    runtime = [entry for entry in metadata.get_all("Requires-Dist", []) if "extra ==" not in entry]
    assert len(runtime) == len(project["dependencies"])


def test_installed_version_is_the_one_in_the_source(python: Path, metadata: Message, tmp_path: Path) -> None:
    assert (
        run([str(python), "-c", "import moejax; print(moejax.__version__)"], cwd=tmp_path).strip()
        == metadata["Version"]
    )


def test_a_script_may_have_neighbours_of_any_name(python: Path, tmp_path: Path) -> None:
    """Files beside a script come first: what a user calls sharding.py must not become ours, nor ours theirs."""
    for name in (*LINKED, "scripts", "tests", "runtime", "model", "ops", "weights"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the user's own {name}')\n")
    (tmp_path / "script.py").write_text(
        "import moejax\n"
        "model = moejax.load('demo', mesh=moejax.MeshConfig(), dtype='float32')\n"
        "(result,) = moejax.decode(model, ['A list is'], max_tokens=4)\n"
        "print(len(result.outputs[0].token_ids), moejax.__file__)\n"
    )
    count, file = run([str(python), "script.py"], cwd=tmp_path).split()
    (site_packages,) = python.parents[1].glob("lib/python*/site-packages")
    assert (int(count), Path(file)) == (4, site_packages / "moejax" / "__init__.py")


def test_console_script_decodes_the_bundled_checkpoint(python: Path, tmp_path: Path) -> None:
    command = [
        str(python.with_name("moejax")),
        "decode",
        "demo",
        "--prompt",
        "A list is",
        "--max-tokens",
        "4",
        "--json",
    ]
    report = json.loads(run(command, cwd=tmp_path))
    (result,) = report if isinstance(report, list) else [report]
    (output,) = result["outputs"]
    assert len(output["token_ids"]) == 4
    assert output["text"]
