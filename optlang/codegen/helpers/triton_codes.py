"""Functions that generated Triton kernels call where tensors are kept in codes with a scale for each block.

A program instance works on some neighbours at a time, and a format needs whole blocks of a row. So elements are
counted as if each row were filled up to a multiple of ``unit``: ``start`` is a place in that count, and ``inside`` says
which elements are really there. It is None where rows need not be filled up.
"""

import triton
import triton.language as tl


@triton.jit
def triton_elements(start, columns, size, unit: tl.constexpr, block: tl.constexpr):
    place = start + tl.arange(0, block)
    filled = tl.cdiv(columns, unit) * unit
    column = place % filled
    at = place // filled * columns + column
    return at, (column < columns) & (at < size)


@triton.jit
def triton_scales(start, columns, size, inside, unit: tl.constexpr, each: tl.constexpr, block: tl.constexpr):
    place = start + each * tl.arange(0, block // each)
    if inside is None:
        return place // each, place < size
    else:
        filled = tl.cdiv(columns, unit) * unit
        row = place // filled
        column = place % filled
        return row * tl.cdiv(columns, each) + column // each, (column < columns) & (row * columns < size)


@triton.jit
def triton_random(at, key):
    return (at ^ key).to(tl.uint32) * 0x9E3779B1


@triton.jit
def triton_read(
    decoded: tl.constexpr, codes, scales, at, inside, places, within, each: tl.constexpr, block: tl.constexpr
):
    blocks = tl.reshape(tl.load(codes + at, inside), (block // each, each))
    scale = tl.load(scales + places, within).to(tl.float32)
    return tl.reshape(decoded(blocks, tl.expand_dims(scale, 1)), (block,))


@triton.jit
def triton_write(
    scale_of: tl.constexpr,
    encoded: tl.constexpr,
    x,
    codes,
    scales,
    at,
    inside,
    places,
    within,
    random,
    each: tl.constexpr,
    block: tl.constexpr,
):
    x = tl.broadcast_to(x, (block,))
    if inside is not None:
        x = tl.where(inside, x, 0.0)
    blocks = tl.reshape(x, (block // each, each))
    # Magnitudes are in the order of their bits, with what is undefined the largest.
    largest = tl.max(blocks.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1).to(tl.float32, bitcast=True)
    scale = scale_of(largest)
    sound = scale < float("inf")  # otherwise all of the block is undefined
    blocks = tl.where(tl.expand_dims(sound, 1), blocks, 0.0)
    if random is not None:
        random = tl.reshape(random, (block // each, each))
    found = encoded(blocks, tl.expand_dims(tl.where(sound, scale, 1.0), 1), random)
    tl.store(codes + at, tl.reshape(found, (block,)), inside)
    tl.store(scales + places, tl.where(sound, scale, float("nan")).to(scales.dtype.element_ty), within)
