#!/bin/sh
# Print a Python >= 3.11 that can make virtual environments; PYTHON names a preferred one.
# A name on PATH is not enough (version managers put shims there), so each candidate is run.
wanted='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c "$wanted" >/dev/null 2>&1; then
        printf '%s\n' "$candidate"
        exit 0
    fi
done
{
    printf 'nb_sae needs Python 3.11 or newer with the venv module; tried: %s.\n' \
        "${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}"
    printf 'Install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12\n'
} >&2
exit 1
