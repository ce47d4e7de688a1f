"""`truesparse export`: in which file does a trained network go elsewhere?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .pack import Recipe, Source, Variant, network_of


def export(
    source: Source,
    recipe: Recipe = None,
    variant: Variant = None,
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an ONNX file: for ONNX Runtime and others.")] = None,
    sparse: Annotated[bool, typer.Option("--sparse", help="In the ONNX file, sparse weights where they take fewer bytes.")] = False,
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators.", show_default="18")] = None,
    safetensors: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the network of a run as one file of truesparse.save.")
    ] = None,
) -> None:
    """Write a trained network as an ONNX file, or as one that truesparse.load reads."""
    if onnx is None and safetensors is None:
        raise typer.BadParameter("say what to write: --onnx FILE, --safetensors FILE, or both", param_hint="--onnx")
    if onnx is None and (sparse or opset is not None):
        raise typer.BadParameter("it is about the ONNX file: say which with --onnx FILE", param_hint="--sparse" if sparse else "--opset")
    if safetensors is not None and not source.is_dir():
        raise typer.BadParameter("it is for runs; a file of truesparse.save is one already", param_hint="--safetensors")

    from ..export import save
    from ..export.onnx import OLDEST_OPSET, export_onnx
    from ..export.written import check_place
    from ..runs import RunError
    from .results import wide_console

    for path in (onnx, safetensors):
        if path is not None:
            check_place(path)
    network, console = network_of(source, recipe, variant), wide_console()
    console.print(network.said, markup=False, highlight=False, soft_wrap=True)
    example = network.example(2) if onnx is not None else None
    written: list[Path] = []
    try:
        if safetensors is not None:
            save(network.model, safetensors)
            written.append(safetensors)
        if onnx is not None and example is not None:
            export_onnx(network.model, onnx, example, sparse_initialisers=sparse, opset=OLDEST_OPSET if opset is None else opset)
            written.append(onnx)
    except (TypeError, ValueError) as error:
        raise RunError(f"cannot export {source}: {error}") from error
    finally:
        for path in written:
            console.print(f"{path}: {path.stat().st_size:,} bytes", markup=False, highlight=False, soft_wrap=True)
