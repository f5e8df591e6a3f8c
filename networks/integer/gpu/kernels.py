"""Triton kernels for ternary layers. Activations are in NHWC order; a linear layer is a 1x1 convolution of images of one pixel.

ternary_kernel    convolution with weights of 2 bits as implicit GEMM, with scale, bias, residual and ReLU
quantise_kernel   floats to bytes, with a step of their own for each image
float_kernel      convolution in float32, with fused multiply-adds in a fixed order
pool_kernel       mean over the pixels of an image

The integer path equals networks/integer/reference.py bit for bit: integers are exact, and the float operations after them are the
same ones in the same order. Kernels must therefore be launched with `enable_fp_fusion=False`, so that the compiler fuses nothing.
"""

import triton
import triton.language as tl

SMALLEST = tl.constexpr(1e-30)
ROUNDER = tl.constexpr(12582912.0)  # adding and subtracting 1.5 * 2^23 rounds to the nearest integer, half to even


@triton.jit
def _unit(largest, image, ok, LEVELS: tl.constexpr):
    """Size of one integer step of each image, (ROWS,) float32."""
    most = tl.load(largest + image, mask=ok, other=0.0)
    levels = tl.full(most.shape, LEVELS, tl.float32)
    return tl.where(most > SMALLEST, tl.div_rn(most, levels), 0.0)


@triton.jit
def _note_largest(out_largest, image, ok, y):
    """Raise the largest |y| of the images; floats that are not negative are ordered as their bits are."""
    most = tl.max(tl.abs(y), axis=1)
    tl.atomic_max(out_largest + image, most.to(tl.int32, bitcast=True), mask=ok, sem="relaxed")


@triton.jit
def ternary_kernel(
    x,  # (images, height, width, C): int8, or floats
    codes,  # (columns, code_bytes) uint8: networks/integer/gpu/packing.py
    positive,  # (columns,) float32: value of the symbol +1
    negative,  # the same for -1, without its sign; read if TWO
    bias,  # (columns,) float32
    sums,  # (columns,) int32: sum of the symbols, or of the +1 if TWO; read if ZERO
    negative_sums,  # number of -1; read if ZERO and TWO
    largest,  # (images,) float32: largest |x|; read if LEVELS
    residual,  # (images, height of the residual, width of it, RES_CHANNELS); read if RES_CHANNELS
    out,  # (images, out_height, out_width, columns)
    out_largest,  # (images,) int32, bits of the largest |out|; raised if NOTE
    rows,  # images * out_height * out_width
    columns,
    height,
    width,
    out_height,
    out_width,
    code_bytes,
    res_height,
    res_width,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    LEVELS: tl.constexpr,  # integer of the largest value, 255 or 127; 0 if x are floats
    ZERO: tl.constexpr,  # x holds q - ZERO
    TWO: tl.constexpr,  # +1 and -1 have values of their own
    RELU: tl.constexpr,
    RES_CHANNELS: tl.constexpr,  # 0 without a residual
    RES_STRIDE: tl.constexpr,
    RES_FRONT: tl.constexpr,  # columns before the first channel of the residual
    NOTE: tl.constexpr,
    TYPE: tl.constexpr,  # type of the factors of the products
    SUM: tl.constexpr,  # type of the sums
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Tile (ROWS, COLUMNS) of a ternary convolution."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_ok, column_ok = row < rows, column < columns
    image = row // (out_height * out_width)
    pixel = row % (out_height * out_width)
    out_y, out_x = pixel // out_width, pixel % out_width
    top, left = out_y * STRIDE - PAD, out_x * STRIDE - PAD
    lane = tl.arange(0, 32)
    total = tl.zeros((ROWS, COLUMNS), dtype=SUM)
    minus_total = tl.zeros((ROWS, COLUMNS), dtype=SUM)
    for block in range((SIZE * SIZE * C + 127) // 128):
        place = codes + column[None, :] * code_bytes + (block * 32 + lane)[:, None]
        packed = tl.load(place, mask=column_ok[None, :], other=0)
        for part in tl.static_range(4):
            first = block * 128 + part * 32
            if C % 32 == 0:  # all 32 lie in one pixel of the window
                tap = first // C
                y, x_ = top + tap // SIZE, left + tap % SIZE
                inside = (row_ok & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width))[:, None]
                where = ((image * height + y) * width + x_)[:, None] * C + (first % C + lane)[None, :]
            else:
                tap = (first + lane) // C
                y, x_ = top[:, None] + (tap // SIZE)[None, :], left[:, None] + (tap % SIZE)[None, :]
                inside = row_ok[:, None] & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
                where = ((image[:, None] * height + y) * width + x_) * C + ((first + lane) % C)[None, :]
            inside = inside & (first + lane < SIZE * SIZE * C)[None, :]
            values = tl.load(x + where, mask=inside, other=-ZERO)
            values = values.to(TYPE)
            code = (packed >> (2 * part)) & 3
            if TWO:
                total = tl.dot(values, (code == 1).to(TYPE), total, out_dtype=SUM)
                minus_total = tl.dot(values, (code == 3).to(TYPE), minus_total, out_dtype=SUM)
            else:
                symbols = (code.to(tl.int8) ^ 2) - 2  # 0, 1, 3 become 0, 1, -1
                total = tl.dot(values, symbols.to(TYPE), total, out_dtype=SUM)
    value = tl.load(positive + column, mask=column_ok, other=0.0)[None, :]
    if ZERO != 0:
        total += ZERO * tl.load(sums + column, mask=column_ok, other=0)[None, :]
    if LEVELS != 0:
        unit = _unit(largest, image, row_ok, LEVELS)[:, None]
        result = total.to(tl.float32) * (value * unit)
    else:
        result = total * value
    if TWO:
        minus_value = tl.load(negative + column, mask=column_ok, other=0.0)[None, :]
        if ZERO != 0:
            minus_total += ZERO * tl.load(negative_sums + column, mask=column_ok, other=0)[None, :]
        if LEVELS != 0:
            result = result - minus_total.to(tl.float32) * (minus_value * unit)
        else:
            result = result - minus_total * minus_value
    result = result + tl.load(bias + column, mask=column_ok, other=0.0)[None, :]
    if RES_CHANNELS != 0:
        of_pixel = (image * res_height + out_y * RES_STRIDE) * res_width + out_x * RES_STRIDE
        channel = column - RES_FRONT
        there = row_ok[:, None] & ((channel >= 0) & (channel < RES_CHANNELS) & column_ok)[None, :]
        added = tl.load(residual + of_pixel[:, None] * RES_CHANNELS + channel[None, :], mask=there, other=0.0)
        result = result + added.to(tl.float32)
    if RELU:
        result = tl.maximum(result, 0.0)
    tl.store(out + row[:, None] * columns + column[None, :], result, mask=row_ok[:, None] & column_ok[None, :])
    if NOTE:
        _note_largest(out_largest, image, row_ok, result)


@triton.jit
def quantise_kernel(x, largest, out, size, LEVELS: tl.constexpr, ZERO: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Round the `size` floats of each image to int8, round(x * (LEVELS / largest)) - ZERO."""
    image = tl.program_id(0)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    most = tl.load(largest + image)
    divisor = tl.where(most > SMALLEST, most, 1.0)
    factor = tl.where(most > SMALLEST, tl.div_rn(tl.full((), LEVELS, tl.float32), divisor), 0.0)
    values = tl.load(x + image * size + index, mask=index < size, other=0.0)
    rounded = (values * factor + ROUNDER) - ROUNDER
    tl.store(out + image * size + index, (rounded.to(tl.int32) - ZERO).to(tl.int8), mask=index < size)


@triton.jit
def float_kernel(
    x,  # (images, height, width, C) floats
    weight,  # (SIZE * SIZE * C, columns) float32
    bias,  # (columns,) float32
    out,  # (images, out_height, out_width, columns)
    out_largest,
    rows,
    columns,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    RELU: tl.constexpr,
    NOTE: tl.constexpr,
    INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Tile (ROWS, COLUMNS) of a convolution in float32: fused multiply-adds from the first pixel and channel of the window on."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_ok, column_ok = row < rows, column < columns
    image = row // (out_height * out_width)
    pixel = row % (out_height * out_width)
    top, left = pixel // out_width * STRIDE - PAD, pixel % out_width * STRIDE - PAD
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for tap in range(SIZE * SIZE):
        y, x_ = top + tap // SIZE, left + tap % SIZE
        inside = row_ok & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
        start = ((image * height + y) * width + x_) * C
        for channel in range(C):
            values = tl.load(x + start + channel, mask=inside, other=0.0).to(tl.float32)
            weights = tl.load(weight + (tap * C + channel) * columns + column, mask=column_ok, other=0.0)
            if INTERPRETED:  # tl.fma rounds twice there; float64 rounds twice, too, but holds the product exactly
                total = (values[:, None].to(tl.float64) * weights[None, :].to(tl.float64) + total).to(tl.float32)
            else:
                a, b = tl.broadcast(values[:, None], weights[None, :])
                total = tl.fma(a, b, total)
    total = total + tl.load(bias + column, mask=column_ok, other=0.0)[None, :]
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(out + row[:, None] * columns + column[None, :], total, mask=row_ok[:, None] & column_ok[None, :])
    if NOTE:
        _note_largest(out_largest, image, row_ok, total)


@triton.jit
def pool_kernel(x, out, out_largest, pixels, factor, C: tl.constexpr, CHANNELS: tl.constexpr) -> None:
    """Mean over the pixels of an image, (images, C) float32: the sum from the first pixel on, times factor = 1 / pixels."""
    image = tl.program_id(0)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for pixel in range(pixels):
        place = (image * pixels + pixel) * C + channel
        total = total + tl.load(x + place, mask=channel < C, other=0.0).to(tl.float32)
    total = total * factor
    tl.store(out + image * C + channel, total, mask=channel < C)
    most = tl.max(tl.abs(total), axis=0)
    tl.store(out_largest + image, most.to(tl.int32, bitcast=True))
