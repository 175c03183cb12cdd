#!/bin/sh
# Builds the native tests with the given sanitizers and runs them: run.sh thread, run.sh address,undefined, or run.sh "".
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
build="$root/build/native-$(echo "${1:-plain}" | tr , -)"
cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMINUTELY_NATIVE_TESTS=ON -DMINUTELY_SANITIZE="${1:-}"
cmake --build "$build" -j2
export ASAN_OPTIONS="detect_leaks=1" TSAN_OPTIONS="halt_on_error=1" UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1"
ctest --test-dir "$build" --output-on-failure
