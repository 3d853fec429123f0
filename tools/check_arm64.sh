#!/usr/bin/env bash
# Builds csrc/cpu for arm64, runs its tests under qemu and compares the hash of all results
# with this machine's: the kernels promise the same bits everywhere.
# Usage: tools/check_arm64.sh [rounds of fuzzing]
# Debian or Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
rounds="${1:-300}"
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

build() { # folder, further cmake arguments
  local folder="$1"
  shift
  "$cmake" -S "$root" -B "$folder" "${generator[@]}" -DGEMMA_SURGERY_EXTENSION=OFF \
    -DGEMMA_SURGERY_CPU_TESTS=ON "$@" >/dev/null
  "$cmake" --build "$folder" >/dev/null
}

build "$root/build/cpu-host"
build "$root/build/cpu-arm64" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  "-DCMAKE_CXX_COMPILER=$compiler" -DCMAKE_EXE_LINKER_FLAGS=-static

host="$("$root/build/cpu-host/gemma_surgery_cpu_test" "$rounds")"
arm64="$("$emulator" "$root/build/cpu-arm64/gemma_surgery_cpu_test" "$rounds")"
printf 'this machine  %s\narm64 (qemu)  %s\n' "${host//$'\n'/  }" "${arm64//$'\n'/  }"
if [ "${host##*hash: }" != "${arm64##*hash: }" ]; then
  echo "FAILED: the hashes differ" >&2
  exit 1
fi
echo "ok: the same bits on both"
