#!/usr/bin/env bash
# torch 2.15.0, numpy 2.4.6 (CPython 3.11, Linux x86-64, CPU): torch.optim.swa_utils.update_bn turns off the compilation of a network
# whose forward loops over its batch norms, for the rest of the process and without a word.
#
# Guess before: the pass over the data that update_bn makes has graphs of its own, since it changes the momentum of the batch norms;
# the graphs of training and evaluation stay and are used again after it.
# Behaviour: update_bn sets momentum to None. A batch norm then computes 1 / float(num_batches_tracked), which a graph cannot hold. A
# break in a loop makes Dynamo give up the whole forward, and it also stops using the graphs that it had made of it before: training
# and evaluation run eagerly from then on. fullgraph=True would raise. The same layers called one after the other, or in an
# nn.Sequential, keep their graphs.
#
# Output seen (calls of a compiled graph in one forward pass, after the network was compiled in training mode):
#   loop         without update_bn: train 1 eval 1   after it: train 0 eval 0
#   sequential   without update_bn: train 1 eval 1   after it: train 1 eval 1
#
# Exits with 1 if this changes. Downloads up to 3 GB (on Linux, torch brings CUDA).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy==2.4.6
cat > "$folder/run.py" <<'PYTHON'
import torch
from torch import nn
from torch.optim.swa_utils import update_bn


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = torch.relu(norm(conv(x)))
        return x


def sequential():
    return nn.Sequential(*[layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())])


def calls(make, update):
    """Calls of a compiled graph in one pass in training mode, then in one pass in evaluation mode."""
    torch._dynamo.reset()
    count = 0

    def backend(graph, inputs):
        def run(*args):
            nonlocal count
            count += 1
            return graph.forward(*args)

        return run

    network, batches = make(), [torch.randn(4, 3, 16, 16) for _ in range(5)]
    network.compile(backend=backend)
    network(batches[0])
    assert count == 1
    if update:
        update_bn(batches, network)
    count = 0
    network.train()(batches[0])
    train, count = count, 0
    network.eval()(batches[0])
    return f"train {train} eval {count}"


found = {}
for make in (Loop, sequential):
    name = make.__name__.lower()
    found[name] = (calls(make, False), calls(make, True))
    print(f"{name:12} without update_bn: {found[name][0]}   after it: {found[name][1]}")
on, off = "train 1 eval 1", "train 0 eval 0"
assert found == {"loop": (on, off), "sequential": (on, on)}, found
PYTHON
"$folder/env/bin/python" "$folder/run.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
