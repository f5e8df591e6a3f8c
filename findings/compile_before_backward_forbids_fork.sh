#!/usr/bin/env bash
# torch 2.15.0, numpy 2.4.6 (CPython 3.11, Linux x86-64, no GPU): whether a forked process can run a backward pass depends on which came
# first in its parent, a call of torch.compile or a backward pass.
#
# Guess before: without a GPU, a process that has trained can be forked and its child can train too, compiled networks or not; the
# limits on forking are those of CUDA.
# Behaviour: the autograd engine is set up by the first backward pass of a process. If a compiled network (backend "eager" is enough) was
# called before it, a child that is forked afterwards raises RuntimeError "Unable to handle autograd's threading in combination with
# fork-based multiprocessing" in its own first backward pass. If the first backward pass came before the first compiled call, or if
# nothing was compiled, the child trains. One backward pass of a scalar at the start of the program is enough.
# The same was seen with torch 2.11.0. So a test suite, a search over settings or a pool of forked workers fails or not by the order
# in which unrelated parts of the parent ran.
#
# Output seen (the child's backward pass):
#   backward                    trains
#   backward, compile, backward trains
#   compile, backward           RuntimeError
#
# Exits with 1 if this changes. Downloads up to 3 GB (on Linux, torch brings CUDA).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy==2.4.6
cat > "$folder/run.py" <<'PYTHON'
import os
import sys

import torch


def backward():
    torch.zeros(1, requires_grad=True).sum().backward()


def compile():
    torch.compile(torch.nn.Linear(3, 3), backend="eager")(torch.zeros(2, 3))


for step in sys.argv[1:]:
    {"backward": backward, "compile": compile}[step]()
if (child := os.fork()) == 0:
    try:
        backward()
    except RuntimeError as error:
        os._exit(1 if "fork-based multiprocessing" in str(error) else 2)
    os._exit(0)
print({0: "trains", 1: "RuntimeError"}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])])
PYTHON
wrong=0
while IFS='|' read -r steps expected; do
  # shellcheck disable=SC2086
  found=$("$folder/env/bin/python" "$folder/run.py" $steps 2> "$folder/log") || { tail -3 "$folder/log"; exit 1; }
  printf '%-27s %s\n' "${steps// /, }" "$found"
  [ "$found" = "$expected" ] || wrong=1
done <<'CASES'
backward|trains
backward compile backward|trains
compile backward|RuntimeError
CASES
exit $wrong
