"""Runs the Dockerfile's steps without Docker: copies what it copies, and runs what it runs in a virtual environment.

    python scripts/docker_steps.py FOLDER

FOLDER gets src/ and moejax/, for the image's /src and /opt/moejax. Packages of the system are not installed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"/src": "src", "/opt/moejax": "moejax"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(instruction, what follows it) of every line of a Dockerfile."""
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word and not word.startswith("#"):
            yield word, rest.strip()


def run(dockerfile: Path, folder: Path) -> None:
    """Runs COPY and RUN in order, with the defaults of ARG."""
    folder.mkdir(parents=True)
    arguments: dict[str, str] = {}

    def here(text: str) -> str:
        for place, name in PLACES.items():
            text = text.replace(place, str(folder / name))
        # The image has one Python, and it is the one that this runs on.
        return re.sub(r"^python\b", sys.executable, text)

    for word, rest in instructions(dockerfile.read_text()):
        match word:
            case "ARG":
                name, _, value = rest.partition("=")
                arguments[name] = os.environ.get(name, value)
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    _copy(ROOT / source, Path(here(target)), into=target.endswith("/"))
            case "RUN" if not rest.startswith("apt-get"):
                subprocess.run(here(rest), shell=True, check=True, env=os.environ | arguments)


def _copy(source: Path, target: Path, *, into: bool) -> None:
    place = target / source.name if into else target
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one")
    run(ROOT / "Dockerfile", parser.parse_args().folder.resolve())


if __name__ == "__main__":
    main()
