"""What the steps of `build-prototypes` have in common on the command line, and what their functions make of it."""

import argparse
from typing import Any

from ._build import Clusters
from ._select import Selection

_SHARE = "a number, or a share such as 25%% (default)"


def add_model(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--model", metavar="NAME", required=required, help="folder or name for transformers")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", required=required,
                        help="image files, or folders searched for images")
    parser.add_argument("--device", help="default: the GPU of LOCAL_RANK where torch sees one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: that of the checkpoint")


def add_probing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--probes", type=int, default=96, help="tokens of an image (default 96)")
    parser.add_argument("--question", help="put to the model (default: the one of the paper)")
    parser.add_argument("--prompt", help="the whole text instead, with the image's placeholder")
    parser.add_argument("--answer-start", default="", help="text before the word whose probability counts")
    parser.add_argument("--batch", type=int, default=16, help="prompts at a time (default 16)")
    parser.add_argument("--images-per-shard", type=int, default=8, help="images of a shard file (default 8)")


def add_selection(parser: argparse.ArgumentParser) -> None:
    default = Selection()
    parser.add_argument("--max-probability", default=default.max_probability, help=_SHARE)
    parser.add_argument("--max-divergence", default=default.max_divergence, help=_SHARE)
    for name in ("image_clusters", "max_members", "clusters", "min_images"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")


def add_clusters(parser: argparse.ArgumentParser) -> None:
    for name, value, text in (("count", 64, "prototypes, of kmeans and density"), ("iterations", 30, "of kmeans"),
                              ("seed", 0, "of kmeans")):
        parser.add_argument(f"--{name}", type=natural, default=value, help=f"{text} (default {value})")


def natural(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text}, allowed: a whole number from 0")
    return value


def selection(args: argparse.Namespace) -> Selection:
    return Selection(args.max_probability, args.max_divergence, args.image_clusters, args.max_members, args.clusters,
                     args.min_images)


def clusters(args: argparse.Namespace) -> Clusters:
    return Clusters(args.count, args.iterations, args.seed)


def probing(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("probes", "question", "prompt", "answer_start", "batch",
                                                   "images_per_shard")}
