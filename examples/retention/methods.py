"""Which methods of the package the model can serve, how each reaches a count of tokens, and why the others cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from vtkernels import gather_tokens, select_topk
from vtkernels.methods import Inputs, Method, Result, Stage, get, methods

from .data import TOKENS
from .model import VISION_LAYERS

KEEP = (0.5, 0.25, 0.11, 0.05)
EARLY = 1  # decoder layers before an inner method that acts once


def count_of(keep: float) -> int:
    return round(keep * TOKENS)


@dataclass(frozen=True)
class Baseline:
    """So many tokens: any, or evenly spaced in raster order. `random` draws anew for each image."""

    name: str
    count: int
    layer: int = EARLY
    seed: int = 0
    decoder_layer: str = "before"

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, self.count),)

    def __call__(self, inputs: Inputs, *, stage: int = 0) -> Result:
        batch, n = inputs.tokens.shape[:2]
        if self.name == "random":
            scores = torch.rand(batch, n, generator=torch.Generator().manual_seed(self.seed))
            indices = select_topk(scores, self.count)
        else:
            indices = ((2 * torch.arange(self.count) + 1) * n // (2 * self.count)).repeat(batch, 1)
        assert inputs.positions is not None
        hidden, positions = gather_tokens([inputs.tokens, inputs.positions], indices)
        return Result(hidden, indices, positions=positions)


@dataclass(frozen=True)
class Entry:
    """A method as it is run.

    Args:
        name: of the registry, or a baseline. where: `outer`, `inner` or `cache`.
        make: the method that keeps `count` tokens, given also the redundant prototypes of the model; None where it
            cannot.
        layers: of the tower after which it acts, for a method that acts within it.
        query_aware: it looks at the question. all_rows: it looks at the attention of all patches, not of CLS.
        scores: it takes the attention of all patches as `Inputs.scores`.
        fixed: it finds its own count. note: for the table.
    """

    name: str
    where: str
    make: Callable[[int, Tensor], Any]
    layers: tuple[int, ...] = ()
    query_aware: bool = False
    all_rows: bool = False
    scores: bool = False
    fixed: bool = False
    note: str = ""

    @property
    def title(self) -> str:
        return methods()[self.name].info.title if self.name in methods() else self.name

    @property
    def within(self) -> bool:
        """It sees the tokens as the tower gives them."""
        return self.name in methods() and methods()[self.name].info.place == "encoder"

    @property
    def policies(self) -> tuple[str, ...]:
        if self.where == "cache":
            return ("preserve",)
        return ("pack",) if self.name in ("prumerge", "prumerge_plus") else ("preserve", "pack")


def _merging(name: str, **config: Any) -> Callable[[int, Tensor], Any]:
    """Equally many merges after each layer of the tower, each of which can halve the tokens at most."""
    def make(count: int, prototypes: Tensor) -> Any:
        total, n = TOKENS - count, TOKENS
        r = ceil(total / VISION_LAYERS)
        for _ in range(VISION_LAYERS):
            n -= min(r, n // 2, n - count)
        return Merges(name, r, count, tuple(config.items())) if n == count else None
    return make


@dataclass(frozen=True)
class Merges:
    """ToMe's or Turbo's r for a total: the last layer merges what is left over."""

    name: str
    r: int
    count: int
    config: tuple[tuple[str, Any], ...]
    stages = ()

    def __call__(self, inputs: Inputs, *, stage: int = 0) -> Result:
        return get(self.name, r=min(self.r, inputs.tokens.shape[1] - self.count), **dict(self.config))(inputs)


def _plain(name: str, argument: str = "keep", **config: Any) -> Callable[[int, Tensor], Method]:
    return lambda count, prototypes: get(name, **{argument: count}, **config)


def _part(count: int, share: float) -> int:
    """Tokens of a count that are merged ones: at least one, and not all."""
    return min(max(1, round(share * count)), count - 1)


def _visionzip(count: int, prototypes: Tensor) -> Method:
    merged = _part(count, 0.15)  # published: 10 of 64, 30 of 192
    return get("visionzip", dominant=count - merged, contextual=merged)


def _vmtc(count: int, prototypes: Tensor) -> Method:
    merged = _part(count, 0.11)
    return get("vmtc", keep=count - merged, clusters=merged)


def _vflowopt(count: int, prototypes: Tensor) -> Method:
    # 2 x 2 cells as published, or one where four merged tokens would be most of the count.
    return get("vflowopt", keep=count, layers=(), layer_keep=(), cell=4.0 if count >= 16 else 8.0)


def _pyramiddrop(count: int, prototypes: Tensor) -> Method:
    shares = [(count / TOKENS) ** (i / 3) for i in (1, 2)]
    return get("pyramiddrop", layers=(1, 2, 3), keep=(*(round(TOKENS * share) for share in shares), count))


def _sparsevlm(count: int, prototypes: Tensor) -> Method:
    def kept(total: int, present: int) -> int:
        """How many stay themselves when, with the recycled ones, so many are to go on."""
        return next(k for k in range(total, 0, -1) if k + min(int(0.3 * (present - k)) + 1, present - k) // 10 + 1
                    <= total)
    middle = round(sqrt(TOKENS * count))
    return get("sparsevlm", layers=(1, 2), keep=(kept(middle, TOKENS), kept(count, middle)))


def _llavolta(count: int, prototypes: Tensor) -> Method:
    window = next(w for w in range(1, TOKENS + 1) if ceil(TOKENS / w) <= count)
    return get("llavolta", layer=EARLY, window=window)


def _codebook(count: int, prototypes: Tensor) -> Method:
    return get("redundancy_codebook", prototypes=prototypes, variant="fix_num", keep=count)


def _catp(count: int, prototypes: Tensor) -> Method:
    return get("catp", schedule=(Stage(0, round(sqrt(TOKENS * count))), Stage(2, count)))


def _cache(name: str, **config: Any) -> Callable[[int, Tensor], Method]:
    # <bos> and the words before the last take part: 4 keys beside those of the image.
    return lambda count, prototypes: get(name, keep=count + 4, window=3, kernel=3, **config)


def _baseline(name: str) -> Callable[[int, Tensor], Baseline]:
    return lambda count, prototypes: Baseline(name, count)


ALL_LAYERS = tuple(range(1, VISION_LAYERS + 1))
ENTRIES = (
    *(Entry(name, where, _baseline(name), note="baseline") for where in ("outer", "inner")
      for name in ("random", "uniform")),
    Entry("cdpruner", "outer", _plain("cdpruner"), query_aware=True, note="relevance: cosine to the question's words"),
    Entry("centerclip", "outer", lambda count, p: get("centerclip", frames=1, centres=count), (2,),
          note="after layer 2 of 3 of the tower"),
    Entry("divprune", "outer", _plain("divprune")),
    Entry("flowcut", "outer", _plain("flowcut", encoder_layers=VISION_LAYERS + 1), (2,),
          note="after layer 2 of 3 of the tower"),
    Entry("fopru", "outer", _plain("fopru")),
    Entry("holitom_outer", "outer", lambda count, p: get("holitom_outer", keep=count / TOKENS), scores=True,
          note="one frame: the spatial part alone"),
    Entry("prumerge", "outer", lambda count, p: get("prumerge", neighbours=4), fixed=True, note="finds its own count"),
    Entry("prumerge_plus", "outer", lambda count, p: get("prumerge_plus", neighbours=4), fixed=True,
          note="finds its own count"),
    Entry("redundancy_codebook", "outer", _codebook, note="prototypes: density peaks of training pictures"),
    Entry("todre", "outer", _plain("todre", layers=()), note="its first stage"),
    Entry("tome", "outer", _merging("tome"), ALL_LAYERS, note="after each layer of the tower"),
    Entry("turbo", "outer", _merging("turbo"), ALL_LAYERS, note="after each layer of the tower"),
    Entry("vflowopt", "outer", _vflowopt, all_rows=True, note="its first stage"),
    Entry("vidcom2", "outer", _plain("vidcom2"), note="one frame: the part within it alone"),
    Entry("visionzip", "outer", _visionzip),
    Entry("vmtc", "outer", _vmtc),
    Entry("vtc_cls", "outer", _plain("vtc_cls")),
    Entry("catp", "inner", _catp, query_aware=True, note="before the decoder and after layer 2"),
    Entry("efficientvla", "inner", lambda count, p: get("efficientvla", keep=count, key=max(1, round(count / 14))),
          query_aware=True),
    Entry("fastv", "inner", _plain("fastv", layer=EARLY), query_aware=True),
    Entry("holitom_inner", "inner", _plain("holitom_inner", layer=EARLY), query_aware=True),
    Entry("llavolta", "inner", _llavolta),
    Entry("pyramiddrop", "inner", _pyramiddrop, query_aware=True, note="after layers 1, 2 and 3, equal shares"),
    Entry("sparsevlm", "inner", _sparsevlm, query_aware=True, note="after layers 1 and 2"),
    Entry("gui_kv", "cache", _cache("gui_kv"), query_aware=True),
    Entry("snapkv", "cache", _cache("snapkv"), query_aware=True),
    Entry("zipvl", "cache", lambda count, p: get("zipvl"), query_aware=True, fixed=True, note="finds its own count"),
)

TRAINED = "needs weights of its own that are trained with the model: "
REBUILT = "part of a model that was trained with it: "
VIDEO = "works between the frames of a video: "
OTHER = "is for something else: "
NOT_RUN = {
    "adatoken3d": "the rule of pyramiddrop with schedules for the tokens of 3-D models",
    "atp_llava": TRAINED + "its thresholds",
    "covipal": TRAINED + "its scorer",
    "dyvte": TRAINED + "its router",
    "ia_red2": TRAINED + "its interpreter",
    "efficientvla_layers": "drops layers of the decoder, not tokens",
    "evs": VIDEO + "the first frame stays whole",
    "quota": VIDEO + "it divides a budget among them",
    "timechat_online": VIDEO + "the first frame stays whole",
    "convllava": REBUILT + "convolutions between stages of the encoder",
    "flash_pooling": REBUILT + "learned queries of a draft model",
    "internvl_merge": REBUILT + "the projector of four tokens",
    "pt_dit": REBUILT + "attention among proxies",
    "token_shuffle": REBUILT + "fused tokens of an image generator",
    "token_unshuffle": REBUILT + "fused tokens of an image generator",
    "tokenpacker": REBUILT + "its resampler",
    "falcon": REBUILT + "registers in the encoder",
    "pvc_attention": REBUILT + "attention over time in the encoder",
    "pvc_shuffle": REBUILT + "the projector of sixteen tokens",
    "pem": REBUILT + "cross-attention of object queries",
    "uniformer": REBUILT + "the pattern of its attention",
    "cmai": "a pattern of attention: no token leaves",
    "yopo": "a pattern of attention: no token leaves",
    "far": OTHER + "attention of video generators",
    "re_ttention": OTHER + "attention of diffusion models",
    "scalekv": OTHER + "caches of visual autoregressive generators",
    "distinctad": OTHER + "it changes tokens of clips and drops none",
    "fqgan": OTHER + "codewords of an image tokeniser",
    "indexmark": OTHER + "watermarks of generated pictures",
    "lightgaussian_prune": OTHER + "3-D Gaussians",
    "lightgaussian_vq": OTHER + "3-D Gaussians",
    "mcquic": OTHER + "codewords of an image codec",
    "promoe_expert": OTHER + "routing of tokens to experts",
    "promoe_token": OTHER + "routing of tokens to experts",
    "mavis": "runs another method of this table",
    "mfm": OTHER + "training targets in the frequency domain",
    "msvmamba": OTHER + "the order of a scan",
    "patnet": OTHER + "a gate of channels",
}
