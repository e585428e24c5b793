"""docs/intra_vs_inter.md and its plots are what the script makes of the committed extract, and what they say holds."""

from collections import Counter

import pytest

from moejax.planning import silicon
from scripts.intra_vs_inter import JUDGED, PAGE, judged, page
from scripts.intra_vs_inter_plots import digest, panels
from scripts.measured_layers import (
    BFLOAT16,
    FOLDER,
    LAYERS,
    MIXTRAL,
    MODELS,
    QWEN,
    TOKENS,
    Cell,
    best_engines,
    read_cells,
)
from scripts.predicted_layers import judge
from scripts.split_tables import BALANCED, GPUS, LONG, SKEWED, of, ratio

CELLS = read_cells()
MEASURED = [cell for cell in CELLS if cell.case.dtype == BFLOAT16]
BEST = best_engines(MEASURED)


def on(cells: list[Cell], hardware: str, engine: str | None = None) -> list[Cell]:
    return [cell for cell in cells if cell.case.hardware == hardware and engine in (None, cell.case.engine)]


def test_the_page_is_made_of_the_extract() -> None:
    """Else: python -m scripts.intra_vs_inter"""
    assert PAGE.read_text(encoding="utf-8") == page(CELLS)


@pytest.mark.parametrize("hardware", GPUS)
def test_plots_are_up_to_date_and_small(hardware: str) -> None:
    """Else: python -m scripts.intra_vs_inter"""
    picture = (FOLDER / f"{hardware}.png").read_bytes()
    assert digest(panels(hardware, CELLS)).encode() in picture
    assert len(picture) < 160_000


def test_the_extract_is_small_and_says_where_it_is_from() -> None:
    notice = (FOLDER / "NOTICE").read_text(encoding="utf-8")
    for word in (silicon.PACKAGE, "NVIDIA", "Apache License 2.0", "Changed", "TensorRT-LLM 1.3.0rc20", "vLLM 0.24.0"):
        assert word in notice
    assert LAYERS.stat().st_size < 150_000


def test_six_gpus_three_engines_and_both_models_were_measured() -> None:
    assert {cell.case.hardware for cell in MEASURED} == set(silicon.SYSTEMS) == set(GPUS)
    assert {cell.case.engine for cell in MEASURED} == set(silicon.ENGINES)
    assert {cell.case.model for cell in MEASURED} == set(MODELS)
    assert {cell.tokens for cell in MEASURED} == set(TOKENS) and set(JUDGED) < set(TOKENS)
    assert {split.kind for cell in MEASURED for split in cell.seconds} == {"intra", "inter", "hybrid"}


@pytest.mark.parametrize("load", [BALANCED, SKEWED])
def test_intra_expert_wins_mixtrals_decode_batches_on_h200(load: str) -> None:
    decodes = on(of(BEST, MIXTRAL, load, 1, 64), "h200")
    assert len(decodes) == sum(tokens <= 64 for tokens in TOKENS)
    for cell in decodes:
        assert cell.loss(cell.case.intra) < 0.03, cell.tokens
    (one,) = (cell for cell in decodes if cell.tokens == 1)
    assert 2.5 < one.inter_over_intra < 3.2


def test_inter_expert_wins_mixtrals_balanced_prefills_only_with_tensorrt_llm_on_h200() -> None:
    for engine, wins in (("trtllm", True), ("vllm", False), ("sglang", False)):
        (largest,) = on(of(MEASURED, MIXTRAL, BALANCED, 16384), "h200", engine)
        assert (largest.winner == largest.case.inter) == wins, engine
    (skewed,) = on(of(BEST, MIXTRAL, SKEWED, 16384), "h200")
    assert skewed.inter_over_intra > 2


def test_a_whole_expert_is_read_again_on_l40s() -> None:
    assert ratio(on(of(BEST, MIXTRAL, BALANCED, LONG), "l40s")) > 1.5


def test_thin_experts_are_best_left_whole_in_prefills() -> None:
    balanced, skewed = (of(BEST, QWEN, load, LONG) for load in (BALANCED, SKEWED))
    assert {cell.verdict[0] for cell in balanced} == {"inter"}
    winners = Counter(cell.verdict[0] for cell in skewed)
    assert winners["intra"] == 0 and winners["hybrid"] > winners["inter"]
    assert all(cell.loss(cell.case.intra) > 0.4 for cell in balanced)


def test_mesh_compare_told_the_engine_names_better_splits_than_any_rule() -> None:
    cells = judged(cell for cell in MEASURED if cell.case.engine == "trtllm")
    told = judge(cells, "engine")
    assert told.right > 0.75 and told.ranked > 0.9
    for rule in ("intra", "inter"):
        assert judge(cells, rule).right < told.right - 0.1
