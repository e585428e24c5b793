"""Makes docs/predictions.md: what moejax predicts beside what others measured, every miss with its reason.

    python -m scripts.predictions_page

Reads docs/predictions/*.json and the hardware files, and predicts; takes seconds and needs no package besides moejax's.
Where its files are from is at the end of the page.
"""

from typing import NamedTuple

from moejax.runtime.buckets import PREFILL_TOKENS
from scripts.layer_errors import (
    MEDIAN_BAR,
    RANKING_BAR,
    TIE,
    WITHIN_BAR,
    differing,
    gpu_ranking_table,
    held_out,
    held_out_table,
    layers_table,
    outside_lines,
    ranking_table,
    reported,
    reported_within,
    right_share,
    sglang_elsewhere,
    tied,
    titles,
    wrong_lines,
)
from scripts.page_text import wrapped
from scripts.predicted_layers import WITHIN, off
from scripts.predicted_steps import PHASES
from scripts.predictions_data import DATA, read
from scripts.report_tables import table
from scripts.step_tables import (
    GENERATION_BAR,
    STEP_BAR,
    against_measured,
    asked,
    batch_errors,
    batch_table,
    closest,
    elsewhere,
    generation_table,
    misses_table,
    missing_per_step,
    most_off,
    named,
    rest_of_step,
    roofline_errors,
    steps_table,
    whole_expert_misses,
    whole_experts,
    within_bar,
    worst_fitted,
)

PAGE = DATA.parent / "predictions.md"
NEWLINE = "\n"  # inside an f-string a backslash is an error before Python 3.12


class BarResult(NamedTuple):
    """One line of the summary."""

    what: str
    bar: str
    reached: str
    met: bool | None  # None where there is no bar

    @property
    def cells(self) -> tuple[str, str, str, str]:
        return self.what, self.bar, self.reached, {None: "", True: "met", False: "**missed**"}[self.met]


def page() -> str:
    """The whole page."""
    parts = [_answer(), _generations(), _batches(), _layers(), _ranking(), _steps(), _made()]
    return "\n".join(map(wrapped, parts))


def verdicts() -> list[BarResult]:
    """The summary."""
    name, worst = closest()
    seven = f"gpt-fast's seven numbers, --software {name}"
    found = [BarResult(seven, f"all within {GENERATION_BAR:.0%}", f"worst {worst:.1%}", worst <= GENERATION_BAR)]
    return [*found, *_layer_verdicts(), *_ranking_verdicts(), *_step_verdicts(), *_shown_verdicts()]


def _shown_verdicts() -> list[BarResult]:
    """What has no bar: other GPUs, and whole runs of an engine."""
    lines = []
    for times in ("fitted", "measured"):
        rows = elsewhere()
        right, worst = within_bar(rows, times), max(abs(one.error(times)) for one in rows)
        what = f"AIConfigurator's decode steps and prefills on H100 and B200, --times {times}"
        lines.append(BarResult(what, "", f"{right} of {len(rows)} within {STEP_BAR:.0%}, worst {worst:.0%}", None))
    for at, given in enumerate(read("published")["vllm"]):
        what = f"vLLM's whole runs of early 2024, {given['devices']} x {given['hardware']}, seconds"
        lines.append(BarResult(what, "", batch_errors(at), None))
    return lines


def _layer_verdicts() -> list[BarResult]:
    bar = f"median {MEDIAN_BAR:.0%}, {WITHIN_BAR:.0%} within {WITHIN:.0%}"
    count, middle, within = off(held_out())
    other, medians = reported_within("other load"), [one["median"] for one in reported("other load")]
    rows = sum(one["rows"] for one in reported("other load"))
    spread = f"medians {min(medians):.1%} to {max(medians):.1%}, {other:.1%} within {WITHIN:.0%}"
    return [
        BarResult(
            f"{count:,} MoE layers of a model not fitted to",
            bar,
            f"median {middle:.1%}, {within:.1%} within {WITHIN:.0%}",
            middle <= MEDIAN_BAR and within >= WITHIN_BAR,
        ),
        BarResult(
            f"{rows:,} MoE layers under a load not fitted to",
            bar,
            spread,
            max(medians) <= MEDIAN_BAR and other >= WITHIN_BAR,
        ),
    ]


def _ranking_verdicts() -> list[BarResult]:
    every = differing()
    kinds = {
        "pairs of tensor and expert": every,
        f"of these, those predicted more than {TIE:.0%} apart": [cell for cell in every if not tied(cell)],
    }
    lines = []
    for what, found in kinds.items():
        share = right_share(found)
        reached = f"{share:.1%} of {len(found):,}"
        lines.append(BarResult(what, f"{RANKING_BAR:.0%} right", reached, share >= RANKING_BAR))
    return lines


def _step_verdicts() -> list[BarResult]:
    lines = []
    for phase, plural in zip(PHASES, ("decode steps", "prefills"), strict=True):
        rows = asked(phase)
        for times in ("fitted", "measured"):
            right, worst = within_bar(rows, times), max(abs(one.error(times)) for one in rows)
            what = f"AIConfigurator's {plural} on A100 and H200, --times {times}"
            reached = f"{right} of {len(rows)}, worst {worst:.0%}"
            lines.append(BarResult(what, f"all within {STEP_BAR:.0%}", reached, right == len(rows)))
    return lines


def _answer() -> str:
    rows = [one.cells for one in verdicts()]
    decode, prefill = (worst_fitted(phase) for phase in PHASES)
    whole, missed = whole_expert_misses()
    measured = within_bar(asked("decode"), "measured")
    return f"""# Predicted beside measured

Whether `moejax mesh compare` says what GPUs then do, held against public measurements of others. No number here was
measured by us: moejax has not run on a mesh of GPUs.

{table(("what", "bar", "reached", ""), rows)}
In short:

- gpt-fast's generations come out within {closest()[1]:.0%} with the terms of the software nearest to it; with
  vLLM's, within {most_off("vllm"):.0%}. No run of a present vLLM was compared: those of early 2024 took longer than
  predicted, for reasons that their section has.
- Which of two splits is faster comes out right unless they are predicted nearly equal: then measure, or ask the tables.
- Fitted terms of whole steps are off most where a device holds whole experts: {whole} of {missed} misses. The worst are
  {decode.error("fitted"):+.0%} decoding ({named(decode)}) and {prefill.error("fitted"):+.0%} in a prefill
  ({named(prefill)}). `--times measured` (`pip install 'moejax[silicon]'`) takes the tables themselves where they have
  the shape: {measured} of {len(asked("decode"))} decode steps are within {STEP_BAR:.0%} then.
- On a CPU, `moejax mesh calibrate` measures the device itself; how near that comes:
  [performance-model.md](performance-model.md), [mesh-checks.md](mesh-checks.md).
"""


def _generations() -> str:
    name, worst = closest()
    other = read("published")["tensorrt-llm"]
    return f"""## A generation: gpt-fast on 1 to 8 A100

{read("published")["gpt-fast"]["what"]}: tokens per second, and how far off the prediction is by `--software`.
`--software {name}` is closest, its worst error {worst:.1%}; the column "predicted" is of it.

{generation_table()}
- gpt-fast counts 200 tokens over the prefill and 199 steps, and so is it predicted, with tokens that choose evenly
  (`--skew uniform`). A step is the mean over contexts of 6 to 204.
- int8 is of all weights. The planner has no 8-bit weights yet: the script halves their bytes and leaves the rest, the
  kernels and rates of bf16 among it. A kernel made for 8-bit weights is another one: where an engine's small products
  are bound by its tiles and not by bytes, half the bytes bring it less than they brought gpt-fast.
- Over 8 devices the prediction is too slow. Held against [AIConfigurator's step](#whole-steps-aiconfigurator) there, it
  is the dense products, collectives and norms that are long, by {rest_of_step():.1%} of the step; experts and attention
  are looked up for that comparison.
- The roofline (`--software ideal`) leaves out what a kernel costs besides its bytes: {roofline_errors()} too good.
- The last line is {other["what"]}. No bar: it is of an earlier release than the one whose kernels were measured, and
  all are too fast for it.
- Sources: <{read("published")["gpt-fast"]["source"]}>, <{other["source"]}>.
"""


def _batches() -> str:
    first, second = read("published")["vllm"]
    return f"""## A whole batch: vLLM in early 2024

Mixtral 8x7B, bf16, 1,000 tokens in and 50 out: the prefill and 49 steps, with `--software vllm`, which is today's. No
bar: the releases are two years apart.

{batch_table()}
- {first["what"]} ({batch_errors(0)}): at batch 1 it took {missing_per_step(0):.1f} ms per output token more than
  predicted. That is launches, before CUDA graphs were whole. It was the first release with a fused kernel of experts,
  too, and its prefill as far from today's: the error is as large at batch 64 as at 1.
- {second["what"]} ({batch_errors(1)}): the same fixed part is {missing_per_step(1):.1f} ms per output token here, and
  less of a step over two devices; large batches are prefill for the most part, which has become faster since.
- Sources: <{first["source"]}>, <{second["source"]}>.
"""


def _layers() -> str:
    return f"""## MoE layers

The terms are fitted to layers of many models ({", ".join(titles())}),
but not to those of Qwen3-30B-A3B, and not to any under a power law of 1.2. These are the layers of Qwen3-30B-A3B, in
every split over at most 8 devices, 1 to 16,384 tokens, balanced and skewed:

{held_out_table()}
By GPU, engine and dtype, as `scripts/fit_hardware.py` reports it: median error and share within 25%, in bold past the
bar; of dense products, decode attention and prompts the median error of the fit. "The version before" are layers of the
engine's version before, where the tables still have it, to which nothing was fitted:

{layers_table()}
Another model's layers, where they are past the bar (SGLang without the A100: {sglang_elsewhere():.1%} within 25%):

{NEWLINE.join(outside_lines())}

Another load: {reported_within("other load"):.1%} of those layers are within 25%, and {reported_within("fitted"):.1%} of
the ones that were fitted. So it is hardly the load. It is the terms, which are few, and smooth where a kernel changes
its tiles from one number of tokens to the next.

Terms are those of a version, which the line `times:` names. In fp8 on H200, FlashInfer's CUTLASS experts took the place
of vLLM's own Triton kernel between 0.19 and 0.24, and the terms of 0.24 are {before("h200")} off for 0.19; on B200,
TensorRT-LLM's took its place, and in fp8 they are {before("b200")} off for 0.22. Where the kernel stayed, as vLLM's
Triton experts in bf16 on H200 and TensorRT-LLM's, the version before is as near as this one; SGLang's is less near,
with the same kernel.

Dense products in fp8 under vLLM: one fixed time and one rate do not fit both ends. Small products come out too long,
large ones are near. Decode attention under TensorRT-LLM: furthest off where very many query heads share one of keys and
values, as in few models, and at the largest batches.

gpt-oss was measured with 4-bit experts only, a format that the planner does not have; most engines were measured in it
with at most one other shape, too few to fit terms to one and hold out the other. It is not predicted.
"""


def before(hardware: str) -> str:
    """How far vLLM's terms in fp8 are off for the version before, median."""
    return f"{read('fit_errors')[hardware]['vllm']['float8_e4m3fn']['other version']['median']:.0%}"


def _ranking() -> str:
    return f"""## tensor against expert

The same layer over 2, 4 or 8 devices, split inside its experts (tensor) and between them (expert), of Mixtral 8x7B and
Qwen3-30B-A3B, without collectives: of all pairs that are more than 10% apart on silicon, how many the fitted terms rank
rightly (in bold below {RANKING_BAR:.0%}).

{ranking_table()}
{gpu_ranking_table()}
That is as a benchmark runs one layer, over and over; with weights that come from memory, as in a model, the terms rank
{right_share(differing(), resident=False):.1%} as the benchmark does. The wrong ones:

{NEWLINE.join(wrong_lines())}

With `--times measured` every pair is right by construction, for these very measurements are looked up. That says
nothing of other shapes, nor of what is between the tables' points.
"""


def _steps() -> str:
    return f"""## Whole steps: AIConfigurator

Mixtral 8x7B, bf16, NVIDIA's AIConfigurator on the same configurations: ten splits over 1 to 8 devices, batch 1, 8, 32
and 128, a power law of 1.2; a decode step (5 tokens in, 200 out) and a prefill of 512 tokens each. Median error, how
many are within {STEP_BAR:.0%} (in brackets), and the worst. Its numbers are estimates, put together from the same
tables as ours: agreement shows that nothing is left out, not that it is true. Of gpt-fast's three bf16 numbers it is
{against_measured():.1%} off at most.

{steps_table()}
On B200, SGLang runs Mixtral and some other models with its Triton kernel, and the rest with another one. Each kernel
has terms of its own, those of Triton without regard to which shapes are tuned: take `--times measured` there.

Decode steps past the bar on A100 and H200 with fitted terms, and which part is off most: "longer" are experts that take
longer than predicted, "not tuned" those for whose shape the engine has no configuration of its kernel.

{misses_table("decode", "fitted")}
Few of the layers that the terms were fitted to have one or two experts on a device. One whole expert of 14,336 columns
takes SGLang on an H200 {whole_experts():.0%} longer in the median than the terms say, under a balanced load: it is the
kernel and not the load. The other way round, slices of 1,792 columns are read faster than the terms say at batch 1.

Prefills past the bar with fitted terms:

{misses_table("prefill", "fitted")}
And with `--times measured`:

{misses_table("prefill", "measured")}
moejax feeds at most {PREFILL_TOKENS:,} tokens in one call, and AIConfigurator all in one. Kernels whose time is not in
proportion to the tokens, such as those of SGLang there, make these two different questions.
"""


def _made() -> str:
    return """## How this page is made

```console
$ python -m scripts.predictions_page     # the page, in seconds, from the hardware files and the four files below
$ python -m scripts.fit_hardware --report docs/predictions/fit_errors.json    # minutes, with moejax[silicon]
$ python -m scripts.extract_layers       # docs/intra_vs_inter/layers.csv.gz, with moejax[silicon]
$ python -m scripts.predicted_steps      # docs/predictions/measured.json, with moejax[silicon]
$ python scripts/aic_estimates.py FOLDER # docs/predictions/aiconfigurator.json, in an environment of its own
```

When hardware files are fitted anew: the second with `--write` as well, then the fourth, then the first. A test fails
while the page, or a file that it is made of, is of other hardware files. Sources, licences and what was changed:
[predictions/NOTICE](predictions/NOTICE), [intra_vs_inter/NOTICE](intra_vs_inter/NOTICE).
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
