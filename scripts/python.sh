# What every script shares that runs Python; launch.sh and v1_5/eval/common.sh source it.
# Sets PYTHON (default: python), and ends the script if that one lacks the package or PyTorch.

PYTHON=${PYTHON:-python}
if ! "$PYTHON" -c "import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ('llava', 'torch', 'transformers'))))" 2> /dev/null; then
    echo "$(basename "$0"): $(type -P "$PYTHON" || echo "$PYTHON") lacks llava, torch or transformers: first \`. .venv/bin/activate\`, or set PYTHON to one that has them" >&2
    exit 2
fi
