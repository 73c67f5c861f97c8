#!/usr/bin/env bash
# What needs a GPU, in at most 8 minutes of one: the most valuable part first, each with its own time limit. Results are
# JSON lines in $OUT/gpu.jsonl, written as they come, so that a stop loses nothing.
#
#     OUT=results bash tests/gpu.sh [--parts tests,lora,...] [--dry]
#
# --parts selects; --dry walks through all of it on the CPU with tiny sizes, and shows nothing but that it runs. Models:
# shapes with random weights for time and memory. `signs` and `study` need a trained one: SmolLM2 in lorascope's cache
# (for `signs`), else MiniLM, from there or as a folder in .gpu/minilm (in float16 it is 45 MB). What the machine lacks
# of array-api-compat, msgspec, gguf, datasets, peft, pytest and bitsandbytes (for nf4 alone) is put on the path where
# it lies as wheels in .gpu/wheels.
set -u
cd "$(dirname "$0")/.."
export OUT=${OUT:-gpu-results} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
dry= parts=tests,lora,sweep,methods,delta,signs,study
while [ $# -gt 0 ]; do
  case $1 in
    --dry) dry=--dry ;;
    --parts) parts=$2; shift ;;
    *) echo "gpu.sh: $1 is not known; expected --parts NAME,... or --dry" >&2; exit 2 ;;
  esac
  shift
done
if ls .gpu/wheels/*.whl >/dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$OUT/site" .gpu/wheels/*.whl
  export PYTHONPATH="$OUT/site:${PYTHONPATH:-}"
fi

failed=0
part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 started=$SECONDS code
  shift 2
  case ",$parts," in *",$name,"*) ;; *) return ;; esac
  echo "== $name, at most $limit s" >&2
  timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1
  code=$?
  [ $code = 0 ] || { failed=1; tail -n 5 "$OUT/$name.log" >&2; }
  printf '{"part": "%s", "ended": %d, "seconds": %d, "limit": %d}\n' "$name" $code $((SECONDS - started)) "$limit" >>"$OUT/gpu.jsonl"
}

for name in ${parts//,/ }; do
  case ",tests,lora,sweep,methods,delta,signs,study," in
    *",$name,"*) ;;
    *) echo "gpu.sh: there is no part $name; expected tests, lora, sweep, methods, delta, signs or study" >&2; exit 2 ;;
  esac
done
python3 -m tests.gpu machine $dry || exit 1
part tests 90 python3 -m pytest -q -o addopts= -m gpu ${dry:+--collect-only} $(grep -rl 'mark\.gpu' --include='test_*.py' tests)
part lora 75 python3 -m tests.gpu lora $dry
part sweep 90 python3 -m tests.gpu sweep $dry
part methods 60 python3 -m tests.gpu methods $dry
part delta 45 python3 -m tests.gpu delta $dry
part signs 75 python3 -m tests.gpu signs $dry
left=$((480 - SECONDS))
part study $((left > 45 ? left : 45)) python3 -m tests.gpu study $dry
exit $failed
