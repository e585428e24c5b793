"""Draws the pictures of docs/parallelism.md.

    python scripts/draw_parallelism.py docs/pictures

Which part of an array a device holds is asked of the rules by which models are split, so the pictures show what the
code does. They have a background of their own and read the same on a light and on a dark page.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from moejax._sharding import LogicalAxis, MeshAxes, MeshConfig, Rules
from moejax.families.config import ModelConfig
from moejax.moe.split import DispatchName, make_rules

CONFIG = ModelConfig(
    vocab_size=8,
    embed_dim=8,
    num_layers=1,
    num_heads=8,
    num_kv_heads=4,
    head_dim=2,
    num_experts=8,
    experts_per_token=2,
    expert_dim=4,
    max_position_embeddings=8,
)
ROWS = 8  # of the batch

# The two experts of each of eight tokens. Some have both on one device, where a token takes one row, not two.
CHOSEN = ((0, 5), (2, 3), (1, 6), (0, 1), (4, 7), (2, 0), (7, 6), (3, 5))
DEVICES, TOKENS = 4, len(CHOSEN)
OWN = TOKENS // DEVICES

INK, FAINT, EMPTY, PAPER, PANEL = "#1f2328", "#59636e", "#e6e9ed", "#ffffff", "#f6f8fa"
HELD = "#0072b2"
HOME = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # Okabe and Ito's palette, told apart by colour-blind readers
FONT = "font-family=\"'DejaVu Sans', Verdana, Arial, sans-serif\""
CELL, STEP = 13, 16  # pixels: side of a cell, distance of two
LABELS, COLUMN = 150, 172  # width of the labels on the left, and of a device


def text(x: float, y: float, words: str, *, size: int = 12, fill: str = INK, anchor: str = "start") -> str:
    """One line of text whose baseline is at `y`."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, *, stroke: str = "none", radius: int = 2) -> str:
    """A rectangle with rounded corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def cells(x: float, y: float, fills: Sequence[str | None], gap_after: int = 0) -> str:
    """A row of cells; None is an empty one. After every `gap_after` of them stands a gap."""
    drawn = []
    for i, fill in enumerate(fills):
        left = x + i * STEP + (i // gap_after * 6 if gap_after else 0)
        drawn.append(box(left, y, CELL, CELL, fill or EMPTY, stroke=INK if fill else "#c4cbd3"))
    return "\n".join(drawn)


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole picture."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'{FONT} role="img" aria-label="{title}">\n<title>{title}</title>\n'
        f"{box(0.5, 0.5, width - 1, height - 1, PAPER, stroke='#d1d9e0', radius=8)}\n{body}\n</svg>\n"
    )


# --- where arrays live ---


def held(rules: Rules, logical: LogicalAxis, size: int, device: dict[str, int]) -> range:
    """Which of `size` entries of a logical axis `device` holds; it is given by its place on each mesh axis."""
    part = 0
    for axis in rules[logical]:
        part = part * rules.mesh.shape[axis] + device[axis]
    each = size // rules.parts(logical)
    return range(part * each, (part + 1) * each)


def places(mesh: MeshConfig) -> list[dict[str, int]]:
    """Where each device stands, in the order of the mesh."""
    sizes = [range(size) for size in mesh.shape.values()]
    return [dict(zip(mesh.shape, place, strict=True)) for place in product(*sizes)]


def draw_strategy(mesh: MeshConfig, dispatch: DispatchName, title: str, links: Sequence[tuple[MeshAxes, str]]) -> str:
    """What each of a mesh's four devices holds, and below it which devices exchange what."""
    rules = make_rules(CONFIG, mesh, dispatch)
    width, top = LABELS + COLUMN * mesh.size + 10, 46
    labels: list[tuple[float, str, LogicalAxis, int]] = [
        (50, "rows of the batch", "batch", ROWS),
        (78, "query heads", "q_heads", CONFIG.num_heads),
        (106, "key/value heads", "kv_heads", CONFIG.num_kv_heads),
        (134, "vocabulary", "vocab", CONFIG.vocab_size),
    ]
    experts = top + 164
    parts = [text(16, 28, title, size=14)]
    parts += [text(16, top + y + 11, words) for y, words, _, _ in labels]
    parts += [
        text(16, experts + 11, "expert weights:"),
        text(16, experts + 29, "8 experts across,", size=11, fill=FAINT),
        text(16, experts + 45, "hidden axis F down", size=11, fill=FAINT),
    ]
    for i, device in enumerate(places(mesh)):
        x = LABELS + i * COLUMN
        parts += [box(x, top, COLUMN - 12, 190 + 4 * STEP - 18, PANEL, stroke="#d1d9e0", radius=6)]
        parts += [text(x + 14, top + 20, f"device {i}", size=13)]
        where = ", ".join(f"{axis} {device[axis]}" for axis, size in mesh.shape.items() if size > 1)
        parts += [text(x + 14, top + 37, where, size=11, fill=FAINT)]
        for y, _, logical, size in labels:
            mine = held(rules, logical, size, device)
            parts += [cells(x + 14, top + y, [HELD if entry in mine else None for entry in range(size)])]
        columns = held(rules, "experts", CONFIG.num_experts, device)
        lines = held(rules, "mlp", CONFIG.expert_dim, device)
        for line in range(CONFIG.expert_dim):
            fills = [HELD if line in lines and expert in columns else None for expert in range(CONFIG.num_experts)]
            parts += [cells(x + 14, experts + line * STEP, fills)]
    bottom = experts + 4 * STEP + 26
    for axes, words in links:
        parts += _groups(mesh, axes, bottom, words)
        bottom += 44
    return svg(width, int(bottom + 6), title, parts)


def _groups(mesh: MeshConfig, axes: MeshAxes, y: float, words: str) -> list[str]:
    """A line under each group of devices that exchange something over `axes`, which may be none."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, device in enumerate(places(mesh)):
        groups.setdefault(tuple(place for axis, place in device.items() if axis not in axes), []).append(i)
    drawn = [text(LABELS, y + 26, words)]
    for level, members in enumerate(groups.values()):
        if len(members) > 1:
            ends = [LABELS + member * COLUMN + (COLUMN - 12) / 2 for member in members]
            height = y + 9 * level * (members[1] - members[0] > 1)  # groups that interleave lie below each other
            drawn.append(f'<path d="M{ends[0]:g} {height:g}H{ends[-1]:g}" stroke="{INK}" stroke-width="2"/>')
            drawn += [f'<circle cx="{end:g}" cy="{height:g}" r="3.5" fill="{INK}"/>' for end in ends]
    return drawn


def draw_mesh() -> str:
    """Eight devices as data=2, expert=2, tensor=2."""
    mesh = MeshConfig(data=2, expert=2, tensor=2)
    parts = [text(16, 28, "Eight devices as data=2,expert=2,tensor=2", size=14)]
    side, wide = 66, 96
    for i, device in enumerate(places(mesh)):
        x = 110 + device["data"] * 310 + device["tensor"] * (wide + 14)
        y = 92 + device["expert"] * (side + 14)
        parts += [box(x, y, wide, side, PANEL, stroke=INK, radius=6)]
        parts += [text(x + wide / 2, y + 38, f"device {i}", anchor="middle")]
    for data in range(2):
        x = 110 + data * 310
        parts += [box(x - 12, 76, 2 * wide + 38, 2 * side + 62, "none", stroke=HELD, radius=8)]
        parts += [text(x - 12, 66, f"data {data}: half of the batch, all experts", size=11)]
        parts += [text(x + (wide + 14) * i + wide / 2, 262, f"tensor {i}", size=11, anchor="middle") for i in range(2)]
    parts += [text(16, 130 + (side + 14) * i, f"expert {i}", size=11) for i in range(2)]
    legend = ((16, "down: which experts"), (200, "across: which part of each expert"), (470, "box: which rows"))
    parts += [text(x, 304, words, fill=FAINT) for x, words in legend]
    return svg(680, 322, "Eight devices as a mesh", parts)


# --- how tokens reach their experts ---


def owners(token: int) -> set[int]:
    """Devices that own the experts of a token."""
    return {expert // (CONFIG.num_experts // DEVICES) for expert in CHOSEN[token]}


def home(token: int) -> int:
    """The device whose token it is."""
    return token // OWN


def shown(device: int, wanted: Callable[[int, int], bool]) -> list[str | None]:
    """All tokens, in the colours of their homes, as far as they are `wanted(token, device)`."""
    return [HOME[home(token)] if wanted(token, device) else None for token in range(TOKENS)]


def sent(device: int) -> list[str | None]:
    """A slot for each of a device's tokens and each destination; filled where an expert of the token lives there."""
    mine = range(device * OWN, (device + 1) * OWN)
    return [HOME[device] if owner in owners(token) else None for owner in range(DEVICES) for token in mine]


Stage = tuple[str, str, Callable[[int], list[str | None]]]  # what it is, a remark, and its cells on each device


def everything(device: int) -> list[str | None]:
    return shown(device, lambda token, device: True)


def own(device: int) -> list[str | None]:
    return shown(device, lambda token, device: home(token) == device)


def computed(device: int) -> list[str | None]:
    return shown(device, lambda token, device: device in owners(token))


FLOWS: dict[DispatchName, list[Stage | str]] = {
    "replicated": [
        ("all tokens", "", everything),
        ("parts of the result", "own experts computed", computed),
        "all-reduce over expert (and tensor)",
        ("the result", "all tokens, summed", everything),
    ],
    "gather": [
        ("its own tokens", "", own),
        "all-gather over expert",
        ("all tokens", "", everything),
        ("parts of the result", "own experts computed", computed),
        "reduce-scatter over expert; where tensor is above 1, all-reduce over tensor",
        ("the result", "own tokens, summed", own),
    ],
    "all_to_all": [
        ("its own tokens", "", own),
        ("slots to send", "2 per destination", sent),
        "all-to-all over expert: tokens; another for their expert ids and weights",
        ("tokens received", "2 slots per source", computed),
        ("parts of the result", "own experts computed", computed),
        "all-to-all over expert: results; where tensor is above 1, all-reduce over tensor",
        ("results returned", "2 slots per owner", sent),
        ("the result", "own tokens, summed", own),
    ],
}


def draw_dispatch(name: DispatchName) -> str:
    """Eight tokens on expert=4, stage by stage; a device's tokens have its colour."""
    width, y = LABELS + COLUMN * DEVICES + 10, 96
    parts = [text(16, 28, f"Dispatch {name} on expert=4: eight tokens, each with two of eight experts", size=14)]
    for device in range(DEVICES):
        x = LABELS + device * COLUMN
        parts += [box(x + 14, 46, CELL, CELL, HOME[device], stroke=INK), text(x + 34, 57, f"device {device}", size=13)]
        first = device * (CONFIG.num_experts // DEVICES)
        parts += [text(x + 14, 76, f"experts {first} and {first + 1}", size=11, fill=FAINT)]
    for stage in FLOWS[name]:
        if isinstance(stage, str):
            parts += [box(LABELS, y - 4, COLUMN * DEVICES - 12, 26, "#dbe9f6", stroke=HELD, radius=6)]
            parts += [text(LABELS + (COLUMN * DEVICES - 12) / 2, y + 14, stage, anchor="middle")]
            y += 38
            continue
        what, remark, fills = stage
        parts += [text(16, y + 11, what)] + ([text(16, y + 27, remark, size=11, fill=FAINT)] if remark else [])
        parts += [cells(LABELS + device * COLUMN + 6, y, fills(device), gap_after=OWN) for device in range(DEVICES)]
        y += 44 if remark else 34
    return svg(width, y + 2, f"Dispatch {name}", parts)


def pictures() -> dict[str, str]:
    """All pictures by file name."""
    group: MeshAxes = ("expert", "tensor")
    both = "all-reduce over {}: once in attention, once in the MoE layer"
    return {
        "mesh.svg": draw_mesh(),
        "tensor.svg": draw_strategy(
            MeshConfig(tensor=4), "replicated", "tensor=4: intra-expert parallelism", [(group, both.format("tensor"))]
        ),
        "expert.svg": draw_strategy(
            MeshConfig(expert=4), "replicated", "expert=4: inter-expert parallelism", [(group, both.format("expert"))]
        ),
        "hybrid.svg": draw_strategy(
            MeshConfig(expert=2, tensor=2),
            "replicated",
            "expert=2,tensor=2: hybrid",
            [(group, both.format("expert and tensor together"))],
        ),
        "hybrid_gather.svg": draw_strategy(
            MeshConfig(expert=2, tensor=2),
            "gather",
            "expert=2,tensor=2 under gather or all_to_all: each pair of devices has rows of its own",
            [
                (("tensor",), "all-reduce over tensor: once in attention, once in the MoE layer"),
                (("expert",), "over expert: tokens to their experts and back, in the MoE layer"),
            ],
        ),
        "data.svg": draw_strategy(
            MeshConfig(data=4), "replicated", "data=4: data parallelism", [((), "nothing is exchanged in any layer")]
        ),
        **{f"{name}.svg": draw_dispatch(name) for name in FLOWS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the pictures of docs/parallelism.md.")
    parser.add_argument("folder", type=Path, help="where the SVG files go")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        (folder / name).write_text(picture, encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    main()
