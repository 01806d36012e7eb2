"""`python -m vtkernels build-prototypes`, and its steps `probe`, `merge`, `inspect` and `validate`."""

import argparse
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..demo import DemoError
from . import SHIPPED, CodebookError, _options, _shards, load, save
from ._build import RECIPES, Built, build, cheap, cuts, merge
from ._measure import probe


def add_parser(commands: Any, epilog: str) -> None:
    parser = commands.add_parser(
        "build-prototypes", epilog=epilog, help="build a codebook, merge, inspect and validate codebooks",
        description="With --model and --images, measure the visual tokens of images in a model and select prototypes; "
        "with --features, cluster features; with neither, rebuild the shipped codebook from the photographs of "
        "scikit-image. An interrupted run goes on with the same command. See docs/codebooks.md.")
    steps = parser.add_subparsers(metavar="STEP")
    parser.add_argument("--out", metavar="FILE", help="file to write; default without a source: the shipped one")
    parser.add_argument("--features", metavar="FILE", help="safetensors file with tokens, [N, D] or [B, N, D]")
    parser.add_argument("--recipe", choices=RECIPES, help="default: language, or with --features kmeans")
    parser.add_argument("--shards", metavar="DIR", help="folder of the measurements (default: FILE.shards)")
    _options.add_model(parser, required=False)
    _options.add_probing(parser)
    _options.add_selection(parser)
    _options.add_clusters(parser)
    parser.set_defaults(command=_build)

    step = steps.add_parser("probe", epilog=epilog, help="measure only, shared out over workers",
                            description="Measure images into shard files, for merge. Under torchrun each process takes "
                            "its share and its GPU.")
    step.add_argument("--shards", metavar="DIR", required=True, help="folder of the measurements, one for all workers")
    step.add_argument("--recipe", choices=RECIPES, default="language", help="default: language")
    for name, variable, value in (("--worker", "RANK", 0), ("--workers", "WORLD_SIZE", 1)):
        step.add_argument(name, type=int, default=os.environ.get(variable, value), metavar="N",
                          help=f"default: the environment's {variable}, or {value}")
    _options.add_model(step, required=True)
    _options.add_probing(step)
    _options.add_selection(step)
    step.set_defaults(command=_probe)

    step = steps.add_parser("merge", epilog=epilog, help="shard files, or codebooks, into one codebook")
    step.add_argument("inputs", nargs="+", metavar="PATH", help="shard files and folders of them, or codebooks")
    step.add_argument("--out", metavar="FILE", required=True)
    step.add_argument("--recipe", choices=RECIPES, default="language", help="of shards (default: language)")
    _options.add_selection(step)
    _options.add_clusters(step)
    step.set_defaults(command=_merge)

    step = steps.add_parser("inspect", epilog=epilog, help="sizes, coverage and a picture of a codebook")
    step.add_argument("file", metavar="FILE")
    step.add_argument("--features", metavar="FILE", help="safetensors file with the tokens to be covered")
    step.add_argument("--shards", nargs="+", default=[], metavar="PATH", help="measurements with tokens to be covered")
    step.add_argument("--images", nargs="+", default=[], metavar="PATH", help="the images of the shards")
    step.add_argument("--picture", metavar="PNG", help="prototypes with their nearest tokens; needs --shards, --images")
    step.set_defaults(command=_inspect)

    step = steps.add_parser("validate", epilog=epilog, help="check a file, and whether it fits a model")
    step.add_argument("file", metavar="FILE")
    step.add_argument("--model", metavar="NAME", help="model whose D, dtype and layer it must have; only its "
                      "configuration is read")
    step.set_defaults(command=_validate)


def _build(args: argparse.Namespace) -> None:
    if args.features is not None and args.model is not None:
        raise DemoError("build-prototypes: --features and --model exclude each other")
    if args.model is not None:
        if args.out is None or not args.images:
            raise DemoError("build-prototypes: --model needs --images and --out")
        try:
            built = build(*_loaded(args), _image_files(args.images), args.out, recipe=args.recipe or "language",
                          selection=_options.selection(args), clusters=_options.clusters(args), shards=args.shards,
                          name=args.model, **_options.probing(args))
        except KeyboardInterrupt:
            raise CodebookError("interrupted; what was measured is kept, and the same command goes on") from None
        _report(built)
    elif args.features is not None:
        _from_features(args)
    elif args.images or args.recipe:
        raise DemoError("build-prototypes: --images and --recipe need --model or --features")
    else:
        from ..demo import codebook

        path = args.out or SHIPPED
        print(f"{codebook.write(path)} prototypes written to {path}")


def _from_features(args: argparse.Namespace) -> None:
    from ..demo.features import read_features

    if args.out is None:
        raise DemoError("build-prototypes: --features needs --out")
    recipe = args.recipe or "kmeans"
    if recipe == "language":
        raise DemoError("build-prototypes: the recipe language needs --model and --images, which it asks")
    features = read_features(Path(args.features))
    try:
        book, words = cheap(features.flatten(0, 1), recipe, _options.clusters(args), means=features.double().mean(1))
    except CodebookError as error:
        raise DemoError(f"{args.features}: {error}") from error
    save(args.out, book, source=Path(args.features).name, recipe=words)
    print(f"{len(book)} prototypes written to {args.out}")


def _probe(args: argparse.Namespace) -> None:
    settings = {**_options.probing(args), "language": args.recipe == "language", "worker": args.worker,
                "workers": args.workers}
    if args.recipe == "language":
        settings |= cuts(_options.selection(args))
    try:
        files = probe(*_loaded(args), _image_files(args.images), args.shards, name=args.model, **settings)
    except KeyboardInterrupt:
        raise CodebookError("interrupted; what was measured is kept, and the same command goes on") from None
    there = [file for file in files if file.exists()]
    print(f"{len(there)} of {len(files)} shards are in {args.shards}")
    _list_skipped([reason for file in there for reason in _shards.read(file)[0].skipped])


def _merge(args: argparse.Namespace) -> None:
    kinds = {_shards.is_shard(Path(path)) for path in args.inputs}
    if len(kinds) > 1:
        raise CodebookError("merge: the inputs are shards and codebooks, allowed: one kind of them")
    if kinds == {True}:
        _report(merge(args.inputs, args.out, recipe=args.recipe, selection=_options.selection(args),
                      clusters=_options.clusters(args)))
        return
    from ._join import join_codebooks

    count, twice = join_codebooks(args.inputs, args.out)
    print(f"{count} prototypes written to {args.out}, {twice} that stood in several files once")


def _inspect(args: argparse.Namespace) -> None:
    from ..demo.features import read_features
    from . import _inspect

    book = load(args.file)
    print(_inspect.describe(book))
    if args.features:
        print(_inspect.coverage(book, read_features(Path(args.features)).flatten(0, 1)))
    if args.picture and not (args.shards and args.images):
        raise CodebookError("inspect: --picture is without --shards or --images, allowed: with both")
    if args.shards:
        files = _shards.files(args.shards)
        joined = _shards.join([_shards.read(file)[0] for file in files], files)
        print(_inspect.coverage(book, joined.features))
        if args.picture:
            _inspect.picture(book, joined, _image_files(args.images), args.picture)
            print(f"picture written to {args.picture}")


def _validate(args: argparse.Namespace) -> None:
    model = None
    if args.model is not None:
        config = _config(args.model)
        model = SimpleNamespace(config=config, dtype=config.dtype or torch.float32)
    book = load(args.file, model=model)
    count, dim = book.prototypes.shape
    print(f"{args.file}: {count} x {dim} {str(book.prototypes.dtype).removeprefix('torch.')}, "
          f"{'sha256 is right' if 'sha256' in book.metadata else 'has no sha256'}"
          f"{f', fits {args.model}' if args.model else ''}")


def _loaded(args: argparse.Namespace) -> tuple[Any, Any]:
    _config(args.model)
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype or "auto")
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = args.device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    return model.eval().to(device), transformers.AutoProcessor.from_pretrained(args.model)


def _config(name: str) -> Any:
    from ._vlm import check_family

    try:
        import transformers
    except ImportError as error:
        raise DemoError(f"build-prototypes: --model needs transformers ({error}): pip install "
                        "'vtkernels[transformers]'") from error
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except ValueError as error:
        raise CodebookError(f"build-prototypes: `model` is {name}, which transformers cannot load ({error}), allowed: "
                            "a folder or name of a model") from error
    check_family(config, name)
    return config


def _image_files(paths: list[str]) -> list[Path]:
    from ..demo.images import collect

    named, found = collect(paths)
    return named + found


def _report(built: Built) -> None:
    _list_skipped(built.skipped)
    print(f"{built.sizes[0]} prototypes written to {built.path}\n{built.recipe}; {built.images} images")


def _list_skipped(reasons: Any) -> None:
    if reasons:
        print(f"skipped {len(reasons)} image{'s' * (len(reasons) > 1)} that cannot be used:")
        print("\n".join(f"  {' '.join(reason.split())}" for reason in reasons))
