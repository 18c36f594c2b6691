#!/usr/bin/env bash
# Measures everything that needs a GPU, in at most twelve minutes, on a machine with PyTorch and nothing else to install:
#
#     bash benchmarks/gpu.sh --out runs/gpu
#     bash benchmarks/gpu.sh --out runs/gpu --steps imports,training
#
# Every step of gpu_steps.py is a process of its own with a time limit. It adds lines of JSON to OUT/STEP.jsonl as it goes, so a step
# that fails or takes too long costs only its own remainder; OUT/steps.jsonl says how each ended, and gpu_report.py makes tables.
# Where TorchRec and FBGEMM are carried as an archive of site packages, --site names it. --quick takes a minute, and runs on a CPU
# too. The exit status is 1 if a step failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=runs/gpu steps="" site="" quick=""
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2 && shift 2 ;;
        --steps) steps=$2 && shift 2 ;;
        --site) site=$2 && shift 2 ;;
        --quick) quick=--quick && shift ;;
        *) echo "error: $1: expected --out FOLDER, --steps A,B, --site ARCHIVE or --quick" >&2 && exit 2 ;;
    esac
done
# Seconds per step. The first ones follow one after the other, so that nothing disturbs their times; the others measure no time and
# then run side by side.
alone="imports=30 graphs=100 lookup=40 attention=25 training=75 search=20 export=70 compiled=150"
together="golden=40 tests=200 programs=200"
limits="$alone $together"
[ -n "$steps" ] || steps=$(echo "$limits" | sed 's/=[0-9]*//g; s/ /,/g')
for step in ${steps//,/ }; do
    case " $limits " in *" $step="*) ;; *) echo "error: $step: expected steps among $limits" >&2 && exit 2 ;; esac
done
mkdir -p "$out"
if [ -n "$site" ]; then
    unpacked=$(mktemp -d) && trap 'rm -rf "$unpacked"' EXIT
    tar xf "$site" -C "$unpacked" || { echo "error: $site: cannot be unpacked" >&2 && exit 2; }
    export PYTHONPATH=$unpacked${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
# Inductor compiles with all cores.
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-$(nproc)}

run() {
    local step=$1 started=$SECONDS status limit
    limit=$(echo " $limits " | sed "s/.* $step=\([0-9]*\) .*/\1/")
    timeout -k 5 "$limit" "$python" benchmarks/gpu_steps.py "$step" --out "$out" $quick >"$out/$step.log" 2>&1
    status=$?
    printf '{"step": "%s", "status": %d, "seconds": %d, "limit": %d}\n' "$step" $status $((SECONDS - started)) "$limit" |
        tee -a "$out/steps.jsonl"
    [ $status = 0 ] || tail -n 3 "$out/$step.log" >&2
}

: >"$out/steps.jsonl"
for step in ${steps//,/ }; do
    case " $alone " in *" $step="*) run "$step" ;; esac
done
for step in ${steps//,/ }; do
    case " $together " in *" $step="*) run "$step" & ;; esac
done
wait
! grep -qv '"status": 0,' "$out/steps.jsonl"
