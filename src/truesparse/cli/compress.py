"""`truesparse compress`: in how few bytes does a network fit, and what do its layers take?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compress(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_FILE", help="The folder of a run, or a file of truesparse.save or truesparse.compress."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the compressed network there; else only the table is shown.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of a run: dense, masked or sparse.", show_default="sparse if there")] = None,
    bits: Annotated[int | None, typer.Option(help="Quantise first, to numbers of so many bits.", show_default="as it is")] = None,
    by: Annotated[str | None, typer.Option(help="With --bits: row or codebook.", show_default="codebook")] = None,
) -> None:
    """Compress a network to about its entropy: connections, bits a value, bits a gap and bytes of each layer.

    Quantised here, the network is not trained again: for that, quantise it in your own loop with truesparse.quantize.
    """
    from ..export import compress as compressed
    from ..export import load
    from ..export.quantized import quantized_values
    from ..export.snapshot import snapshot
    from ..export.written import check_place
    from ..runs import ConfigError, RunError, trained_network
    from .results import wide_console

    if by is not None and bits is None:
        raise typer.BadParameter("it is about the numbers of --bits", param_hint="--by")
    if out is not None:
        check_place(out)
    if source.is_dir():
        network = snapshot(trained_network(source, variant).model)
    elif not source.exists():
        raise ConfigError(f"{source} is neither the folder of a run nor a file")
    elif variant is not None:
        raise ConfigError(f"--variant: {source} is a file and holds one network; leave the option out")
    else:
        network = load(source)
    try:
        network = network if bits is None else quantized_values(network, bits, by or "codebook")  # type: ignore[arg-type]
    except ValueError as error:
        raise RunError(f"cannot quantise {source}: {error}") from error
    report = compressed(network, out)
    console = wide_console()
    console.print(report.table().rich())
    if out is not None:
        console.print(f"{out}: {out.stat().st_size:,} bytes", markup=False, highlight=False, soft_wrap=True)
