# Sourced by scripts/demo and scripts/test: makes the virtual environment and installs ptsave into it.
#
#   PTSAVE_VENV   the environment's folder (default: .venv in the checkout)
#   PYTHON        the interpreter that makes it (default: python3.11, the tested one, or else python3)

# It would make an editable install recompile itself at every start.
unset PYTHONDONTWRITEBYTECODE
# The user's own packages stay out of what is installed, tested and shown.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $1"
    [ $# -lt 2 ] || say "hint: $2"
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.10 or newer with the venv module was found" \
        "install one (on Debian: apt-get install python3-venv), or name it: PYTHON=/path/to/python3 $0"
}

quietly() { # quietly WHAT COMMAND…: one progress line; the output only when it fails
    local what=$1 log begin=$SECONDS
    shift
    log=$(mktemp)
    printf '%s … ' "$what" >&2
    if "$@" >"$log" 2>&1; then
        say "done ($((SECONDS - begin)) s)"
        rm -f "$log"
    else
        say "failed"
        cat "$log" >&2
        rm -f "$log"
        die "'$*' failed" "what it printed is above"
    fi
}

pip_install() { (cd "$root" && "$VENV/bin/python" -m pip install "$@"); }

# make_venv ROOT [EXTRAS]: the environment in $VENV, with ROOT installed editable at the tested versions.
make_venv() {
    local root=$1 extras=${2:-} python stamp wanted
    VENV=${PTSAVE_VENV:-$root/.venv}
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(find_python)
        quietly "Making a virtual environment with $("$python" --version)" "$python" -m venv "$VENV"
    fi
    VENV=$(cd "$VENV" && pwd)
    stamp=$VENV/.ptsave${extras:+-${extras//,/-}}
    wanted=$(cat "$root/pyproject.toml" "$root/constraints.txt" "$root/requirements-no-deps.txt" | cksum)
    wanted="$root $wanted"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        # Constraints given this way hold in the build environment too. Relative: pip splits it at spaces.
        export PIP_CONSTRAINT=constraints.txt
        # torch first and alone: its exact version, so that no other package's range picks another build.
        quietly "Installing torch" pip_install "$(grep '^torch==' "$root/constraints.txt")"
        quietly "Installing ptsave${extras:+ and what the tests need}" pip_install -e ".${extras:+[$extras]}"
        case ",$extras," in *,test,*)
            quietly "Installing packages that the tests use alone" \
                pip_install --no-deps -r requirements-no-deps.txt
            ;;
        esac
        unset PIP_CONSTRAINT
        printf '%s\n' "$wanted" >"$stamp"
    fi
    export PATH=$VENV/bin:$PATH
}
