# moejax from this checkout, for a CPU or, with --build-arg EXTRAS=serve,cuda12, for NVIDIA GPUs: CUDA's libraries come with
# JAX, and the driver from the host (docker run --gpus all).
#
#     docker build -t moejax .
#     docker run --rm -p 8000:8000 moejax serve demo --host 0.0.0.0
FROM python:3.12-slim

ARG EXTRAS=serve
# The CPU kernels are compiled on the machine that runs them, for its processor.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE /src/
COPY sharding /src/sharding
COPY convert /src/convert
COPY moejax /src/moejax
RUN python -m venv /opt/moejax
RUN /opt/moejax/bin/pip install --no-cache-dir "/src[$EXTRAS]"
RUN /opt/moejax/bin/moejax --version

# Compiled kernels and programs, and downloaded models: mount a volume here to keep them.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface PATH=/opt/moejax/bin:$PATH
VOLUME /cache
EXPOSE 8000
ENTRYPOINT ["moejax"]
CMD ["info"]
