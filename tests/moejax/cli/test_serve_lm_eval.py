"""lm-eval against `moejax serve demo`: log-probabilities of given texts, and generated ones."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moejax
from tests.moejax.cli.test_serve import served

PROMPTS = ("A list is", "The import statement", "def f(", "Return the")
TOKENS = 8


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Path("demo"), 0) as (_, url):
        yield url


@pytest.fixture(scope="module")
def model() -> "moejax.Model":
    return moejax.load("demo", dtype="float32", max_seq_len=256)


def write_task(folder: Path, name: str, docs: list[dict[str, str]], **settings: Any) -> None:
    """A task of lm-eval on documents with a text and a target. JSON is YAML."""
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, docs)))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def test_lm_eval(url: str, model: "moejax.Model", tmp_path: Path) -> None:
    """Log-probabilities of given continuations, and generated ones, are those of `decode`."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    texts = [one.text for one in moejax.decode(model, PROMPTS, max_tokens=TOKENS)]
    # One that is what the model would write, and one that is not.
    docs = [
        {"text": text, "target": end} for text, best in zip(PROMPTS, texts, strict=True) for end in (best, " zebra")
    ]
    write_task(
        tmp_path, "likely", docs, output_type="loglikelihood", metric_list=[{"metric": "acc"}, {"metric": "perplexity"}]
    )
    write_task(
        tmp_path,
        "written",
        [{"text": text, "target": best} for text, best in zip(PROMPTS, texts, strict=True)],
        output_type="generate_until",
        generation_kwargs={"until": ["\0"], "max_gen_toks": TOKENS},
        metric_list=[{"metric": "exact_match"}],
    )
    folder = Path(moejax.__file__).parent / "checkpoints" / "demo"
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.moejax.cli.lm_eval_program", url, str(folder), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["results"]["likely"]["acc,none"] == 0.5
    assert found["results"]["written"]["exact_match,none"] == 1.0
    assert len(found["samples"]["likely"]) == len(docs)
    for doc, ((logprob, greedy),) in found["samples"]["likely"]:
        ids = tokenizer.encode(doc["text"] + doc["target"])
        (scored,) = moejax.decode(model, ids, max_tokens=1, prompt_logprobs=0)
        assert scored.prompt_logprobs is not None
        of_target = list(zip(ids, scored.prompt_logprobs, strict=True))[len(tokenizer.encode(doc["text"])) :]
        expected = sum(entry[token].logprob for token, entry in of_target if entry is not None)
        assert logprob == pytest.approx(expected, abs=1e-3)
        assert greedy is (doc["target"] != " zebra")
