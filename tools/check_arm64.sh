#!/usr/bin/env bash
# Builds csrc/cpu for arm64, runs its tests under qemu and compares the hash of all results
# with this machine's: the kernels promise the same bits everywhere. The emulator runs them
# twice: with every instruction that it has, and as a processor without dot products.
# Usage: tools/check_arm64.sh [rounds of fuzzing]
# Debian or Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
rounds="${1:-100}"
compiler="${ARM64_CXX:-aarch64-linux-gnu-g++}"
emulator="${ARM64_RUN:-qemu-aarch64}"
cmake="$(command -v "$root/.venv/bin/cmake" || command -v cmake || true)"

for tool in "$compiler" "$emulator" "${cmake:-cmake}"; do
  if ! command -v "$tool" >/dev/null; then
    echo "skipped: \`$tool\` is not installed"
    exit 0
  fi
done

generator=()
if [ -x "$root/.venv/bin/ninja" ]; then
  generator=(-G Ninja "-DCMAKE_MAKE_PROGRAM=$root/.venv/bin/ninja")
fi

# Optimized little: the same intrinsics run, and compiling takes half the time.
build() { # folder, further cmake arguments
  local folder="$1" output
  shift
  if ! output="$("$cmake" -S "$root" -B "$folder" "${generator[@]}" -DGEMMA_SURGERY_EXTENSION=OFF \
    -DGEMMA_SURGERY_CPU_TESTS=ON -DGEMMA_SURGERY_OPTIMIZATION=-O1 "$@" 2>&1 &&
    "$cmake" --build "$folder" --parallel "$(getconf _NPROCESSORS_ONLN)" 2>&1)"; then
    printf '%s\nFAILED: building %s\n' "$output" "$folder" >&2
    exit 1
  fi
}

host="$root/build/cpu-host"
arm64="$root/build/cpu-arm64"
build "$host"
build "$arm64" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  "-DCMAKE_CXX_COMPILER=$compiler" -DCMAKE_EXE_LINKER_FLAGS=-static

run() { # where, test, command; leaves the hash of all results in `hash`
  local where="$1" name="$2" output
  shift 2
  if ! output="$("$@" "$rounds")"; then
    printf '%s\nFAILED: %s on %s\n' "$output" "$name" "$where" >&2
    exit 1
  fi
  printf '%-24s %-10s %s\n' "$where" "$name" "${output//$'\n'/  }"
  hash="$(sed -n 's/^hash: //p' <<<"$output")"
}

for name in cpu product solve; do
  test="gemma_surgery_${name}_test"
  run "this machine" "$name" "$host/$test"
  expected="$hash"
  for model in max cortex-a53; do
    run "arm64 (qemu, $model)" "$name" "$emulator" -cpu "$model" "$arm64/$test"
    if [ -z "$hash" ] || [ "$hash" != "$expected" ]; then
      echo "FAILED: the hashes of $name differ" >&2
      exit 1
    fi
  done
done
for name in attention float; do
  run "arm64 (qemu, max)" "$name" "$emulator" -cpu max "$arm64/gemma_surgery_${name}_test"
done
echo "ok: the same bits on both"
