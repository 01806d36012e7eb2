"""The command line: `python -m vtkernels demo | bench | methods | info | explain | build-prototypes`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import vtkernels

from . import _dispatch, _env, _info
from .demo import DemoError
from .prototypes import CodebookError, _command
from .prototypes._options import natural

EXIT_CODES = "exit codes: 0 done, 1 an input or this machine does not allow it, 2 the command line is wrong"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["bench"]:  # its options belong to benchmarks.run, --help among them
        command, parsed = _bench, argparse.Namespace(rest=arguments[1:])
    else:
        parsed = _parser().parse_args(arguments)
        command = parsed.command
    try:
        return command(parsed) or 0
    except (DemoError, CodebookError, OSError) as error:
        print(f"vtkernels: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vtkernels", description=vtkernels.__doc__, epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=vtkernels.__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", epilog=EXIT_CODES, help="prune the visual tokens of photographs, with pictures",
                               description="Photographs to tokens, tokens scored, the least redundant kept, hidden "
                               "states and K/V gathered. Prints a table and writes a picture for each photograph.")
    source = demo.add_mutually_exclusive_group()
    source.add_argument("--images", nargs="+", default=[], metavar="PATH",
                        help="image files, or folders searched for images; default: photographs packaged with "
                             "scikit-image and scikit-learn")
    source.add_argument("--features", metavar="FILE",
                        help="safetensors file with real features, [N, D] or [B, N, D], instead of images")
    demo.add_argument("--codebook", metavar="FILE", help="safetensors file with the tensor `prototypes` [P, D]; "
                      "default: the shipped one, which fits the demo's own encoder only")
    demo.add_argument("--keep", type=_share, default=0.25, metavar="SHARE",
                      help="share of the tokens that stays, above 0 and at most 1 (default 0.25)")
    demo.add_argument("--out", default="demo_out", metavar="DIR", help="folder of the pictures (default demo_out)")
    demo.add_argument("--seed", type=natural, default=0, help="of the random K/V projections (default 0)")
    demo.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes a while to start")
    demo.set_defaults(command=_demo)

    commands.add_parser("bench", add_help=False, help="run the microbenchmarks of a source checkout")

    methods = commands.add_parser("methods", epilog=EXIT_CODES, help="the published methods, as a table")
    methods.add_argument("--markdown", action="store_true", help="as in docs/methods.md")
    methods.set_defaults(command=_methods)

    info = commands.add_parser("info", epilog=EXIT_CODES, help="versions, compilers, native libraries, environment")
    info.set_defaults(command=_print_info)

    explain = commands.add_parser("explain", epilog=EXIT_CODES, help="which backend runs an op, and why not the others")
    explain.add_argument("op", metavar="OP", choices=sorted(_dispatch.STAGES), help=", ".join(_dispatch.STAGES))
    explain.set_defaults(command=_explain)

    _command.add_parser(commands, EXIT_CODES)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from .demo.run import run

    run(arguments.images, arguments.features, arguments.codebook, arguments.keep, arguments.out, arguments.seed,
        not arguments.no_compile)


def _bench(arguments: argparse.Namespace) -> int:
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "benchmarks" / "run.py").is_file():
        raise DemoError(f"bench needs a source checkout, and {checkout} has no benchmarks/run.py: clone the repository "
                        "and run it there")
    sys.path.insert(0, str(checkout))
    return importlib.import_module("benchmarks.run").main(arguments.rest) or 0


def _methods(arguments: argparse.Namespace) -> None:
    from .methods import _table

    print(_table.markdown() if arguments.markdown else _table.text(), end="" if arguments.markdown else "\n")


def _print_info(arguments: argparse.Namespace) -> None:
    print(_info.info())


def _explain(arguments: argparse.Namespace) -> None:
    from .testing import SAMPLES

    sample = next(SAMPLES[arguments.op]())
    try:
        print(vtkernels.explain(arguments.op, *sample.args, **sample.kwargs))
    except RuntimeError as error:  # VTKERNELS_BACKEND asks for one that cannot run here
        raise DemoError(str(error)) from error
    here = "" if torch.cuda.is_available() else " (torch sees no such device here)"
    print(f"{arguments.op} on cuda{here}: the first of these that can run")
    for backend in _dispatch.ORDER["cuda"]:
        print(f"  {backend}: {_dispatch.refusal(backend, 'cuda') or 'can run'}")
    if _env.BACKEND != "auto":
        print(f"  VTKERNELS_BACKEND={_env.BACKEND} overrides this order")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}, allowed: above 0 and at most 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
