# Sourced by bin/slidestream and bin/test: finds or makes the Python that runs slidestream.
#
#   slidestream_python EXTRA    sets $python; EXTRA is "run" (what a run needs) or "test" (what the tests need too)
#
# SLIDESTREAM_PYTHON names an interpreter to use as it is: nothing is installed. Otherwise a .venv in the repository is
# made on first use and brought up to date whenever pyproject.toml changes. Safe against two first uses at once (a lock on
# the repository folder) and against being killed half-way (what was interrupted is made again from the start).

say() { printf 'slidestream: %s\n' "$*" >&2; }
die() { say "$1"; exit "${2:-70}"; }

slidestream_python() {
    if [ -n "${SLIDESTREAM_PYTHON:-}" ]; then
        python="$(command -v -- "$SLIDESTREAM_PYTHON")" || die "SLIDESTREAM_PYTHON=$SLIDESTREAM_PYTHON is not a program" 2
        case "$python" in /*) ;; *) python="$PWD/$python" ;; esac
    else
        python="$root/.venv/bin/python"
        if ! is_ready "$1"; then set_up "$1"; fi
    fi
    # File names are UTF-8 also where the locale is not (an old Latin-1, or LC_ALL=C with no C.UTF-8 to go to).
    export PYTHONUTF8=1
    # The source tree is used as it lies, from any folder; PYTHONSAFEPATH keeps a slides.py of that folder out of the way.
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
}

# Ready: the stamp written after a complete installation holds the pyproject.toml of now.
is_ready() {
    [ -x "$python" ] && [ -f "$root/.venv/ready-$1" ] && [ "$(<"$root/.venv/ready-$1")" = "$(<"$root/pyproject.toml")" ]
}

set_up() {
    [ -w "$root" ] || die "first use needs to write $root/.venv, but the folder is not writable; set SLIDESTREAM_PYTHON" 2
    local lock
    exec {lock}<"$root"
    if command -v flock >/dev/null && ! flock -n "$lock"; then
        say "waiting for another set-up of $root/.venv to finish"
        flock "$lock"
    fi
    if ! is_ready "$1"; then
        [ ! -e "$root/.venv/unfinished" ] || { say "an interrupted set-up is started again"; rm -rf "$root/.venv"; }
        if has_pip; then : >"$root/.venv/unfinished"; else make_venv; fi
        install_packages "$1"
        rm -f "$root/.venv/unfinished"
    fi
    exec {lock}<&-
}

has_pip() { [ -x "$python" ] && "$python" -m pip --version >/dev/null 2>&1; }

make_venv() {
    local base version
    find_python
    version="$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    say "first use: making $root/.venv with Python $version"
    rm -rf "$root/.venv"
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null && ! "$base" -m pip --python "$base" --version >/dev/null 2>&1; then
        add_venv_package "python$version-venv"
    fi
    mkdir "$root/.venv"
    : >"$root/.venv/unfinished"
    if "$base" -c 'import ensurepip' 2>/dev/null; then
        "$base" -m venv "$root/.venv" >&2 || die "Python $version cannot make $root/.venv; its message is above"
    else # Debian without python3-venv, but with a pip: that pip can fill a venv that has none
        "$base" -m venv --without-pip "$root/.venv" >&2 || die "Python $version cannot make $root/.venv; its message is above"
        "$base" -m pip --python "$python" install --quiet pip >&2 || die "pip could not be put into $root/.venv"
    fi
}

find_python() {
    for base in python3.13 python3.12 python3.11 python3; do
        if "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then return; fi
    done
    die "Python 3.11 or newer is needed and none was found; on Debian or Ubuntu: sudo apt install python3 python3-venv
(where that is older: python3.11 python3.11-venv), or name one in SLIDESTREAM_PYTHON" 2
}

add_venv_package() {
    say "Python here cannot make a .venv without the system package $1, which is installed if it can be"
    add_system_package "$1" || die "Python here cannot make a .venv; on Debian or Ubuntu: sudo apt install $1" 2
}

# For root on Debian and its like; nobody else can.
add_system_package() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    { apt-get install -qq -y --no-install-recommends "$1" ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$1"; }; } >/dev/null 2>&1
}

# Dependencies only: the source tree itself is found through PYTHONPATH.
install_packages() {
    local requirements extra="" log="$root/.venv/pip.log" shown=/dev/null
    [ "$1" != test ] || extra=test
    requirements="$(requirements_of dependencies ${extra:+"$extra"})" || die "$root/pyproject.toml cannot be read"
    say "installing $(wc -l <<<"$requirements") packages into $root/.venv (once; a minute or two)"
    [ ! -t 2 ] || shown=/dev/stderr
    : >"$log"
    if ! "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off --retries 2 \
        --requirement /dev/stdin <<<"$requirements" 2>&1 | show_progress "$log" "$shown"; then
        rm -f "$root/.venv/unfinished" # pip ended by itself: what it installed is whole, the next try goes on from there
        die "packages could not be installed: $(last_error "$log")
Try again when the network and the package index that pip is set to can be reached. What pip said: $log"
    fi
    if [ "$1" = test ]; then
        add_optional test-engines "their tests will skip" || true
        if add_optional test-browser "tests in a browser will skip"; then add_browser; fi
    fi
    cp "$root/pyproject.toml" "$root/.venv/ready-$1.new"
    mv "$root/.venv/ready-$1.new" "$root/.venv/ready-$1"
    [ "$1" != test ] || cp "$root/pyproject.toml" "$root/.venv/ready-run"
    say "set-up is complete"
}

# Prints what pyproject.toml asks for: "dependencies" or the name of an extra, one or more.
requirements_of() {
    "$python" - "$root/pyproject.toml" "$@" <<'PYTHON'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
sets = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
print("\n".join(line for name in sys.argv[2:] for line in sets[name]))
PYTHON
}

# Packages of an extra that not every platform or index has: all of them, or one line that says what that means.
add_optional() {
    local requirements log="$root/.venv/pip-$1.log"
    requirements="$(requirements_of "$1")" || die "$root/pyproject.toml cannot be read"
    say "installing $(wc -l <<<"$requirements") optional packages (set $1)"
    if ! "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off --retries 2 \
        --only-binary :all: --requirement /dev/stdin <<<"$requirements" >"$log" 2>&1; then
        say "going on without the optional packages of $1, $2: $(last_error "$log") (more in $log)"
        return 1
    fi
}

# The browser that the tests of the review page drive; any Chromium or Chrome that is there already will do.
add_browser() {
    if command -v chromium || command -v chromium-browser || command -v google-chrome; then return; fi >/dev/null
    say "installing the system package chromium, for the tests in a browser"
    add_system_package chromium || say "going on without a browser, tests in it will skip; on Debian: sudo apt install chromium"
}

# Copies pip's lines into a log; on a terminal the newest one is shown in place.
show_progress() {
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$1"
        case "$line" in Collecting* | Installing* | Building*) printf '\r\033[K  %.100s' "$line" >"$2" ;; esac
    done
    printf '\r\033[K' >"$2"
}

last_error() {
    local line found="pip stopped without a message"
    while IFS= read -r line; do
        case "$line" in
            ERROR:*) found="${line#ERROR: }" ;;
            *"Retrying ("*) printf 'the package index cannot be reached' && return ;;
        esac
    done <"$1"
    printf '%s' "$found"
}
