"""Ranks every split of a model over devices, or shows where each array lives: the same as `moejax mesh`.

python scripts/mesh_config.py compare --model mixtral-8x7b --devices 8 --hardware h100-sxm
python scripts/mesh_config.py show --model mixtral-8x7b --mesh expert=4,tensor=2
python scripts/mesh_config.py --help
"""

import sys

from moejax.cli.app import run

if __name__ == "__main__":
    sys.exit(run(["mesh", *sys.argv[1:]]))
