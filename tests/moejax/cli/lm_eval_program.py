"""Runs lm-eval's `local-completions` on data of a folder against a server; prints as JSON what it found.

Arguments: the URL of the server, the folder of the tokenizer, and the folder of the tasks.
"""

import json
import sys
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager


def main(url: str, tokenizer: str, tasks: str) -> None:
    evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its parameters from type checkers
    found = evaluate(
        model="local-completions",
        model_args={
            "model": "demo",
            "base_url": f"{url}/v1/completions",
            "tokenizer": tokenizer,
            "tokenizer_backend": "huggingface",
            "max_length": 256,
            "add_bos_token": True,
            "batch_size": 2,
            "max_retries": 1,
        },
        tasks=["likely", "written"],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        bootstrap_iters=0,
    )
    samples = {task: [(one["doc"], one["filtered_resps"]) for one in all_] for task, all_ in found["samples"].items()}
    print(json.dumps({"results": found["results"], "samples": samples}, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
