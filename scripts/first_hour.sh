#!/usr/bin/env bash
# A new user's first hour, typed: installs from this checkout as the Dockerfile does, into a new virtual environment and
# with an empty home folder, and walks through what README and docs show. Ends at the first thing that does not work.
#
#     scripts/first_hour.sh [FOLDER]     # a new folder; build/first_hour without one, which is removed first
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${1:-$root/build/first_hour}"
[ $# -gt 0 ] || rm -rf "$folder"
[ ! -e "$folder" ] || { echo "$folder exists; name a new folder" >&2; exit 1; }
# Whatever the machine is set up for, a new user's is not.
for name in $(compgen -e | grep -E '^(JAX_|XLA_|HF_|PYTHON|VIRTUAL_ENV)' || true); do unset "$name"; done
export HF_HUB_OFFLINE=1

say() { printf '\n== %s\n' "$*"; }
expect() { # expect PATTERN: what is read has it
  local text; text="$(cat)"
  printf '%s\n' "$text"
  grep -qE -- "$1" <<<"$text" || { echo "expected $1 in the above" >&2; exit 1; }
}

say "install, as the Dockerfile does"
${PYTHON:-python3} "$root/scripts/docker_steps.py" "$folder"
mkdir "$folder/home" "$folder/work"
export HOME="$folder/home" PATH="$folder/moejax/bin:$PATH"
cd "$folder/work"

say "what is here"
moejax info | expect 'backend .*auto takes here'
moejax info demo | expect 'parameters'

say "decode: compiles the CPU kernels, says how far it is, and keeps them"
moejax decode demo --prompt "A list is" --max-tokens 16 2>&1 | expect 'parts compiled'
moejax decode demo --prompt "A list is" --max-tokens 16 2>&1 | expect 'generated 16'

say "decode from Python, beside files of any name"
echo 'raise RuntimeError("not ours")' | tee sharding.py convert.py >/dev/null
cat >script.py <<'PYTHON'
import moejax

model = moejax.load("demo", dtype="float32")
(result,) = moejax.decode(model, ["A list is"], max_tokens=8)
print(result.outputs[0].text, model.programs.summary)
PYTHON
python script.py | expect 'programs'
python script.py | expect 'from the cache'

say "split over simulated devices"
moejax decode demo --prompt "A list is" --max-tokens 8 --mesh expert=4,tensor=2 --simulate-devices 8 2>&1 | expect 'expert=4'

say "convert there and back"
moejax convert demo converted
moejax convert converted back
moejax decode back --prompt "A list is" --max-tokens 8 2>&1 | expect 'generated 8'

say "compare splits of a model that is not here"
moejax mesh compare --model mixtral-8x7b --devices 8 --hardware h100-sxm | expect 'tensor=8'

say "serve"
moejax serve demo --port 0 2>serve.log &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 600); do grep -q '^ready' serve.log && break; kill -0 "$server"; sleep 0.5; done
url="$(grep -oE 'http://[0-9.]+:[0-9]+' serve.log | head -1)"
curl -sS "$url/health" | expect '"ready"'
curl -sS "$url/v1/completions" -H 'content-type: application/json' -d '{"prompt": "A list is", "max_tokens": 8}' |
  expect '"text"'
kill "$server"
wait "$server"
cat serve.log | expect 'stopped: 1 requests finished'

say "the commands of README and docs, as they stand"
PYTHONPATH="$root" python -m scripts.walk_docs "$folder/walk"

say "mistakes are one line"
(moejax decode no-such-folder --prompt x 2>&1 || true) | expect '^error: '

say "the first hour works"
