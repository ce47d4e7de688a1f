# type: ignore  # a language of its own, in the grammar of Python
"""What do the verbs of `reference.py` look like in Triton's language? In four forms.

    rows     connections one by one: each multiplies the numbers of one input feature
    bitmap   tiles of W, expanded to registers from a bit for each place, times tiles of x
    shared   groups of rows with the same columns: dense matrices, times the input features that these are
    blocks   whole blocks of W, times tiles of x

Each form has y = W x, dx = W^T dy and dW at the connections; rows have dx by the first of these, on the transposed connections. Shared
have it in two steps: what each group gives each of its columns, and the sums of those, which is a product of rows whose values are 1.

All products are over *images* of pixels; the samples of a matrix are the pixels of one. Where pixel p of a feature lies in x or y:

    start of the feature + number of the image * image + p // width * line + p % width * step

The start is feature * stride, or is read from a table of starts: so a convolution is a matrix over shifted planes. Without a width an
image is one line, and neighbours are read together. A program has pixels of one image. Sums are held in float32, or float64 where values
are; each result has one program that sums it, in one order: no atomics, the same from run to run.

This module needs Triton, and is what `TRITON_INTERPRET=1` makes of it when it is first imported; `loading.py` imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _places(pixel, width, line, step):
    if width is None:
        return pixel.to(tl.int64) * step
    else:
        return ((pixel // width) * line + (pixel % width) * step).to(tl.int64)


@triton.jit
def _tile(tiles, pixels, SIZE: tl.constexpr):
    """(which of the `tiles` of features, which image, which pixels) the program has. Neighbours share the pixels, hence what they read."""
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    of_image = tl.cdiv(pixels, SIZE)
    return tile, (rest // of_image).to(tl.int64), rest % of_image * SIZE + tl.arange(0, SIZE)


@triton.jit
def _starts(feature, starts, stride, exists):
    if starts is None:
        return feature.to(tl.int64) * stride
    else:
        return tl.load(starts + feature, mask=exists, other=0)


# Rows. What only a mask or a division reads is not compiled in: another number of connections would be another kernel.


@triton.jit(do_not_specialize=["rows_of_group"])
def rows_product(
    indptr,
    indices,
    permutation,
    values,
    bias,
    x,
    x_starts,
    x_stride,
    x_group,
    rows_of_group,
    x_image,
    x_line,
    x_step,
    y,
    y_starts,
    y_stride,
    y_image,
    y_line,
    y_step,
    rows,
    pixels,
    width,
    ROWS: tl.constexpr,
    CONNECTIONS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """y = W x + bias of ROWS rows at PIXELS pixels.

    `values`: None if all are 1. `permutation`: where in the values each connection is, None if in this order.
    """
    tile, image, pixel = _tile(tl.cdiv(rows, ROWS), pixels, PIXELS)
    row = tile * ROWS + tl.arange(0, ROWS)
    row_exists, inside = row < rows, pixel < pixels
    begin = tl.load(indptr + row, mask=row_exists, other=0).to(tl.int64)
    end = tl.load(indptr + row + 1, mask=row_exists, other=0).to(tl.int64)
    x += image * x_image
    x_places = _places(pixel, width, x_line, x_step)
    if x_group is not None:
        x_places = (row // rows_of_group).to(tl.int64)[:, None, None] * x_group + x_places[None, None, :]
    else:
        x_places = x_places[None, None, :]
    if values is None:
        total = tl.zeros((ROWS, CONNECTIONS, PIXELS), tl.float32)
    else:
        sums: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32  # also of values of 16 bits
        total = tl.zeros((ROWS, CONNECTIONS, PIXELS), sums)
    for first in range(0, tl.max(end - begin, 0), CONNECTIONS):
        k = begin[:, None] + first + tl.arange(0, CONNECTIONS)[None, :]
        exists = k < end[:, None]
        start = _starts(tl.load(indices + k, mask=exists, other=0), x_starts, x_stride, exists)
        if values is None:
            input = tl.load(x + (start[:, :, None] + x_places), mask=exists[:, :, None] & inside[None, None, :], other=0.0)
            total += input.to(total.dtype)
        else:
            if permutation is not None:
                k = tl.load(permutation + k, mask=exists, other=0)
            value = tl.load(values + k, mask=exists, other=0.0)
            input = tl.load(x + start[:, :, None] + x_places, mask=exists[:, :, None] & inside[None, None, :], other=0.0)
            total += value.to(total.dtype)[:, :, None] * input.to(total.dtype)
    result = tl.sum(total, 1)
    if bias is not None:
        result += tl.load(bias + row, mask=row_exists, other=0.0)[:, None]
    y_places = _starts(row, y_starts, y_stride, row_exists)[:, None] + _places(pixel, width, y_line, y_step)[None, :]
    tl.store(y + image * y_image + y_places, result.to(y.dtype.element_ty), mask=row_exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows_of_group", "connections"])
def rows_sampled(
    row_of_each,
    indices,
    dvalues,
    x,
    x_starts,
    x_stride,
    x_group,
    rows_of_group,
    x_image,
    x_line,
    x_step,
    dy,
    dy_stride,
    dy_image,
    dy_line,
    dy_step,
    connections,
    images,
    pixels,
    width,
    CONNECTIONS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """dW at CONNECTIONS connections: the sum over all pixels of dy times x."""
    k = tl.program_id(0).to(tl.int64) * CONNECTIONS + tl.arange(0, CONNECTIONS)
    exists = k < connections
    row = tl.load(row_of_each + k, mask=exists, other=0)
    x_start = _starts(tl.load(indices + k, mask=exists, other=0), x_starts, x_stride, exists)
    if x_group is not None:
        x_start += (row // rows_of_group).to(tl.int64) * x_group
    dy_start = row.to(tl.int64) * dy_stride
    total = tl.zeros((CONNECTIONS, PIXELS), dvalues.dtype.element_ty)
    for _ in range(images):
        for first in range(0, pixels, PIXELS):
            pixel = first + tl.arange(0, PIXELS)
            both = exists[:, None] & (pixel < pixels)[None, :]
            left = tl.load(dy + dy_start[:, None] + _places(pixel, width, dy_line, dy_step)[None, :], mask=both, other=0.0)
            right = tl.load(x + x_start[:, None] + _places(pixel, width, x_line, x_step)[None, :], mask=both, other=0.0)
            total += left.to(total.dtype) * right.to(total.dtype)
        dy_start += dy_image
        x_start += x_image
    tl.store(dvalues + k, tl.sum(total, 1), mask=exists)


# The largest of dW where there is no connection. A *key* says how large: 1 more than the bits of |dW| as an integer, which are in the order
# of the numbers; NaN is 0, below all numbers. What is no candidate is -1.


@triton.jit
def _first_from(indices, begin, end, column, halvings):
    """Of the connections `begin` to `end` of each row, the first at `column` or after it."""
    for _ in range(halvings):
        middle = begin + (end - begin) // 2
        before = tl.load(indices + middle, mask=begin < end, other=column) < column
        begin, end = tl.where(before, middle + 1, begin), tl.where(before, end, middle)
    return begin


@triton.jit(do_not_specialize=["halvings", "task", "shift", "buckets", "room"])
def gradients_searched(
    indptr,
    indices,
    x,
    x_starts,
    x_stride,
    x_image,
    x_line,
    x_step,
    dy,
    dy_stride,
    dy_image,
    dy_line,
    dy_step,
    rows,
    columns,
    halvings,
    images,
    pixels,
    width,
    least,
    most,
    last_row,
    settled,
    task,
    shift,
    counts,
    buckets,
    tables,
    found_keys,
    found_places,
    found,
    room,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """One pass over dW, a tile ROWS x COLUMNS of it, which is summed anew for each pass and kept by none.

    Of the candidates whose keys are from `least` to `most`, task 0 counts how many have which 16 bits from `shift` on, task 1 how many
    there are in each row; neither does anything if all is `settled`. Task 2 collects those of greater keys, and these down to `last_row`.

    Nothing that differs between passes is compiled in, not even that it is 1, and all are one program: each must see the same bits. Counts
    are integers: their sum is the same in any order, and so is the set of what is collected, which is sorted afterwards.
    """
    if (task == 2) | (tl.load(settled) == 0):
        tiles = tl.cdiv(columns, COLUMNS)
        first = tl.program_id(0) % tiles * COLUMNS
        row, column = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS), first + tl.arange(0, COLUMNS)
        row_exists, column_exists = row < rows, column < columns
        dy_start, x_start = row.to(tl.int64)[:, None] * dy_stride, _starts(column, x_starts, x_stride, column_exists)[None, :]
        total = tl.zeros((ROWS, COLUMNS), tl.float64 if found_keys.dtype.element_ty == tl.int64 else tl.float32)
        for _ in range(images):
            for start in range(0, pixels, PIXELS):
                pixel = start + tl.arange(0, PIXELS)
                inside = pixel < pixels
                dy_places, x_places = _places(pixel, width, dy_line, dy_step)[None, :], _places(pixel, width, x_line, x_step)[:, None]
                left = tl.load(dy + dy_start + dy_places, mask=row_exists[:, None] & inside[None, :], other=0.0)
                right = tl.load(x + x_start + x_places, mask=inside[:, None] & column_exists[None, :], other=0.0)
                total = tl.dot(left, right, total, input_precision="ieee", out_dtype=total.dtype)
            dy += dy_image
            x += x_image

        key = tl.where(total == total, tl.abs(total).to(found_keys.dtype.element_ty, bitcast=True) + 1, 0)
        key = tl.where(row_exists[:, None] & column_exists[None, :], key, -1)
        begin, end = tl.load(indptr + row, mask=row_exists, other=0), tl.load(indptr + row + 1, mask=row_exists, other=0)
        begin = _first_from(indices, begin, end, first, halvings)
        end = _first_from(indices, begin, end, first + COLUMNS, halvings)
        for k in range(tl.max(end - begin, 0)):
            held = tl.load(indices + begin + k, mask=begin + k < end, other=-1)
            key = tl.where(held[:, None] == column[None, :], -1, key)

        low, high = tl.load(least).to(key.dtype), tl.load(most).to(key.dtype)
        level = (key >= low) & (key <= high)
        if task == 2:
            chosen = (key > high) | (level & (row <= tl.load(last_row))[:, None])
            of_row = tl.sum(chosen.to(tl.int32), 1)
            place = (tl.cumsum(of_row, 0) - of_row)[:, None] + tl.cumsum(chosen.to(tl.int32), 1) - 1
            place += tl.atomic_add(found, tl.sum(of_row, 0), sem="relaxed")
            chosen = chosen & (place < room)
            tl.store(found_keys + place, key, mask=chosen)
            tl.store(found_places + place, row.to(tl.int64)[:, None] * columns + column[None, :], mask=chosen)
        else:
            bucket = ((key - low) >> shift).to(tl.int32)
            if task == 1:
                bucket = row[:, None] + tl.zeros_like(bucket)
            part = (tl.program_id(0) % tables).to(tl.int64) * buckets
            tl.atomic_add(counts + part + bucket, 1, mask=level, sem="relaxed")


# Bitmap. Bit c % 64 of word [row, c // 64] says whether there is a connection; `first` [rows, groups of GROUP words] is the place in the
# values of the first one of a group: they lie row by row, so that the others follow it. A tile has columns of one word.

GROUP = tl.constexpr(4)


@triton.jit
def _ones(word):
    """How many bits of a uint64 are 1, in the words in which compilers know it: one instruction for each 32 bits."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def _connected(bits, first, row, start, rows, words, COLUMNS: tl.constexpr):
    """(which places of `row` x COLUMNS columns from `start` on are connected, where their values are)."""
    exists, word = row < rows, start // 64
    bits += row.to(tl.int64) * words
    held = tl.load(bits + word, mask=exists, other=0).to(tl.uint64, bitcast=True)
    earlier = word // GROUP * GROUP + tl.arange(0, GROUP)[None, :]
    others = tl.load(bits[:, None] + earlier, mask=exists[:, None] & (earlier < word), other=0).to(tl.uint64, bitcast=True)
    at = tl.load(first + row.to(tl.int64) * tl.cdiv(words, GROUP) + word // GROUP, mask=exists, other=0) + tl.sum(_ones(others), 1)
    bit = (start % 64 + tl.arange(0, COLUMNS)).to(tl.uint64)[None, :]
    before = held[:, None] & ((tl.full(bit.shape, 1, tl.uint64) << bit) - 1)
    return ((held[:, None] >> bit) & 1) != 0, at[:, None] + _ones(before)


@triton.jit
def bitmap_product(
    bits,
    first,
    permutation,
    values,
    bias,
    x,
    x_starts,
    x_stride,
    x_image,
    x_line,
    x_step,
    y,
    y_starts,
    y_stride,
    y_image,
    y_line,
    y_step,
    rows,
    columns,
    words,
    pixels,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = W x + bias of ROWS rows at PIXELS pixels. `permutation`: where in the values each connection is, None if in this order."""
    tile, image, pixel = _tile(tl.cdiv(rows, ROWS), pixels, PIXELS)
    row = tile * ROWS + tl.arange(0, ROWS)
    row_exists, inside = row < rows, pixel < pixels
    x += image * x_image
    x_places = _places(pixel, width, x_line, x_step)[None, :]
    total = tl.zeros((ROWS, PIXELS), tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        connected, at = _connected(bits, first, row, start, rows, words, COLUMNS)
        if permutation is not None:
            at = tl.load(permutation + at, mask=connected, other=0)
        weight = tl.load(values + at, mask=connected, other=0.0).to(x.dtype.element_ty)
        exists = column < columns
        places = _starts(column, x_starts, x_stride, exists)[:, None] + x_places
        input = tl.load(x + places, mask=exists[:, None] & inside[None, :], other=0.0)
        total = tl.dot(weight, input, total, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + row, mask=row_exists, other=0.0)[:, None]
    y_places = _starts(row, y_starts, y_stride, row_exists)[:, None] + _places(pixel, width, y_line, y_step)[None, :]
    tl.store(y + image * y_image + y_places, total.to(y.dtype.element_ty), mask=row_exists[:, None] & inside[None, :])


@triton.jit
def bitmap_transposed(
    bits,
    first,
    values,
    dy,
    dy_stride,
    dy_image,
    dy_step,
    dx,
    dx_stride,
    dx_image,
    dx_step,
    rows,
    columns,
    words,
    pixels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx = W^T dy of COLUMNS columns at PIXELS pixels."""
    tile, image, pixel = _tile(tl.cdiv(columns, COLUMNS), pixels, PIXELS)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    dy += image * dy_image
    total = tl.zeros((COLUMNS, PIXELS), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        connected, at = _connected(bits, first, row, tile * COLUMNS, rows, words, COLUMNS)
        weight = tl.load(values + at, mask=connected, other=0.0).to(dy.dtype.element_ty)
        places = row.to(tl.int64)[:, None] * dy_stride + pixel[None, :] * dy_step
        gradient = tl.load(dy + places, mask=(row < rows)[:, None] & (pixel < pixels)[None, :], other=0.0)
        total = tl.dot(tl.trans(weight), gradient, total, input_precision=PRECISION)
    dx_places = column.to(tl.int64)[:, None] * dx_stride + pixel[None, :] * dx_step
    tl.store(dx + image * dx_image + dx_places, total.to(dx.dtype.element_ty), mask=(column < columns)[:, None] & (pixel < pixels)[None, :])


@triton.jit
def bitmap_sampled(
    bits,
    first,
    dvalues,
    x,
    x_starts,
    x_stride,
    x_image,
    x_line,
    x_step,
    dy,
    dy_stride,
    dy_image,
    dy_step,
    rows,
    columns,
    words,
    images,
    pixels,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dW of a tile ROWS x COLUMNS, of which only the connections are written."""
    tiles = tl.cdiv(columns, COLUMNS)
    row, left_column = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS), tl.program_id(0) % tiles * COLUMNS
    column = left_column + tl.arange(0, COLUMNS)
    x_start = _starts(column, x_starts, x_stride, column < columns)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(images):
        for start in range(0, pixels, PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            inside = pixel < pixels
            dy_places = row.to(tl.int64)[:, None] * dy_stride + pixel[None, :] * dy_step
            x_places = x_start[None, :] + _places(pixel, width, x_line, x_step)[:, None]
            left = tl.load(dy + dy_places, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
            right = tl.load(x + x_places, mask=(column < columns)[None, :] & inside[:, None], other=0.0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
        dy += dy_image
        x += x_image
    connected, at = _connected(bits, first, row, left_column, rows, words, COLUMNS)
    tl.store(dvalues + at, total, mask=connected)


# Shared. ROWS neighbouring rows are a group; `pointers` [groups + 1]: how many columns those before it have. Its columns are those of its
# first row in `indices`, and its values a dense matrix [ROWS, columns of the group].


@triton.jit(do_not_specialize=["rows_of_group"])
def shared_product(
    pointers,
    indices,
    values,
    bias,
    x,
    x_starts,
    x_stride,
    x_group,
    rows_of_group,
    x_image,
    x_line,
    x_step,
    y,
    y_stride,
    y_image,
    y_line,
    y_step,
    groups,
    pixels,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = W x + bias of one group at PIXELS pixels."""
    group, image, pixel = _tile(groups, pixels, PIXELS)
    within, inside = tl.arange(0, ROWS), pixel < pixels
    before = tl.load(pointers + group)
    columns, begin = tl.load(pointers + group + 1) - before, before.to(tl.int64) * ROWS
    x += image * x_image
    if x_group is not None:
        x += (group * ROWS // rows_of_group).to(tl.int64) * x_group
    x_places = _places(pixel, width, x_line, x_step)
    total = tl.zeros((ROWS, PIXELS), tl.float32)
    for first in range(0, columns, COLUMNS):
        k = first + tl.arange(0, COLUMNS)
        exists = k < columns
        start = _starts(tl.load(indices + begin + k, mask=exists, other=0), x_starts, x_stride, exists)
        weight = tl.load(values + begin + within[:, None] * columns + k[None, :], mask=exists[None, :], other=0.0).to(x.dtype.element_ty)
        input = tl.load(x + start[:, None] + x_places[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
        total = tl.dot(weight, input, total, input_precision=PRECISION)
    row = group.to(tl.int64) * ROWS + within
    if bias is not None:
        total += tl.load(bias + row)[:, None]
    y_places = row[:, None] * y_stride + _places(pixel, width, y_line, y_step)[None, :]
    tl.store(y + image * y_image + y_places, total.to(y.dtype.element_ty), mask=inside[None, :])


@triton.jit(do_not_specialize=["usual"])
def shared_transposed(
    pointers,
    values,
    dy,
    dy_stride,
    dy_image,
    dy_line,
    dy_step,
    parts,
    parts_stride,
    parts_image,
    parts_line,
    parts_step,
    groups,
    usual,
    pixels,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a group gives its columns of W^T dy at PIXELS pixels, not summed over groups yet.

    `usual`: how many columns a group has, on average. As many programs share them as have TILES times COLUMNS of those.
    """
    programs = tl.cdiv(usual, COLUMNS * TILES)
    program, image, pixel = _tile(groups * programs, pixels, PIXELS)
    group, within, inside = program // programs, tl.arange(0, ROWS), pixel < pixels
    before = tl.load(pointers + group)
    columns, begin = tl.load(pointers + group + 1) - before, before.to(tl.int64) * ROWS
    row = group.to(tl.int64) * ROWS + within
    dy_places = row[:, None] * dy_stride + _places(pixel, width, dy_line, dy_step)[None, :]
    gradient = tl.load(dy + image * dy_image + dy_places, mask=inside[None, :], other=0.0)
    parts += image * parts_image + before.to(tl.int64) * parts_stride
    parts_places = _places(pixel, width, parts_line, parts_step)
    for first in range(program % programs * COLUMNS, columns, programs * COLUMNS):
        k = first + tl.arange(0, COLUMNS)
        exists = k < columns
        weight = tl.load(values + begin + within[:, None] * columns + k[None, :], mask=exists[None, :], other=0.0).to(dy.dtype.element_ty)
        total = tl.dot(tl.trans(weight), gradient, input_precision=PRECISION)
        places = k.to(tl.int64)[:, None] * parts_stride + parts_places[None, :]
        tl.store(parts + places, total.to(parts.dtype.element_ty), mask=exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows_of_group", "usual"])
def shared_sampled(
    pointers,
    indices,
    dvalues,
    x,
    x_starts,
    x_stride,
    x_group,
    rows_of_group,
    x_image,
    x_line,
    x_step,
    dy,
    dy_stride,
    dy_image,
    dy_line,
    dy_step,
    usual,
    images,
    pixels,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dW of one group, COLUMNS of its columns at a time. `usual`: how many a group has, on average, so that programs share them."""
    programs = tl.cdiv(usual, COLUMNS)
    group, within = tl.program_id(0) // programs, tl.arange(0, ROWS)
    before = tl.load(pointers + group)
    columns, begin = tl.load(pointers + group + 1) - before, before.to(tl.int64) * ROWS
    dy += group.to(tl.int64) * ROWS * dy_stride
    if x_group is not None:
        x += (group * ROWS // rows_of_group).to(tl.int64) * x_group
    for first in range(tl.program_id(0) % programs * COLUMNS, columns, programs * COLUMNS):
        k = first + tl.arange(0, COLUMNS)
        exists = k < columns
        start = _starts(tl.load(indices + begin + k, mask=exists, other=0), x_starts, x_stride, exists)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        left_of, right_of = dy, x
        for _ in range(images):
            for from_pixel in range(0, pixels, PIXELS):
                pixel = from_pixel + tl.arange(0, PIXELS)
                inside = pixel < pixels
                dy_places = within.to(tl.int64)[:, None] * dy_stride + _places(pixel, width, dy_line, dy_step)[None, :]
                x_places = start[None, :] + _places(pixel, width, x_line, x_step)[:, None]
                left = tl.load(left_of + dy_places, mask=inside[None, :], other=0.0)
                right = tl.load(right_of + x_places, mask=inside[:, None] & exists[None, :], other=0.0)
                total = tl.dot(left, right, total, input_precision=PRECISION)
            left_of += dy_image
            right_of += x_image
        tl.store(dvalues + begin + within[:, None] * columns + k[None, :], total, mask=exists[None, :])


# Blocks. `pointers` [rows / SIZE + 1] and `block_columns` [blocks]: which blocks there are, as indptr and indices say it of connections.
# The values of a block are SIZE short pieces of SIZE rows: the values of a row of blocks lie row by row.


@triton.jit
def _in_block(block, before, after, SIZE: tl.constexpr):
    """Where the values of `block` are [SIZE, SIZE], one of blocks `before` to `after` in its row of blocks."""
    within = tl.arange(0, SIZE).to(tl.int64)
    length = (after - before).to(tl.int64) * SIZE
    return before.to(tl.int64) * SIZE * SIZE + within[:, None] * length + (block - before) * SIZE + within[None, :]


@triton.jit
def blocks_product(
    pointers,
    block_columns,
    values,
    bias,
    x,
    x_stride,
    x_image,
    x_step,
    y,
    y_stride,
    y_image,
    y_step,
    row_blocks,
    pixels,
    SIZE: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = W x + bias of one row of blocks at PIXELS pixels."""
    row_block, image, pixel = _tile(row_blocks, pixels, PIXELS)
    within, inside = tl.arange(0, SIZE), pixel < pixels
    x += image * x_image
    before, after = tl.load(pointers + row_block), tl.load(pointers + row_block + 1)
    total = tl.zeros((SIZE, PIXELS), tl.float32)
    for block in range(before, after):
        weight = tl.load(values + _in_block(block, before, after, SIZE)).to(x.dtype.element_ty)
        column = tl.load(block_columns + block).to(tl.int64) * SIZE + within
        input = tl.load(x + column[:, None] * x_stride + pixel[None, :] * x_step, mask=inside[None, :], other=0.0)
        total = tl.dot(weight, input, total, input_precision=PRECISION)
    row = row_block.to(tl.int64) * SIZE + within
    if bias is not None:
        total += tl.load(bias + row)[:, None]
    y_places = row[:, None] * y_stride + pixel[None, :] * y_step
    tl.store(y + image * y_image + y_places, total.to(y.dtype.element_ty), mask=inside[None, :])


@triton.jit
def blocks_transposed(
    pointers,
    column_pointers,
    block_rows,
    block_places,
    values,
    dy,
    dy_stride,
    dy_image,
    dy_step,
    dx,
    dx_stride,
    dx_image,
    dx_step,
    column_blocks,
    pixels,
    SIZE: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx = W^T dy of one column of blocks at PIXELS pixels. `block_rows`, `block_places`: the blocks, column by column."""
    column_block, image, pixel = _tile(column_blocks, pixels, PIXELS)
    within, inside = tl.arange(0, SIZE), pixel < pixels
    dy += image * dy_image
    total = tl.zeros((SIZE, PIXELS), tl.float32)
    for i in range(tl.load(column_pointers + column_block), tl.load(column_pointers + column_block + 1)):
        row_block, block = tl.load(block_rows + i), tl.load(block_places + i)
        before, after = tl.load(pointers + row_block), tl.load(pointers + row_block + 1)
        weight = tl.load(values + _in_block(block, before, after, SIZE)).to(dy.dtype.element_ty)
        row = row_block.to(tl.int64) * SIZE + within
        gradient = tl.load(dy + row[:, None] * dy_stride + pixel[None, :] * dy_step, mask=inside[None, :], other=0.0)
        total = tl.dot(tl.trans(weight), gradient, total, input_precision=PRECISION)
    column = column_block.to(tl.int64) * SIZE + within
    dx_places = column[:, None] * dx_stride + pixel[None, :] * dx_step
    tl.store(dx + image * dx_image + dx_places, total.to(dx.dtype.element_ty), mask=inside[None, :])


@triton.jit
def blocks_sampled(
    pointers,
    row_of_each,
    block_columns,
    dvalues,
    x,
    x_stride,
    x_image,
    x_step,
    dy,
    dy_stride,
    dy_image,
    dy_step,
    images,
    pixels,
    SIZE: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dW of one block."""
    block, within = tl.program_id(0), tl.arange(0, SIZE)
    row_block = tl.load(row_of_each + block)
    row, column = row_block.to(tl.int64) * SIZE + within, tl.load(block_columns + block).to(tl.int64) * SIZE + within
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for _ in range(images):
        for start in range(0, pixels, PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            inside = pixel < pixels
            dy_places = row[:, None] * dy_stride + pixel[None, :] * dy_step
            x_places = column[None, :] * x_stride + pixel[:, None] * x_step
            left = tl.load(dy + dy_places, mask=inside[None, :], other=0.0)
            right = tl.load(x + x_places, mask=inside[:, None], other=0.0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
        dy += dy_image
        x += x_image
    before, after = tl.load(pointers + row_block), tl.load(pointers + row_block + 1)
    tl.store(dvalues + _in_block(block, before, after, SIZE), total)
