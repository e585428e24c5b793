"""Sections of docs/intra_vs_inter.md: which split wins, alone and with collectives, by GPU and engine, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from moejax.planning.silicon import ENGINES
from moejax.planning.skew import skewed_routing
from scripts.layer_exchanges import hardware_file, layer_exchange, with_exchanges
from scripts.measured_layers import BFLOAT16, LOADS, MIXTRAL, MODELS, QWEN, Cell, best_engines
from scripts.page_text import bullet, paragraph
from scripts.report_tables import table
from scripts.split_tables import BALANCED, GPUS, LOAD_NAMES, LONG, MOST, ON, SHOWN, SKEWED, gpus, listed, of, ratio

FLOAT8 = "float8_e4m3fn"
RANGES = ((1, 64), (80, 2048), (LONG, MOST))


def who_wins(best: Sequence[Cell]) -> str:
    """A table for each model: who wins by how much, by GPU and load."""
    parts = [
        paragraph(
            "One MoE layer in bfloat16 on eight GPUs, without collectives; of each split the fastest of vLLM, "
            "TensorRT-LLM and SGLang. The number says how many times as long the other pure split takes (for a hybrid: "
            'the better pure one); "equal" is within 3%. Tokens are those of the layer: sequences of a decode step, or '
            "tokens of a prefill."
        )
    ]
    for model in MODELS:
        rows = []
        for hardware, gpu in GPUS.items():
            for load in (BALANCED, SKEWED):
                found = {cell.tokens: cell for cell in of(best, model, load) if cell.case.hardware == hardware}
                if found:
                    rows.append([gpu, LOAD_NAMES[load], *(_said(found[tokens]) for tokens in SHOWN)])
        parts += [f"**{model}**\n", table(["GPU", "load", *(f"{tokens:,}" for tokens in SHOWN)], rows)]
    warm = [GPUS[name] for name in GPUS if hardware_file(name).cache_bytes > _one_token_bytes()]
    parts.append(
        paragraph(
            "On A100 the balanced load was measured with SGLang alone, and tensor=8 of Qwen3 not at all. One token's "
            f"part of Mixtral under tensor=8, an eighth of two experts, is {_one_token_bytes() / 1e6:.0f} MB and fits "
            f"the last cache of {listed(warm)}, where a benchmark that runs one layer over and over finds it; a model "
            "of 32 layers reads it from memory, so that ratios near those of H200 are to be expected there, too."
        )
    )
    return "\n".join(parts)


def fp8(cells: Sequence[Cell]) -> str:
    """How fp8 differs."""
    by_dtype = {
        dtype: {
            (replace(cell.case, dtype=""), cell.tokens): cell.verdict[0]
            for cell in best_engines(one for one in cells if one.case.dtype == dtype and one.case.engine != "sglang")
            if cell.case.devices == ON
        }
        for dtype in (BFLOAT16, FLOAT8)
    }
    wide, narrow = by_dtype[BFLOAT16], by_dtype[FLOAT8]
    both = [(wide[key], narrow[key]) for key in narrow if key in wide]
    same = sum(first == second for first, second in both) / len(both)
    turned = sum({first, second} == {"intra", "inter"} for first, second in both) / len(both)
    return paragraph(
        f"In fp8 (vLLM and TensorRT-LLM; not on A100) the winner is the same in {same:.0%} of {len(both):,} cases, and "
        f"in {turned:.0%} intra-expert and inter-expert change places; the rest are hybrids and equals."
    )


def by_engine(measured: Sequence[Cell]) -> str:
    """A table of each engine alone, and the plots."""
    rows = []
    for model in MODELS:
        for engine, title in ENGINES.items():
            for load in (BALANCED, SKEWED):
                mine = [cell for cell in of(measured, model, load) if cell.case.engine == engine]
                spans = [[cell for cell in mine if least <= cell.tokens <= most] for least, most in RANGES]
                said = [f"{ratio(one):.2f}, {_share(one):.0%}" for one in spans]
                rows.append([model, title, LOAD_NAMES[load], *said])
    heads = [f"{least:,} to {most:,} tokens" for least, most in RANGES]
    parts = [
        paragraph(
            "Each engine by itself, eight GPUs: seconds of expert=8 over those of tensor=8 (median over GPUs and "
            "tokens), and how often intra-expert wins by more than 3%. vLLM was measured without hybrids."
        ),
        table(["model", "engine", "load", *heads], rows),
        paragraph(
            "In the plots tensor parallelism wins above the line at 1 and loses below it; solid lines are the balanced "
            "load, dashed ones a power law of 1.01. Qwen3 on A100 is on four GPUs."
        ),
        *(f"![{gpu}](intra_vs_inter/{hardware}.png)\n" for hardware, gpu in GPUS.items()),
    ]
    return "\n".join(parts)


def collectives(measured: Sequence[Cell], best: Sequence[Cell]) -> str:
    """What exchanging makes of the ratios, and what each dispatch takes."""
    shown = [f"{tokens:,}" for tokens in SHOWN]
    summed, rows = best_engines(with_exchanges(of(measured, MIXTRAL, BALANCED))), []
    for hardware, gpu in GPUS.items():
        alone, exchanged = (
            {
                cell.tokens: cell.inter_over_intra
                for cell in of(some, MIXTRAL, BALANCED)
                if cell.case.hardware == hardware
            }
            for some in (best, summed)
        )
        rows.append([gpu, *(f"{alone[tokens]:.2f} → {exchanged[tokens]:.2f}" for tokens in SHOWN)])
    return "\n".join(
        [
            paragraph(
                "Under the dispatch `replicated`, where every GPU of the group has every token, a layer ends with one "
                "all-reduce of tokens x D numbers, the same for every split. So it changes no winner of an engine, and "
                "brings ratios nearer to 1: little over NVLink, almost all the way over PCIe (L40S, RTX PRO 6000), "
                "where most of a large layer is exchange. Mixtral 8x7B, balanced, fastest engine of each "
                "split: seconds of expert=8 over those of tensor=8, alone → with that engine's all-reduce (which can "
                "make another engine the fastest):"
            ),
            table(["GPU", *shown], rows),
            paragraph(
                "The other dispatches split sequences over the axis `expert`, which spares attention its own "
                "all-reduce, and exchange by NCCL: `gather` an all-gather and a reduce-scatter, `all_to_all` two "
                "all-to-alls with room for every token. Microseconds of one Mixtral layer on eight GPUs:"
            ),
            table(["GPU", "exchange", *shown], list(_exchange_rows(measured))),
        ]
    )


def _exchange_rows(measured: Sequence[Cell]) -> Iterator[list[str]]:
    for hardware in ("h200", "l40s"):
        cells = [cell for cell in of(measured, MIXTRAL, BALANCED) if cell.case.hardware == hardware]
        seconds = {
            "all-reduce, the fastest engine's": [
                min(layer_exchange(cell.case, cell.case.inter, tokens) for cell in cells) for tokens in SHOWN
            ],
            "`gather`, NCCL": [layer_exchange(cells[0].case, cells[0].case.inter, one, "gather") for one in SHOWN],
            "`all_to_all`, NCCL": [
                layer_exchange(cells[0].case, cells[0].case.inter, one, "all_to_all") for one in SHOWN
            ],
        }
        for name, found in seconds.items():
            yield [GPUS[hardware], name, *(f"{1e6 * one:,.0f}" for one in found)]


def reasons(measured: Sequence[Cell]) -> str:
    """What the numbers come from."""
    busiest = {model: skewed_routing(config, LOADS[SKEWED]).load_imbalance(ON) for model, config in MODELS.items()}
    cold = [
        cell
        for cell in best_engines(of(measured, MIXTRAL, BALANCED, 1, 1))
        if hardware_file(cell.case.hardware).cache_bytes < _one_token_bytes()
    ]
    first = [cell.inter_over_intra for cell in cold]
    slow = [cell for cell in of(measured, MIXTRAL, BALANCED, LONG) if cell.case.hardware == "l40s"]
    thin = [cell for cell in of(measured, QWEN, BALANCED, LONG) if cell.case.hardware == "h200"]
    thin = [1 / cell.inter_over_intra for cell in thin if cell.case.engine == "trtllm"]
    lines = [
        "**Decoding is reading.** At one token tensor=8 reads an eighth of two experts on every GPU; with expert=8 the "
        f"busiest GPU reads a whole one, 4 times as much, of which fixed times leave {min(first):.1f} to "
        f"{max(first):.1f} on {gpus(cold)}. From 8 tokens on Mixtral's experts are all read either way, and splits are "
        "near to each other.",
        "**Prefill is tiles and copies.** A shard of an expert has every token's rows to route, copy and sum, and few "
        f"columns to multiply: Qwen3's {MODELS[QWEN].expert_dim // ON} on each of eight GPUs do not fill a tile of "
        f"128, so that tensor=8 takes up to {max(thin):.1f} times as long as expert=8 (TensorRT-LLM, H200). Mixtral's "
        f"{MODELS[MIXTRAL].expert_dim // ON:,} do fill tiles.",
        "**A skewed load pays for the busiest device.** Under a power law of 1.01 the busiest of eight has "
        f"{busiest[MIXTRAL]:.1f} times the mean rows of Mixtral, with one expert to a device, and {busiest[QWEN]:.1f} "
        "times those of Qwen3, whose sixteen to a device even out. Tensor parallelism has no busiest device, and a "
        "hybrid a less busy one.",
        "**Caches.** A whole Mixtral expert, 352 MB, fits no GPU's last cache, and is read again for tiles of rows; an "
        "eighth of one, 44 MB, fits most. That shows where memory is slow for the matrix rate: expert=8 takes "
        f"{min(_ratios(slow)):.1f} to {max(_ratios(slow)):.1f} times as long in balanced prefills on L40S.",
        "**Tuning.** The Triton kernels of vLLM and SGLang have block sizes that someone tuned for tensor splits of "
        "Mixtral, and defaults for one, two or four whole experts. In balanced prefills on H200 expert=8 takes "
        f"{_over_trtllm(measured, 'vllm', inter=True):.1f} times as long as TensorRT-LLM's with vLLM and "
        f"{_over_trtllm(measured, 'sglang', inter=True):.1f} times with SGLang, tensor=8 only "
        f"{_over_trtllm(measured, 'vllm', inter=False):.1f} and {_over_trtllm(measured, 'sglang', inter=False):.1f} "
        "times.",
    ]
    return "\n".join(map(bullet, lines)) + "\n"


def _over_trtllm(measured: Sequence[Cell], engine: str, *, inter: bool) -> float:
    """Median time of one engine's pure split over TensorRT-LLM's, of balanced prefills of Mixtral on H200."""
    cells = [cell for cell in of(measured, MIXTRAL, BALANCED, LONG) if cell.case.hardware == "h200"]
    seconds = {
        (cell.case.engine, cell.tokens): cell.seconds[cell.case.inter if inter else cell.case.intra] for cell in cells
    }
    return median(seconds[engine, cell.tokens] / seconds["trtllm", cell.tokens] for cell in cells)


def _one_token_bytes() -> float:
    """Of the experts that one token chooses, on each of eight devices under tensor=8."""
    config = MODELS[MIXTRAL]
    return config.experts_per_token * 3 * config.embed_dim * config.expert_dim * 2 / ON


def _share(cells: Sequence[Cell]) -> float:
    return sum(cell.verdict[0] == "intra" for cell in cells) / len(cells)


def _ratios(cells: Sequence[Cell]) -> list[float]:
    return [cell.inter_over_intra for cell in cells]


def _said(cell: Cell) -> str:
    winner, by = cell.verdict
    return winner if winner == "equal" else f"{winner} {by:.2f}"
