#!/usr/bin/env bash
# torch 2.15.0, onnx 1.23.2, onnxscript 0.7.2, numpy 2.4.6 (CPython 3.11, Linux x86-64, CPU): an ONNX export that was asked for an open
# batch size writes a file for one batch size only, and says nothing.
#
# Guess before: dynamic_shapes={"x": {0: Dim("batch")}} is a demand. torch.export.export refuses a module that fixes the size
# ("Constraints violated (batch)"), so torch.onnx.export(dynamo=True), which exports through it, does so too.
# Behaviour: torch.onnx.export catches that error, tries other ways to export, and one of them succeeds with the size of the example
# input as a constant. len(x) is enough, where x.shape[0] keeps the size open; so is a loop over x.split(4).
#
# Output seen:
#   view(len(x), -1)      torch.export: Constraints violated   onnx input: [2, 3, 5]
#   view(x.shape[0], -1)  torch.export: fine                   onnx input: [batch, 3, 5]
#   cat of x.split(4)     torch.export: Constraints violated   onnx input: [2, 3, 5]
#
# Exits with 1 if this changes. Downloads up to 3 GB (on Linux, torch brings CUDA).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" \
  torch==2.15.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
cat > "$folder/run.py" <<'PYTHON'
import warnings

import torch

warnings.simplefilter("ignore")


class Length(torch.nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class Shape(torch.nn.Module):
    def forward(self, x):
        return x.view(x.shape[0], -1)


class Parts(torch.nn.Module):
    def forward(self, x):
        return torch.cat([part * 2 for part in x.split(4)])


def exported(module):
    x, shapes = torch.randn(2, 3, 5), {"x": {0: torch.export.Dim("batch")}}
    try:
        torch.export.export(module, (x,), dynamic_shapes=shapes)
        first = "fine"
    except Exception as error:
        first = str(error).strip().partition(" (")[0]
    program = torch.onnx.export(module, (x,), dynamic_shapes=shapes, dynamo=True, verbose=False)
    return first, [str(size) for size in program.model.graph.inputs[0].shape]


found = [exported(module) for module in (Length(), Shape(), Parts())]
for name, (first, shape) in zip(("view(len(x), -1)", "view(x.shape[0], -1)", "cat of x.split(4)"), found):
    print(f"{name:22}torch.export: {first:22} onnx input: [{', '.join(shape)}]")
fixed = ("Constraints violated", ["2", "3", "5"])
assert found == [fixed, ("fine", ["batch", "3", "5"]), fixed], found
PYTHON
"$folder/env/bin/python" "$folder/run.py" 2> /dev/null
