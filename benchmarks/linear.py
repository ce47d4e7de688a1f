"""Sparse linear layers beside dense PyTorch: python benchmarks/linear.py --threads 1 2"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from measure import HEADER, arguments, headline, interleaved, line, refuse_if_wrong

from truesparse.geometry import Matrix
from truesparse.ops.cpu import MatrixKernels
from truesparse.topology import Topology

NEED = (True, True, False)  # dW, dx, no bias
LINES = [
    *((3072, 768, sparsity, 256) for sparsity in (0.8, 0.9, 0.95, 0.99)),
    *((3072, 768, 0.9, batch) for batch in (1, 2, 16, 64, 128)),
    (1568, 640, 0.97, 64),
    (3072, 4000, 0.986, 128),
    (784, 300, 0.9, 100),
]


def main() -> None:
    options = arguments(__doc__ or "")
    print(headline())
    print(HEADER)
    for columns, rows, sparsity, batch in LINES:
        name = f"{columns} -> {rows}, {sparsity:.1%} sparse, batch {batch}"
        if options.only not in name:
            continue
        topology = Topology.from_mask(torch.rand(rows, columns) >= sparsity)
        kernels, values = MatrixKernels(topology, Matrix(rows, columns)), torch.randn(topology.nnz)
        x, dy, dense = torch.randn(batch, columns), torch.randn(batch, rows), topology.scatter(values)

        refuse_if_wrong(name, kernels.spmm(values, x), F.linear(x, dense))
        dvalues, dx, _ = kernels.backward(values, x, dy, NEED)
        refuse_if_wrong(name, dvalues, (dy.T @ x).flatten()[topology.keys])
        refuse_if_wrong(name, dx, dy @ dense)
        for threads in dict.fromkeys(options.threads):
            torch.set_num_threads(threads)
            times = interleaved(
                [
                    lambda x=x, w=dense: F.linear(x, w),
                    lambda k=kernels, v=values, x=x: k.spmm(v, x),
                    lambda x=x, w=dense, dy=dy: (F.linear(x, w), dy @ w, dy.T @ x),
                    lambda k=kernels, v=values, x=x, dy=dy: (k.spmm(v, x), k.backward(v, x, dy, NEED)),
                ],
                options.seconds,
            )
            print(line(name, threads, "forward", *times[:2]))
            print(line(name, threads, "forward+backward", *times[2:]), flush=True)


if __name__ == "__main__":
    main()
