"""Times transformers on this machine's GPU, on random weights that are made there: what no folder on its disk holds.

    python -m scripts.gpu_peer --model mixtral-8x7b -b 1,8,32 -p 4096 -n 32 --json peer.json

In the forms of `moejax bench compare`: `generate`, and compiled steps with each implementation of experts. A form that
runs out of the device's memory says so in its row, and the others go on. On a CPU where there is no GPU: for tests.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from moejax.bench.peers import Runner, transformers_peer
from moejax.families.table import family_of, named_config

FORMS: dict[str, Callable[[Any], Runner]] = {
    "generate": transformers_peer.generating,
    "grouped_mm": lambda model: transformers_peer.compiled(model, "grouped_mm"),
    "batched_mm": lambda model: transformers_peer.compiled(model, "batched_mm"),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    model, rows = random_model(options.model), []
    for name in options.forms:
        runner = FORMS[name](model)
        for batch in options.batch_size:
            row = {"form": name, "how": runner.how, "batch_size": batch, "input_len": options.input_len}
            row |= timed(runner, model.config.vocab_size, batch, options)
            rows.append(row)
            print(row, flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__, "rows": rows}
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def random_model(name: str) -> Any:
    """A model of transformers with random bfloat16 weights; `name` as `moejax info random:NAME` has it."""
    config = named_config(name)
    raw = family_of(config).hf_config(config, "bfloat16")
    settings = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5) if parameter.ndim > 1 else parameter.fill_(1.0)
        for module in model.modules():  # tables that are computed and no parameters
            if hasattr(module, "inv_freq"):
                fresh = type(module)(config=settings).to(device)
                module.inv_freq.copy_(fresh.inv_freq)
                if hasattr(module, "original_inv_freq"):
                    module.original_inv_freq = module.inv_freq
    return model


def timed(runner: Runner, vocab_size: int, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a prefill and of a step, the first round not counted; or why there are none."""
    generator = torch.Generator().manual_seed(batch)
    prompts = torch.randint(0, vocab_size, (batch, options.input_len), generator=generator).tolist()
    try:
        runs = [runner.run(prompts, options.output_len) for _ in range(1 + options.rounds)][1:]
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"failed": str(error).partition("\n")[0]}
    return {
        "prefill_seconds": statistics.median(run.prefill_seconds for run in runs),
        "step_seconds": statistics.median(run.decode_seconds / (options.output_len - 1) for run in runs),
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mixtral-8x7b", help="(%(default)s)")
    parser.add_argument("-b", "--batch-size", type=numbers, default="1,8,32", help="(%(default)s)")
    parser.add_argument("-p", "--input-len", type=int, default=4096, help="(%(default)s)")
    parser.add_argument("-n", "--output-len", type=int, default=32, help="at least 2 (%(default)s)")
    parser.add_argument("-r", "--rounds", type=int, default=2, help="(%(default)s)")
    parser.add_argument(
        "--forms", type=lambda text: text.split(","), default=list(FORMS), help=f"of {', '.join(FORMS)}"
    )
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
