# Find a Python that can carry the book, then let it make .venv. Plain POSIX sh: this is the one
# program that runs before there is anything to rely on.
# Usage: sh book/_tools/bootstrap.sh [PYTHON]     (run in the repository's root)

wanted=$1
suits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'

if [ -n "$wanted" ]; then
    if "$wanted" -c "$suits" >/dev/null 2>&1; then
        LLM_BOOK_PYTHON_GIVEN=1 exec "$wanted" book/_tools/environment.py
    fi
    echo "PYTHON=$wanted is not a Python 3.11, 3.12 or 3.13 that runs here:" >&2
    "$wanted" --version >&2 || echo "  (it could not be started)" >&2
    echo "Give another one, for example: make book PYTHON=/usr/bin/python3.11" >&2
    exit 1
fi

for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c "$suits" >/dev/null 2>&1; then
        exec "$candidate" book/_tools/environment.py
    fi
done

echo "This book needs Python 3.11, 3.12 or 3.13, and none was found on the PATH." >&2
echo "  Debian, Ubuntu:  sudo apt-get install python3 python3-venv" >&2
echo "  macOS:           brew install python@3.11" >&2
echo "  conda, mamba:    conda env create -f environment.yml   (the README says how to go on)" >&2
echo "If it is installed elsewhere, say where:  make book PYTHON=/path/to/python3.11" >&2
exit 1
