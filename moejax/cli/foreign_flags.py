"""Flags of `decode` that users of vLLM, llama.cpp, transformers and gpt-fast are used to, and what to use here."""

from collections.abc import Mapping

# Their name -> our flag.
OURS: Mapping[str, str] = {
    # lengths
    "--max-model-len": "--max-seq-len",
    "--max-sequence-length": "--max-seq-len",
    "--input-file": "--input",
    "--output-file": "--output",
    "--ctx-size": "--max-seq-len",
    "--context-length": "--max-seq-len",
    "--n-ctx": "--max-seq-len",
    "--max-length": "--max-tokens",
    "--max-gen-len": "--max-tokens",
    "--n-predict": "--max-tokens",
    "--num-predict": "--max-tokens",
    "--predict": "--max-tokens",
    "--output-len": "--max-tokens",
    "--min-new-tokens": "--min-tokens",
    "--min-length": "--min-tokens",
    # sampling
    "--temp": "--temperature",
    "--repeat-penalty": "--repetition-penalty",
    "--num-return-sequences": "--n",
    "--num-samples": "--n",
    "--best-of": "--n",
    "--random-seed": "--seed",
    "--top-logprobs": "--logprobs",
    "--num-logprobs": "--logprobs",
    # stopping
    "--stop-strings": "--stop",
    "--stop-sequences": "--stop",
    "--reverse-prompt": "--stop",
    "--eos-token-id": "--stop-token-id",
    "--stop-token-ids": "--stop-token-id",
    # prompts
    "-p": "--prompt",
    "--text": "--prompt",
    "--prompts": "--prompt",
    "--input-ids": "--token-ids",
    "--prompt-token-ids": "--token-ids",
    "--system-prompt": "--system",
    "--conversation": "--chat",
    # model and output
    "--torch-dtype": "--dtype",
    "--precision": "--dtype",
    "--moe-backend": "--expert-backend",
    "--experts-implementation": "--expert-backend",
    "--format": "--json",
    "--output-format": "--json",
    "--verbose": "--debug",
}

_CHECKPOINT = "the checkpoint is the argument without a flag, as in: moejax decode PATH"
_SERVE = "decode answers no requests; moejax serve does, and has this flag"
_TENSOR, _EXPERT, _DATA = (f"a mesh says it: --mesh {axis}=N" for axis in ("tensor", "expert", "data"))
_QUANTISED = "quantised weights do not exist yet; --dtype is bfloat16, float16 or float32"
_FILE = "give it as --prompt @FILE"

# Their name -> why there is no such flag, and what to do.
NOT_HERE: Mapping[str, str] = {
    "--model": _CHECKPOINT,
    "--model-path": _CHECKPOINT,
    "--checkpoint": _CHECKPOINT,
    "-m": _CHECKPOINT,
    "--tensor-parallel-size": _TENSOR,
    "--pipeline-parallel-size": "layers are not split over devices; --mesh tensor=N or expert=N splits each of them",
    "--data-parallel-size": _DATA,
    "--expert-parallel-size": _EXPERT,
    "--enable-expert-parallel": _EXPERT,
    "--tp": _TENSOR,
    "--ep": _EXPERT,
    "--dp": _DATA,
    "--tensor-split": _TENSOR,
    "--max-num-seqs": "64 sequences are decoded at a time, and more wait; moejax serve has --max-batch",
    "--port": _SERVE,
    "--host": _SERVE,
    "--api-key": _SERVE,
    "--served-model-name": _SERVE,
    "--quantization": _QUANTISED,
    "--load-in-4bit": _QUANTISED,
    "--load-in-8bit": _QUANTISED,
    "--kv-cache-dtype": "the cache has the dtype of the weights, see --dtype",
    "--file": _FILE,
    "-f": _FILE,
    "--prompt-file": _FILE,
    "--tokenizer": "the tokenizer is read from the checkpoint's folder",
    "--chat-template": "the chat template is read from the checkpoint's folder",
    "--trust-remote-code": "code that comes with a checkpoint is never run",
    "--do-sample": "sampling begins with a --temperature above 0",
    "--greedy": "greedy decoding is the default, --temperature 0",
    "--device": "JAX chooses the device; the environment variable JAX_PLATFORMS=cpu or cuda overrides it",
    "--n-gpu-layers": "the whole model is on the device, or on those of --mesh; JAX_PLATFORMS=cpu or cuda chooses it",
    "--gpu-memory-utilization": "set the environment variable XLA_PYTHON_CLIENT_MEM_FRACTION",
    "--batch-size": "all prompts of a call are decoded together, repeat --prompt",
    "--threads": "XLA uses every core that this process may; taskset limits it",
    "--num-beams": "beam search does not exist; --n with a --temperature samples several outputs",
    "--use-beam-search": "beam search does not exist; --n with a --temperature samples several outputs",
    "--lora-path": "adapters do not exist yet; merge them into the checkpoint",
    "--enable-lora": "adapters do not exist yet; merge them into the checkpoint",
    "--compile": "every program is compiled; --no-compile-cache keeps compiled programs for this run only",
}

# Of `serve`: vLLM's, where it has no flag of that name.
SERVING_OURS: Mapping[str, str] = {
    "--max-num-batched-tokens": "--prefill-chunk",
    "--torch-dtype": "--dtype",
    "--tokenizer-revision": "--revision",
    "--code-revision": "--revision",
    "--moe-backend": "--expert-backend",
}
_ENGINE = "the engine has no such choice: chunked prefill and continuous batching are always on"
SERVING_NOT_HERE: Mapping[str, str] = {
    "--model": "the checkpoint is the argument without a flag, as in: moejax serve PATH",
    "--tensor-parallel-size": _TENSOR,
    "-tp": _TENSOR,
    "--tp": _TENSOR,
    "--data-parallel-size": _DATA,
    "--dp": _DATA,
    "--expert-parallel-size": _EXPERT,
    "--ep": _EXPERT,
    "--enable-expert-parallel": _EXPERT,
    "--pipeline-parallel-size": NOT_HERE["--pipeline-parallel-size"],
    "--gpu-memory-utilization": NOT_HERE["--gpu-memory-utilization"],
    "--quantization": _QUANTISED,
    "--kv-cache-dtype": NOT_HERE["--kv-cache-dtype"],
    "--trust-remote-code": NOT_HERE["--trust-remote-code"],
    "--tokenizer": NOT_HERE["--tokenizer"],
    "--device": NOT_HERE["--device"],
    "--enable-lora": NOT_HERE["--enable-lora"],
    "--enable-chunked-prefill": _ENGINE,
    "--enable-prefix-caching": "prefixes are not shared between requests",
    "--enforce-eager": "every program is compiled; --no-compile-cache keeps compiled programs for this run only",
    "--seed": "a request's seed is in its body; --model-seed is of the weights of random:NAME",
    "--disable-log-requests": "requests are logged with --log-requests only",
    "--swap-space": "nothing is swapped; requests wait in a queue, --max-queue",
    "--block-size": "the cache has no blocks; --max-batch and --max-seq-len say its size",
    "--distributed-executor-backend": "one process serves, on all devices of --mesh",
}

# Of `mesh compare`, where the flags are about a prediction.
_EVERY_SPLIT = "every split is compared; moejax mesh show --mesh shows one of them"
_ONE_STEP = "what is predicted is one decode step, at --context tokens, and the prefill"
PLANNING_OURS: Mapping[str, str] = {
    "--num-gpus": "--devices",
    "--gpus": "--devices",
    "--num-devices": "--devices",
    "--total-gpus": "--devices",
    "--gpu": "--hardware",
    "--system": "--hardware",
    "--gpu-type": "--hardware",
    "--device": "--hardware",
    "--checkpoint": "--model",
    "--model-path": "--model",
    "-m": "--model",
    "--batch": "--batch-size",
    "--target-concurrency": "--batch-size",
    "--max-num-seqs": "--batch-size",
    "--prompt-len": "--input-len",
    "--isl": "--input-len",
    "--itl": "--tpot",
    "--max-model-len": "--context",
    "--max-seq-len": "--context",
    "--ctx-size": "--context",
    "--gpu-memory-utilization": "--usable-fraction",
    "--torch-dtype": "--dtype",
    "--output": "--plot",
}
PLANNING_NOT_HERE: Mapping[str, str] = {
    "--mesh": _EVERY_SPLIT,
    "--tensor-parallel-size": _EVERY_SPLIT,
    "--expert-parallel-size": _EVERY_SPLIT,
    "--data-parallel-size": _EVERY_SPLIT,
    "--tp": _EVERY_SPLIT,
    "--ep": _EVERY_SPLIT,
    "--output-len": _ONE_STEP,
    "--osl": _ONE_STEP,
    "--request-latency": f"{_ONE_STEP}; --ttft and --tpot are the most that each may take",
    "--target-request-rate": "--batch-size says how many sequences are decoded at a time, --ttft and --tpot how fast",
    "-n": f"{_ONE_STEP} (it is --output-len elsewhere; how many devices is --devices)",
    "--quantization": _QUANTISED,
}
