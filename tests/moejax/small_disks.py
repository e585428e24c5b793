"""Disks that are small or cannot be written: file systems in memory, mounted where only one subprocess sees them.

It gets a user and a mount namespace of its own (`unshare`, of util-linux), so that no privileges are needed and nothing
is left behind. Permission bits would not do: they do not hold for root, as whom continuous integration may run.
"""

import subprocess
import sys
from pathlib import Path

SECONDS = 300
MOEJAX = (sys.executable, "-m", "moejax")


def run_on_disk(folder: Path, size: str, *command: str, read_only: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs `command` with an empty file system of `size` (as in "8m") mounted at `folder`, then lists what is there."""
    folder.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={size} tmpfs {folder}"
    if read_only:
        mount += f" && mount -o remount,ro {folder}"
    listing = f'status=$?; echo "there: $(ls -A {folder} | tr "\\n" " ")"; exit $status'
    script = f'{mount} || {{ echo "cannot mount: $?"; exit 99; }}; "$@"; {listing}'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "bash"]
    done = subprocess.run([*unshare, *command], capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        raise RuntimeError(f"this system allows no user namespaces, which the test needs: {done.stdout}{done.stderr}")
    return done
