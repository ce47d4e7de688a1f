"""`truesparse export`: in which file does a trained network go elsewhere?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .pack import Recipe, Source, Variant, network_of

if TYPE_CHECKING:
    from ..embedded import Exported
    from ..runs import Trained

UNITS = {"": 1, "k": 1024, "m": 1024**2}
OF_C = "it is about the C header: say which with --c FILE"
OF_ONNX = "it is about the ONNX file: say which with --onnx FILE"


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
    c: Annotated[Path | None, typer.Option("--c", metavar="FILE", help="Write one C99 header: for microcontrollers.")] = None,
    values: Annotated[str | None, typer.Option(help="In the C header: float32, or int8.", show_default="float32")] = None,
    calibration: Annotated[
        int | None, typer.Option(min=1, help="For int8: how many training samples tell the ranges.", show_default="512")
    ] = None,
    flash: Annotated[str | None, typer.Option(metavar="BYTES", help="That the header's constants may take, such as 256K.")] = None,
    ram: Annotated[str | None, typer.Option(metavar="BYTES", help="That a call may take, such as 64K.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="COMPILER", help="Compile the header, and say what it takes: 'arm-none-eabi-gcc -mcpu=cortex-m4'.")
    ] = None,
) -> None:
    """Write a trained network as a C99 header, as an ONNX file, or as one that truesparse.load reads."""
    if onnx is None and safetensors is None and c is None:
        raise typer.BadParameter("say what to write: --onnx FILE, --safetensors FILE, --c FILE, or several", param_hint="--onnx")
    if onnx is None and (sparse or opset is not None):
        raise typer.BadParameter(OF_ONNX, param_hint="--sparse" if sparse else "--opset")
    for option, given in (("values", values), ("calibration", calibration), ("flash", flash), ("ram", ram), ("size", size)):
        if c is None and given is not None:
            raise typer.BadParameter(OF_C, param_hint=f"--{option}")
    if calibration is not None and values != "int8":
        raise typer.BadParameter("it is for --values int8", param_hint="--calibration")
    if safetensors is not None and not source.is_dir():
        raise typer.BadParameter("it is for runs; a file of truesparse.save is one already", param_hint="--safetensors")
    limits = _bytes("--flash", flash), _bytes("--ram", ram)

    from ..export import save
    from ..export.onnx import OLDEST_OPSET, export_onnx
    from ..export.written import check_place
    from ..runs import RunError
    from .results import wide_console

    for path in (onnx, safetensors, c):
        if path is not None:
            check_place(path)
    network, console = network_of(source, recipe, variant), wide_console()
    console.print(network.said, markup=False, highlight=False, soft_wrap=True)
    example = network.example(2) if onnx is not None else None
    written: list[Path] = []
    exported: Exported | None = None
    try:
        if safetensors is not None:
            save(network.model, safetensors)
            written.append(safetensors)
        if onnx is not None and example is not None:
            export_onnx(network.model, onnx, example, sparse_initialisers=sparse, opset=OLDEST_OPSET if opset is None else opset)
            written.append(onnx)
        if c is not None:
            exported = _c(network, c, values or "float32", calibration or 512, limits)
            written.append(c)
    except (TypeError, ValueError) as error:
        raise RunError(f"cannot export {source}: {error}") from error
    finally:
        for path in written:
            console.print(f"{path}: {path.stat().st_size:,} bytes", markup=False, highlight=False, soft_wrap=True)
    if exported is not None:
        console.print(exported.table().rich())
        _say_size(exported, size)


def _c(network: Trained, path: Path, values: str, calibration: int, limits: tuple[int | None, int | None]) -> Exported:
    from ..embedded import export_c

    batches = None
    if values == "int8":
        training = network.read_training().only(calibration)
        batches = (inputs for inputs, _ in training.in_order())
    return export_c(network.model, network.example(2), path, values=values, calibration=batches, flash=limits[0], ram=limits[1])


def _say_size(exported: Exported, command: str | None) -> None:
    from ..embedded import CompilerError
    from ..embedded import size as measured
    from ..runs import RunError
    from .results import wide_console

    if command is None:
        return
    compiler, *flags = command.split()
    try:
        wide_console().print(measured(exported, compiler, flags or ("-Os",)).table().rich())
    except CompilerError as error:
        raise RunError(f"{error}. The header is written") from error


def _bytes(option: str, said: str | None) -> int | None:
    """A number of bytes as people write them: 65536, 64K, 1M."""
    if said is None:
        return None
    match = re.fullmatch(r"(\d+)\s*([kKmM]?)(?:i?[bB])?", said.strip())
    if match is None or int(match[1]) < 1:
        raise typer.BadParameter(f"expected a number of bytes such as 65536, 64K or 1M, got {said!r}", param_hint=option)
    return int(match[1]) * UNITS[match[2].lower()]
