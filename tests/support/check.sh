# What the scripts that check an installation share. Sourced; `scratch` is a directory of the script's own.

passed=0 failed=0

check() { # what, command...
    local what=$1
    shift
    if "$@" >"$scratch/check.log" 2>&1; then
        passed=$((passed + 1)); echo "ok     $what"
    else
        failed=$((failed + 1)); echo "FAILED $what"; tail -n 40 "$scratch/check.log" | sed 's/^/       /'
    fi
}

is() { [ "$1" = "$2" ] || { echo "expected '$1', found '$2'"; return 1; }; }
not() { ! "$@"; }

until_true() { # command...: true within 30 s
    local until=$((SECONDS + 30))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || { echo "not within 30 s: $*"; "$@" || true; return 1; }
        sleep 0.05
    done
}
