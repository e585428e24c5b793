"""How near `moejax mesh calibrate` comes here: a model is timed in turns with the calibration, then predicted.

    python -m scripts.calibration_errors --model 186m --batch-size 1,8

A shared machine reads its memory at one speed for some seconds and at nearly twice that for the next: a model that is
timed minutes after a calibration then differs for that reason alone. In turns, what remains is the error of the
prediction. Weights are random; one device, bfloat16.
"""

import argparse
from collections.abc import Sequence

from moejax.families.table import named_configs
from moejax.loading import random_model
from moejax.measuring.calibration import ONE_DEVICE, calibrate
from moejax.measuring.measured import ModelTimes
from moejax.planning.compare import ComparisonInputs, predict_split
from moejax.planning.routing import RoutingModel
from moejax.planning.workload import Workload

COLUMNS = "batch | step predicted ms | measured | error | prefill predicted ms | measured | error"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="186m", choices=sorted(named_configs()))
    parser.add_argument("--batch-size", default="1,8", help="comma-separated")
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--context", type=int, default=2048)
    asked = parser.parse_args(argv)
    config = named_configs()[asked.model]
    model = random_model(config, ONE_DEVICE, "bfloat16")
    workloads = [
        Workload(batch_size=int(size), input_len=asked.input_len, context=asked.context)
        for size in asked.batch_size.split(",")
    ]
    times = [ModelTimes(model, workload) for workload in workloads]
    hardware = calibrate(beside=times)
    plan = ComparisonInputs(
        config=config, hardware=hardware, routing=RoutingModel(config.num_experts, config.experts_per_token)
    )
    print(COLUMNS)
    for workload, one in zip(workloads, times, strict=True):
        row = predict_split(plan, ONE_DEVICE, workload)
        assert row.decode is not None and row.prefill is not None, "it was just timed, so it fits"
        cells = [str(workload.batch_size)]
        for predicted, measured in (
            (row.decode.seconds, one.decode_seconds),
            (row.prefill.seconds, one.prefill_seconds),
        ):
            cells += [f"{1e3 * predicted:.4g}", f"{1e3 * measured:.4g}", f"{predicted / measured - 1:+.0%}"]
        print(" | ".join(cells))


if __name__ == "__main__":
    main()
