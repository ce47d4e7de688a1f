"""Sparse convolutions beside dense PyTorch: python benchmarks/conv.py --threads 1 2"""

from __future__ import annotations

import torch
from measure import HEADER, arguments, headline, interleaved, line, refuse_if_wrong

from truesparse.geometry import Convolution
from truesparse.ops.cpu import ConvolutionKernels
from truesparse.topology import Topology

NEED = (True, True, False)  # dW, dx, no bias
LINES = [
    (Convolution(64, 64, (3, 3), padding=(1, 1)), 32, 0.9, 16),
    (Convolution(64, 64, (3, 3), padding=(1, 1)), 32, 0.95, 16),
    (Convolution(64, 64, (3, 3), padding=(1, 1)), 32, 0.9, 1),
    (Convolution(128, 128, (3, 3), padding=(1, 1)), 16, 0.9, 16),
    (Convolution(256, 256, (3, 3), padding=(1, 1)), 8, 0.9, 16),
    (Convolution(64, 128, (3, 3), padding=(1, 1), stride=(2, 2)), 32, 0.9, 16),
    (Convolution(128, 128, (1, 1)), 16, 0.9, 16),
    (Convolution(16, 32, (3, 3), padding=(1, 1)), 8, 0.8, 64),
    (Convolution(16, 32, (3, 3), padding=(1, 1)), 7, 0.8, 64),
    (Convolution(16, 32, (3, 3), padding=(1, 1)), 14, 0.8, 64),
]


def main() -> None:
    options = arguments(__doc__ or "")
    print(headline())
    print(HEADER)
    for geometry, size, sparsity, batch in LINES:
        g = geometry
        stride = f"/{g.stride[0]}" if g.stride[0] > 1 else ""
        name = f"{g.in_channels}->{g.out_channels} {g.kernel[0]}x{g.kernel[1]}{stride} on {size}x{size}, {sparsity:.0%}, batch {batch}"
        if options.only not in name:
            continue
        topology = Topology.from_mask(torch.rand(g.shape) >= sparsity)
        kernels, values = ConvolutionKernels(topology, g), torch.randn(topology.nnz)
        x, dense = torch.randn(batch, g.in_channels, size, size), topology.scatter(values).view(g.weight_shape)
        expected = g.dense(x, dense, None)
        dy = torch.randn_like(expected)
        settings = (None, g.stride, g.padding, g.dilation, False, [0, 0], g.groups, [True, True, False])

        def dense_backward(dy: torch.Tensor = dy, x: torch.Tensor = x, dense: torch.Tensor = dense, settings: tuple = settings) -> tuple:
            return torch.ops.aten.convolution_backward(dy, x, dense, *settings)

        refuse_if_wrong(name, kernels.spmm(values, x), expected)
        dx, dweight, _ = dense_backward()
        actual = kernels.backward(values, x, dy, NEED)
        refuse_if_wrong(name, actual[0], dweight.flatten()[topology.keys])
        refuse_if_wrong(name, actual[1], dx)
        for threads in dict.fromkeys(options.threads):
            torch.set_num_threads(threads)
            times = interleaved(
                [
                    lambda g=g, x=x, w=dense: g.dense(x, w, None),
                    lambda k=kernels, v=values, x=x: k.spmm(v, x),
                    lambda g=g, x=x, w=dense, backward=dense_backward: (g.dense(x, w, None), backward()),
                    lambda k=kernels, v=values, x=x, dy=dy: (k.spmm(v, x), k.backward(v, x, dy, NEED)),
                ],
                options.seconds,
            )
            print(line(name, threads, "forward", *times[:2]))
            print(line(name, threads, "forward+backward", *times[2:]), flush=True)


if __name__ == "__main__":
    main()
