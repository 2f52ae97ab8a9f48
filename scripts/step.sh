#!/usr/bin/env bash
# Run one step of `make test`: step.sh NAME COMMAND…; prints the name, the duration and, on failure, which step it was.
set -u
name=$1
shift
printf '\n== %s\n' "$name"
started=$SECONDS
"$@"
status=$?
if [ "$status" -ne 0 ]; then
    printf '== FAILED: %s (status %s, %s s). Repeat it alone with: %s\n' \
        "$name" "$status" "$((SECONDS - started))" "$*" >&2
    exit "$status"
fi
printf '== %s passed in %s s\n' "$name" "$((SECONDS - started))"
