"""How many connections look at each pixel of the input?"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..topology import Topology
from ..topology.geometry import Convolution, Matrix
from .run import RunLayer


def input_heat(layer: RunLayer, topology: Topology, sample: tuple[int, ...] | None) -> Tensor | None:
    """For each entry of a sample, how many connections of the layer read it, [channels, height, width] int64.

    Of a convolution, a connection reads a pixel once for each output position from which it does.

    Args:
        layer: one of a run.
        topology: of the layer.
        sample: shape of a sample of the run: (height, width) or (channels, height, width). Any other is taken as one row of pixels.

    Returns:
        None if the layer does not see samples themselves, or they are not known.
    """
    geometry = layer.geometry
    if sample is None or not layer.sees_sample:
        return None
    if not isinstance(geometry, Matrix):
        if not isinstance(geometry, Convolution) or not len(sample) == geometry.sample_ndim == 3:
            return None
        return _of_convolution(geometry, topology, sample)
    if prod(sample) != geometry.columns:
        return None
    image = sample if len(sample) == 3 else (1, *sample) if len(sample) == 2 else (1, 1, geometry.columns)
    return topology.fan_out.view(image)


def _of_convolution(geometry: Convolution, topology: Topology, sample: tuple[int, ...]) -> Tensor:
    inputs, (kernel_height, kernel_width) = geometry.in_channels // geometry.groups, geometry.kernel
    group = topology.rows.long() // (geometry.out_channels // geometry.groups)
    keys = group * geometry.shape[1] + topology.indices
    taps = torch.bincount(keys, minlength=geometry.groups * geometry.shape[1]).view(geometry.groups * inputs, kernel_height, kernel_width)
    height, width = geometry.output_size((sample[1], sample[2]))
    # What a convolution reads, its transpose writes: a one from each output position, by every tap.
    covered = tuple(
        (outputs - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
        for outputs, stride, padding, dilation, kernel in zip(
            (height, width), geometry.stride, geometry.padding, geometry.dilation, geometry.kernel, strict=True
        )
    )
    left = tuple(extent - reached for extent, reached in zip(sample[1:], covered, strict=True))
    heat = F.conv_transpose2d(
        torch.ones(1, 1, height, width, dtype=torch.float64, device="cpu"),
        taps[None].double(),
        stride=geometry.stride,
        padding=geometry.padding,
        output_padding=left,
        dilation=geometry.dilation,
    )
    return heat[0].round().long()
