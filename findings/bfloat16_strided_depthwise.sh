#!/usr/bin/env bash
# torch 2.15.0, numpy 2.4.6 (CPython 3.11, Linux x86-64, a CPU with AVX-512 BF16): the backward pass of a strided depthwise convolution
# is many times slower in bfloat16 than in float32, although the CPU has instructions for bfloat16.
#
# Guess before: bfloat16 halves the bytes, and oneDNN has depthwise kernels for it; so a MobileNet trains at least as fast under bf16
# autocast as in float32, and no single layer is much slower.
# Behaviour: with stride 1 oneDNN takes its depthwise kernel (jit_dw) for the gradient of the input in both types. With stride 2 it
# does so in float32, but in bfloat16 it takes brgconv_strided, a kernel for full convolutions, which here works on groups of one
# channel. The forward pass and the gradient of the weights keep their depthwise kernels. The four strided layers of a MobileNetV2 at
# 256 px then took half of the time of a training step. In float32 inside of autocast they are fast again.
#
# Output seen (times are of one core of a busy machine and vary; the kernels decide):
#   stride 1 float32    input gradient by jit_dw           backward   26.7 ms
#   stride 1 bfloat16   input gradient by jit_dw           backward   62.3 ms
#   stride 2 float32    input gradient by jit_dw           backward   10.1 ms
#   stride 2 bfloat16   input gradient by brgconv_strided  backward  136.4 ms
#
# Exits with 1 if this changes, with 2 on a CPU without AVX-512 BF16. Downloads up to 3 GB (on Linux, torch brings CUDA).
set -euo pipefail
grep -q avx512_bf16 /proc/cpuinfo || { echo "needs a CPU with avx512_bf16"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
"$folder/env/bin/uv" pip install --quiet --python "$folder/env/bin/python" torch==2.15.0 numpy==2.4.6
cat > "$folder/run.py" <<'PYTHON'
import sys
import time

import torch
import torch.nn.functional as F

stride, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
torch.set_num_threads(1)
weight = torch.randn(96, 1, 3, 3, dtype=dtype, requires_grad=True)
images = torch.randn(4, 96, 128, 128, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
times = []
for _ in range(7):
    result = F.conv2d(images, weight, stride=stride, padding=1, groups=96)
    gradient = torch.ones_like(result)
    start = time.perf_counter()
    result.backward(gradient)
    times.append(1000 * (time.perf_counter() - start))
print(f"milliseconds {sorted(times)[3]:.1f}")
PYTHON
seen=""
for stride in 1 2; do
  for dtype in float32 bfloat16; do
    OMP_NUM_THREADS=1 ONEDNN_VERBOSE=1 "$folder/env/bin/python" "$folder/run.py" "$stride" "$dtype" > "$folder/out" 2> /dev/null
    kernel=$(grep -m1 "exec,cpu,convolution.*backward_data" "$folder/out" | cut -d, -f7 | cut -d: -f1)
    printf "stride %s %-9s  input gradient by %-16s backward %6s ms\n" "$stride" "$dtype" "$kernel" "$(sed -n 's/^milliseconds //p' "$folder/out")"
    seen="$seen $kernel"
  done
done
[ "$seen" = " jit_dw jit_dw jit_dw brgconv_strided" ] || { echo "changed:$seen"; exit 1; }
