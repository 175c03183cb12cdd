#!/bin/sh
# Builds the native tests with the given sanitizers, or with none as they are released, and runs them: run.sh thread,
# run.sh address,undefined, or run.sh "". What follows goes to ctest.
set -eu
sanitizers="${1:-}"
[ $# -eq 0 ] || shift
root=$(cd "$(dirname "$0")/../../.." && pwd)
build="$root/build/native-$(echo "${sanitizers:-plain}" | tr , -)"
# What is released was compiled when .venv was set up: the tests are linked with that, and nothing is compiled twice.
shipped=$(ls -td "$root"/build/cp*/build.ninja 2>/dev/null | head -n 1)
if [ -z "$sanitizers" ] && [ -n "$shipped" ]; then
    build=$(dirname "$shipped")
fi
cmake -G Ninja -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMINUTELY_NATIVE_TESTS=ON -DMINUTELY_SANITIZE="$sanitizers"
cmake --build "$build" -j2 --target stress shrink fuzz limits
export ASAN_OPTIONS="detect_leaks=1" TSAN_OPTIONS="halt_on_error=1" UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1"
ctest --test-dir "$build" --output-on-failure "$@"
