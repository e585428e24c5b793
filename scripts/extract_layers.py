"""Takes measured MoE layers out of the tables of aiconfigurator-core (NVIDIA, Apache-2.0), for two pages.

    pip install 'moejax[silicon]'
    python -m scripts.extract_layers

Writes docs/intra_vs_inter/layers.csv.gz, a line for each split with microseconds by tokens, and the NOTICE beside it.
docs/intra_vs_inter.md and docs/predictions.md are made of it.
"""

import csv
import gzip
import io
from collections.abc import Iterator
from typing import Any

from moejax.planning import silicon
from moejax.planning.silicon import DTYPES, ENGINES, SYSTEMS, SiliconTables
from scripts.measured_layers import DEVICES, FOLDER, LAYERS, LOADS, MODELS, TOKENS

SPLIT = ["moe_tp_size", "moe_ep_size", "distribution"]
HEADER = ("hardware", "engine", "dtype", "model", "tensor", "expert", "load", *map(str, TOKENS))


def main() -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    kernels: dict[str, set[str]] = {}
    for hardware in SYSTEMS:
        for engine in ENGINES:
            tables = SiliconTables(system=SYSTEMS[hardware], engine=engine)
            for row, kernel in series(hardware, tables):
                writer.writerow(row)
                kernels.setdefault(f"{hardware}: {ENGINES[engine]} {tables.version}", set()).add(kernel)
    FOLDER.mkdir(exist_ok=True)
    LAYERS.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))  # the same bytes for the same rows
    (FOLDER / "NOTICE").write_text(notice(kernels), encoding="utf-8")


def series(hardware: str, tables: SiliconTables) -> Iterator[tuple[list[Any], str]]:
    """A row for each split of each model's layer under each load, and the kernel that was measured.

    Raises:
        ValueError: where several kernels, or one several times, were measured: it has to be said which is meant.
    """
    moe = tables.read("moe")
    usual = moe.distribution.isin(LOADS) & moe.num_tokens.isin(TOKENS)
    usual &= (moe.moe_tp_size * moe.moe_ep_size).isin(DEVICES)
    for dtype in DTYPES:
        layers = silicon.gated(moe.loc[usual], dtype)
        for model, config in MODELS.items():
            of_model = (
                (layers.hidden_size == config.embed_dim)
                & (layers.inter_size == config.expert_dim)
                & (layers.topk == config.experts_per_token)
                & (layers.num_experts == config.num_experts)
            )
            for key, one in layers.loc[of_model].groupby(SPLIT):
                tensor, expert, load = key  # type: ignore[misc]  # of SPLIT
                kernel, *others = one.kernel_source.unique()
                if others or one.num_tokens.duplicated().any():
                    raise ValueError(
                        f"{hardware}, {tables.engine}: {model}, tensor={tensor}, expert={expert}, {load} was measured "
                        f"several times, by {', '.join([kernel, *others])}; choose one in scripts/extract_layers.py"
                    )
                seconds = dict(zip(one.num_tokens, one.seconds, strict=True))
                times = [f"{1e6 * seconds[tokens]:.4g}" if tokens in seconds else "" for tokens in TOKENS]
                yield [hardware, tables.engine, dtype, model, tensor, expert, load, *times], str(kernel)


def notice(kernels: dict[str, set[str]]) -> str:
    """Where the extract is from, under which licence, and what was changed."""
    lines = [f"  {name}: {', '.join(sorted(found))}" for name, found in kernels.items()]
    return (
        f"layers.csv.gz: an extract of the measured tables in the PyPI package {silicon.PACKAGE} "
        f"{silicon.installed()}\n"
        "(https://github.com/ai-dynamo/aiconfigurator, NVIDIA Corporation), Apache License 2.0.\n"
        "Changed: rows selected, columns renamed and turned, times in microseconds of four digits.\n\n"
        "Engines, their versions, and the kernels that were measured:\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
