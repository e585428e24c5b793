"""Types the moejax commands of README and docs as they stand, and compares what they print with what is printed there.

    python -m scripts.walk_docs FOLDER [PAGE ...]

FOLDER is a new one, in which the names that pages use for a checkpoint are the bundled one. Commands run one after the
other, each page in a folder of its own, in which are the files that it shows with `cat`. Of what a page shows as
printed, every line has to be there, digits, spaces and line breaks apart.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
CHECKPOINTS = ("Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-v0.1", "path/to/checkpoint", "CHECKPOINT")
SECONDS = 600  # that a command may take
# Beginnings and parts of commands that are not typed, with the reason.
NOT_TYPED = {
    "--compiled-for": "needs the extra compile, in an environment of its own",
    "moejax serve": "goes on until it is ended; scripts/first_hour.sh starts one",
    "moejax bench": "takes minutes, and asks for other systems; docs/benchmarks.md is made by it",
    "mesh calibrate": "takes minutes",
    "here.toml": "is what mesh calibrate writes",
    "--measure": "takes minutes, on as many devices as are named",
    "--times measured": "needs the extra silicon",
    "--expert-backend tokamax": "needs a GPU",
    "--expert-backend pallas": "needs a GPU",
    "--reference": "needs torch and transformers",
    "--process": "is one of several processes",
    "--coordinator": "is one of several processes",
    "--pareto": "needs the extra plot",
    "--plot": "needs the extra plot",
}
_FENCE = re.compile(r"^```(console|sh|bash|)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A command of a page, with the lines that the page shows as printed by it."""

    page: str
    command: str
    printed: tuple[str, ...] = ()

    @property
    def file(self) -> str | None:
        """The name of the file that is shown by the command."""
        return self.command.removeprefix("cat ") if self.command.startswith("cat ") else None

    @property
    def why_not_typed(self) -> str | None:
        return next((reason for part, reason in NOT_TYPED.items() if part in self.command), None)


def shown(page: str, text: str) -> Iterator[Shown]:
    """Every moejax command, and file shown by `cat`, in the fenced blocks of a page: lines after `$ `, or in a block of
    nothing but commands."""
    for kind, block in _FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        console = kind == "console" or any(line.startswith("$ ") for line in lines)
        printed: list[str] = []
        command: str | None = None
        for line in [*lines, "$ "]:
            word = line.removeprefix("$ ") if console else line
            begins = line.startswith("$ ") if console else line.startswith(("moejax ", "$ "))
            if begins:
                if command is not None and command.startswith(("moejax ", "cat ")):
                    yield Shown(page=page, command=command, printed=tuple(printed))
                command, printed = re.sub(r"\s+#.*$|\s+$", "", re.sub(r" {2,}", " ", word)), []
            elif console:
                printed.append(line)


def comparable(line: str) -> str:
    """A line without what differs from run to run and from width to width."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.,]+", "0", line)).strip()


def missing(one: Shown, output: str) -> list[str]:
    """The shown lines that were not printed; "..." stands for any."""
    printed = comparable(output.replace("\\\n", " "))
    return [line for line in one.printed if line.strip() not in ("", "...") and comparable(line) not in printed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", nargs="*", default=PAGES, metavar="PAGE")
    asked = parser.parse_args()
    demo = ROOT / "moejax/checkpoints/demo"
    failed = 0
    for page in asked.pages:
        folder = asked.folder / page.replace("/", "-")
        folder.mkdir(parents=True)
        for name in CHECKPOINTS:
            shutil.copytree(demo, folder / name)
        for one in shown(page, (ROOT / page).read_text(encoding="utf-8")):
            if one.file:
                (folder / one.file).write_text("\n".join(one.printed) + "\n", encoding="utf-8")
                continue
            if one.why_not_typed:
                print(f"{page}: not typed, {one.why_not_typed}: {one.command}")
                continue
            print(f"{page}: {one.command}", flush=True)
            done = subprocess.run(
                one.command,
                shell=True,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
            )
            lines = missing(one, done.stdout)
            if done.returncode or lines:
                failed += 1
                print(f"{done.stdout}\n{page}: exit status {done.returncode}; not printed: {lines}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
