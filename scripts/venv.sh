# Sourced by the other scripts: makes .venv and installs evotune there, once.
#
# PYTHON names another interpreter than python3. Everything that is run is printed first, so that
# it can be repeated by hand.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# Commands are shown as one would type them: short in the checkout, absolute elsewhere.
if [ "$PWD" = "$root" ]; then here= dot=.; else here=$root/ dot=$root; fi
bin=${here}.venv/bin
tools=${here}.venv-tools/bin

run() {
    printf '+' >&2
    for word; do
        case $word in
            *[!A-Za-z0-9_./:=+,@%-]* | '') printf " '%s'" "$word" >&2 ;;
            *) printf ' %s' "$word" >&2 ;;
        esac
    done
    printf '\n' >&2
    "$@"
}

fail() {
    printf '%s\n' "$@" >&2
    exit 2
}

# Prints the first interpreter that is new enough.
find_python() {
    for candidate in "${PYTHON:-python3}" ${PYTHON:-python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Python 3.10 or newer is needed, found none${PYTHON:+ at PYTHON=$PYTHON}." \
        "Install one, or name it: PYTHON=/path/to/python3 $0"
}

python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

make_venv() {
    python=$(find_python)
    version=$(python_version "$python")
    # Debian splits these off; `python -m venv` would stop half-way and leave a folder without pip.
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        fail "$python cannot make virtual environments; install what is missing:" \
            "    apt-get install python$version-venv"
    fi
    run "$python" -m venv --clear "${here}.venv"
}

# Whether .venv works, was made at this place, and is of the Python asked for.
venv_is_usable() {
    [ "$(cat "$bin/../evotune-root" 2>/dev/null)" = "$root" ] || return 1
    "$bin/python" -c 'import pip' 2>/dev/null || return 1
    [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON" 2>/dev/null)" = "$(python_version "$bin/python")" ]
}

# install EXTRAS: the checkout, editable, so that edits need no second installation.
install() {
    extras=$1
    compiler=${CC:-cc}
    if ! command -v "${compiler%% *}" >/dev/null 2>&1; then
        printf 'No C compiler (%s) found: adding the one of the cc extra.\n' "$compiler" >&2
        extras=${extras:+$extras,}cc
    fi
    if ! venv_is_usable; then
        make_venv
        printf '%s\n' "$root" >"$bin/../evotune-root"
    fi
    stamp=$bin/../evotune-installed
    wanted="$extras $(cksum <"$root/pyproject.toml")"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        rm -f "$stamp"
        run "$bin/python" -m pip install --quiet --disable-pip-version-check --editable "$dot${extras:+[$extras]}"
        printf '%s\n' "$wanted" >"$stamp"
    fi
}

# tool NAME==VERSION: a program that looks at evotune from outside, where its needs do not mix with evotune's.
tool() {
    [ -x "$tools/python" ] || run "$(find_python)" -m venv "${here}.venv-tools"
    run "$tools/python" -m pip install --quiet --disable-pip-version-check "$1"
}
