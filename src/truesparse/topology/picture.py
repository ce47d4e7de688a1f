"""What do the connections of a layer look like, in a picture of bounded size? The work is of the connections, never of rows x columns."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from math import ceil

import torch
from torch import Tensor

from ..common import shown

Colour = tuple[int, int, int]
Extent = tuple[int, int]

MOST_CELLS = (128, 128)
"""Rows and columns of pixels of a picture; of larger layers several positions share one."""


@dataclass(frozen=True)
class Palette:
    """Colours, red-green-blue from 0 to 255, of positions before and after a change; those with no connection are black.

    Args:
        unchanged: a connection before and after.
        dropped: before only.
        grown: after only.
    """

    unchanged: Colour
    dropped: Colour
    grown: Colour


USUAL = Palette((255, 255, 255), (255, 75, 75), (48, 213, 107))
# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/: orange and sky blue, told apart with every kind of colour vision.
SAFE = Palette((255, 255, 255), (230, 159, 0), (86, 180, 233))
PALETTES = {"usual": USUAL, "safe": SAFE}


def positions_of_a_pixel(shape: Extent, most: Extent = MOST_CELLS) -> Extent:
    """(rows, columns) that share a pixel; (1, 1) where each position has its own."""
    return max(1, ceil(shape[0] / most[0])), max(1, ceil(shape[1] / most[1]))


def densities(shape: Extent, keys: Tensor, most: Extent = MOST_CELLS) -> Tensor:
    """[height, width] float64: the share of the positions of each pixel that `keys` names.

    Args:
        shape: (rows, columns) of the layer.
        keys: linear positions `row * columns + column`, int64.
        most: pixels at most, (height, width).
    """
    (rows, columns), (high, wide) = shape, positions_of_a_pixel(shape, most)
    height, width = ceil(rows / high), ceil(columns / wide)
    keys = keys.cpu()
    cells = torch.div(keys, columns * high, rounding_mode="floor") * width + torch.div(keys % max(columns, 1), wide, rounding_mode="floor")
    counts = torch.bincount(cells, minlength=height * width).view(height, width).double()
    # Pixels at the lower and right edge may have fewer positions.
    tall = torch.full((height, 1), high, device="cpu").clamp(max=rows - torch.arange(height, device="cpu").mul(high).view(-1, 1))
    broad = torch.full((1, width), wide, device="cpu").clamp(max=columns - torch.arange(width, device="cpu").mul(wide).view(1, -1))
    return counts / (tall * broad)


def pixels(shape: Extent, unchanged: Tensor, dropped: Tensor, grown: Tensor, palette: Palette = USUAL, most: Extent = MOST_CELLS) -> Tensor:
    """[height, width, 3] uint8: connections before and after a change in the colours of `palette`, mixed where positions share a pixel.

    The densest pixel is as bright as a pixel of one connection.

    Args:
        shape: (rows, columns) of the layer.
        unchanged, dropped, grown: linear positions, int64; no position is in two of them.
        palette: the colours.
        most: pixels at most, (height, width).
    """
    parts = [densities(shape, keys, most) for keys in (unchanged, dropped, grown)]
    densest = sum(parts).max().clamp(min=1e-12) if parts[0].numel() else 1.0  # type: ignore[union-attr]
    colours = torch.tensor((palette.unchanged, palette.dropped, palette.grown), dtype=torch.float64, device="cpu")
    mixed = torch.stack([part / densest for part in parts], dim=-1) @ colours
    return mixed.round().clamp(0, 255).to(torch.uint8)


def connections_picture(shape: Extent, keys: Tensor, most: Extent = MOST_CELLS) -> Tensor:
    """[height, width, 3] uint8: white connections on black; see `pixels`."""
    return pixels(shape, keys, keys[:0], keys[:0], most=most)


def html(shape: Extent, keys: Tensor) -> str:
    """HTML of a picture of these connections; "" where there is nothing to see, or no array (device meta)."""
    if keys.is_meta or not shape[0] or not shape[1]:
        return ""
    image = connections_picture(shape, keys)
    enlarged = min(8, max(1, 256 // max(image.shape[:2])))
    return shown.picture(png(image), image.shape[1] * enlarged, said(shape))


def said(shape: Extent, most: Extent = MOST_CELLS) -> str:
    """What a pixel of a picture stands for."""
    high, wide = positions_of_a_pixel(shape, most)
    if (high, wide) == (1, 1):
        return f"{shape[0]} x {shape[1]}: white is a connection"
    return f"{shape[0]:,} x {shape[1]:,}: each pixel stands for {high} x {wide} positions, the brighter the more connections"


def png(image: Tensor) -> bytes:
    """`image` [height, width, 3] uint8 as a PNG file."""
    from PIL import Image

    content = BytesIO()
    Image.fromarray(image.numpy()).save(content, "png", optimize=True)
    return content.getvalue()
