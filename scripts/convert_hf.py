"""Converts a checkpoint between Hugging Face's format and Orbax: the same as `moejax convert`.

python scripts/convert_hf.py path/to/hf-folder path/to/orbax-folder
python scripts/convert_hf.py --help
"""

import sys

from moejax.cli.app import run

if __name__ == "__main__":
    sys.exit(run(["convert", *sys.argv[1:]]))
