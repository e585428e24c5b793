"""Makes docs/intra_vs_inter.md and its plots: intra-expert against inter-expert parallelism on GPUs that were measured.

    python -m scripts.intra_vs_inter

Every number is from the committed extract (scripts/extract_layers.py), the curves of collectives in the hardware files,
and what `moejax mesh compare` predicts of the same layers. Run it again, half a minute, when terms are fitted anew.
"""

from collections.abc import Iterable, Sequence
from statistics import median

from moejax.planning.silicon import ENGINES, SYSTEMS
from scripts.intra_vs_inter_plots import draw, panels
from scripts.intra_vs_inter_winners import by_engine, collectives, fp8, reasons, who_wins
from scripts.layer_exchanges import hardware_file
from scripts.measured_layers import BFLOAT16, FOLDER, LAYERS, MIXTRAL, MODELS, QWEN, Cell, best_engines, read_cells
from scripts.page_text import paragraph
from scripts.predicted_layers import Adviser, Judgement, judge
from scripts.report_tables import table
from scripts.split_tables import BALANCED, GPUS, LOAD_NAMES, LONG, SKEWED, gpus, of, ratio

PAGE = FOLDER.parent / "intra_vs_inter.md"
JUDGED = tuple(2**i for i in range(15))  # tokens, each doubling counting as much as the others
ADVISERS: dict[Adviser, str] = {
    "engine": "`mesh compare --software` of the engine measured",
    "moejax": "`--software moejax`",
    "ideal": "`--software ideal`, a roofline",
    "intra": "always tensor",
    "inter": "always expert",
}

Verdicts = dict[Adviser, Judgement]


def main() -> None:
    cells = read_cells()
    for hardware in SYSTEMS:
        draw(FOLDER / f"{hardware}.png", hardware_file(hardware).title, panels(hardware, cells))
    PAGE.write_text(page(cells), encoding="utf-8")
    print(f"wrote {PAGE} and {len(SYSTEMS)} plots in {FOLDER}")


def page(cells: Sequence[Cell]) -> str:
    """The whole page."""
    measured = [cell for cell in cells if cell.case.dtype == BFLOAT16]
    best = best_engines(measured)
    verdicts: Verdicts = {adviser: judge(judged(measured), adviser) for adviser in ADVISERS}
    parts = [
        "# Intra-expert or inter-expert, on silicon\n",
        answer(best, verdicts["engine"]),
        "## Who wins\n",
        who_wins(best),
        fp8(cells),
        "## By engine\n",
        by_engine(measured),
        "## With collectives\n",
        collectives(measured, best),
        "## Whether `moejax mesh compare` says the same\n",
        mesh_compare(measured, verdicts),
        "## Why\n",
        reasons(measured),
        "## How this was made\n",
        made(),
    ]
    return "\n".join(parts)


def answer(best: Sequence[Cell], verdict: Judgement) -> str:
    """What the page says: two sentences on who wins, and one on predictions."""
    few, many = MODELS[MIXTRAL], MODELS[QWEN]
    prefills = of(best, MIXTRAL, BALANCED, LONG)
    lost = [cell for cell in prefills if cell.verdict[0] in ("inter", "hybrid")]
    return "\n".join(
        [
            paragraph(
                f"**Few wide experts: split each of them.** For Mixtral 8x7B ({few.num_experts} experts of "
                f"{few.expert_dim:,} columns) on eight GPUs intra-expert parallelism wins: inter-expert takes "
                f"{ratio(of(best, MIXTRAL, BALANCED, 1, 1)):.1f} times as long at one token, "
                f"{ratio(of(best, MIXTRAL, BALANCED, 8, 64)):.1f} times at 8 to 64, and "
                f"{ratio(of(best, MIXTRAL, SKEWED, LONG)):.1f} times in prefills of {LONG:,} tokens and more under a "
                f"skewed load (medians over GPUs); inter-expert or a hybrid wins by more than a few per cent only "
                f"balanced prefills, with the best kernels, on {gpus(lost)}, by at most "
                f"{max(cell.verdict[1] for cell in lost):.2f} times."
            ),
            paragraph(
                f"**Many thin experts: give each GPU whole ones.** For Qwen3-30B-A3B ({many.num_experts} experts of "
                f"{many.expert_dim}) intra-expert wins only the first tokens, by "
                f"{ratio(of(best, QWEN, BALANCED, 1, 1)):.1f} times at one; in prefills of {LONG:,} tokens and more it "
                f"takes {_slowdown(of(best, QWEN, BALANCED, LONG)):.1f} times as long as the best split under a "
                f"balanced load, then mostly inter-expert, and {_slowdown(of(best, QWEN, SKEWED, LONG)):.1f} times "
                "under a skewed one, then mostly a hybrid."
            ),
            paragraph(
                "**`moejax mesh compare --software`, told the engine, names the fastest split or one within 3% of it "
                f"in {verdict.right:.0%} of {verdict.cells:,} measured cases**; elsewhere what it names takes "
                f"{verdict.median_loss:.0%} longer (median)."
            ),
        ]
    )


def mesh_compare(measured: Sequence[Cell], verdicts: Verdicts) -> str:
    """Tables of how often it names the fastest split, and what following it costs."""
    worst, rows = verdicts["engine"].worst, []
    for adviser, name in ADVISERS.items():
        one = verdicts[adviser]
        losses = (one.right, one.median_loss, one.rare, max(one.losses), one.ranked)
        rows.append([name, *(f"{share:.0%}" for share in losses)])
    groups = [(name, [cell for cell in measured if cell.case.hardware == key]) for key, name in GPUS.items()]
    groups += [(name, [cell for cell in measured if cell.case.engine == key]) for key, name in ENGINES.items()]
    groups += [(name, [cell for cell in measured if cell.case.load == key]) for key, name in LOAD_NAMES.items()]
    groups += [(name, [cell for cell in measured if cell.case.model == name]) for name in MODELS]
    parts = []
    for name, cells in groups:
        known = judged(cells)
        one, fixed = judge(known, "engine"), judge(known, "intra")
        shares = (one.right, fixed.right, one.median_loss, one.ranked)
        parts.append([name, f"{one.cells:,}", *(f"{share:.0%}" for share in shares)])
    return "\n".join(
        [
            paragraph(
                f"{verdicts['engine'].cells:,} cases: every GPU, engine and model, balanced and power laws of 1.01 and "
                "1.2, 2, 4 and 8 devices, 1 to 16,384 tokens by powers of two; the layer alone in bfloat16, which is "
                'all that tells splits apart under `replicated`. "Right" is the fastest split or one within 3% of it; '
                'a loss is how much longer the named split takes than the fastest; "order": of pairs of tensor and '
                "expert that differ by more than 10%, the share that is ranked rightly."
            ),
            table(
                ["who names a split", "right", "median loss elsewhere", "99% lose less than", "worst", "order"], rows
            ),
            paragraph(
                f"The worst is {GPUS[worst.case.hardware]}, {ENGINES[worst.case.engine]}, {worst.case.model}, "
                f"{LOAD_NAMES[worst.case.load]}, {worst.case.devices} devices, {worst.tokens:,} tokens. A roofline "
                "calls pure splits equal where both read every expert, so it often has no order. For Mixtral alone, "
                "always to take tensor is right more often still; it fails with many thin experts and with "
                "TensorRT-LLM's kernels. `--times measured` takes these tables themselves. With the engine's fitted "
                "terms, by part:"
            ),
            table(["of", "cases", "right", "always tensor right", "median loss elsewhere", "order"], parts),
            paragraph(
                "Where an engine runs a model by another kernel than most, as SGLang on B200 runs Mixtral's layers, "
                "that kernel has terms of its own."
            ),
        ]
    )


def made() -> str:
    """How to make the page, and what its numbers are not."""
    return paragraph(
        "`python -m scripts.intra_vs_inter` writes this page and its plots from "
        f"[layers.csv.gz](intra_vs_inter/layers.csv.gz), {LAYERS.stat().st_size / 1000:.0f} kB of NVIDIA's measured "
        "tables (Apache-2.0; versions, kernels and changes: [NOTICE](intra_vs_inter/NOTICE)), which "
        "`python -m scripts.extract_layers` takes out of aiconfigurator-core (`pip install 'moejax[silicon]'`). For a "
        "GPU, engine, model and dtype they have one kernel, the one that the engine runs, so there was none to choose. "
        "Collectives are the measured curves in `moejax/planning/devices`. A layer is as long as its busiest device; a "
        "power law draws each expert's rows from a density proportional to x^-alpha "
        "([performance-model.md](performance-model.md#loads)). Nothing here was timed with moejax's own kernels, which "
        "have not run on these GPUs. moejax does not decode Qwen3: `moejax.compare_meshes` takes its sizes as a "
        "`ModelConfig`. A few points of the tables are bumps of the measurement, as on H100 with TensorRT-LLM tensor=8 "
        "of Mixtral at 96 tokens under the power law, and tensor=2, expert=4 of Qwen3 at 4 tokens: trust medians."
    )


def judged(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.tokens in JUDGED]


def _slowdown(cells: Iterable[Cell]) -> float:
    """Of tensor parallelism against the best split, median."""
    return median(1 + cell.loss(cell.case.intra) for cell in cells)


if __name__ == "__main__":
    main()
