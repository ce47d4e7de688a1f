"""What a compiler makes of a header is what the counts say, and where the memory is."""

import torch
from c_build import NETWORKS, needs, sparse

import truesparse as ts
from truesparse.embedded import size


def test_constants_and_memory_are_as_counted(tmp_path):
    needs("gcc")
    model = sparse(NETWORKS["wrist"](), 0.7)
    x = torch.randn(9, *model.shape)
    for values in ("float32", "int8"):
        exported = ts.export_c(model, x, tmp_path / "net.h", values=values, calibration=[x] if values == "int8" else None)
        sizes = size(exported)
        held = dict(sizes.rows)
        for row in exported.rows:
            assert 0 <= held[row.layer] - row.flash <= 160, row.layer  # the structures
        assert sum(held.values()) == sizes.section("rodata")
        own = exported.input_bytes + exported.output_bytes if values == "int8" else 0
        assert sizes.section("bss") == exported.memory + own
        assert sizes.section("data") == 0
        assert sizes.section("text") > 0
        assert "net_convolve" in str(sizes)
