"""match_bipartite and the clustering ops: float64 checks of every decision, hostile samples.

A decision (the nearest centre, the least sum, the best scores) has to attain its optimum within the rounding of
float32. Where the arithmetic is exact, on small integers, it has to be the very one that the tie rules name. The ops
that iterate are run with every number of iterations, and each result has to follow from the one before.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Sample, clustered, hostile_tokens, padded, rand
from .score import FLT_MAX, _rnorm64, oracle_similarity

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = float(np.finfo(np.float32).eps)
VANISHED = 1e-37  # what float32 may lose of a sum of squares at the lower end of its range
Run = Callable[..., Sequence[Tensor]]


def _rounding(d: int) -> float:
    """Relative error that a float32 sum of d terms may have, in some order."""
    return 16 * EPS * max(1.0, d**0.5 / 8)


def _wide(t: Tensor) -> np.ndarray:
    return t.detach().double().cpu().numpy()


def _whole(x: np.ndarray) -> bool:
    """Whether sums of squares of these numbers, and of their differences, are exact in float32."""
    return bool(np.isfinite(x).all() and (x == np.round(x)).all() and (x * x).sum(-1).max(initial=0) < 2**20)


def assert_match(outputs: Sequence[Tensor], tokens: Tensor, r: int, stride: int = 2, protected: int = 0,
                 source_bias: Tensor | None = None) -> None:
    exact = source_bias is None and _axes(tokens)
    sources, targets, scores, kept = (t.cpu().numpy() for t in outputs)
    batch, n, d = tokens.shape
    place = np.arange(protected, n)
    is_target = place % stride == stride - 1
    all_sources, all_targets = place[~is_target], place[is_target]
    for b in range(batch):
        assert sorted(set(sources[b].tolist()) | set(kept[b].tolist())) == list(range(n))
        assert (np.diff(kept[b]) > 0).all()
        assert (np.diff(sources[b]) > 0).all()
        if r == 0:
            continue
        similarity = oracle_similarity(tokens[b][all_sources], tokens[b][all_targets])
        products = oracle_similarity(tokens[b][all_sources], tokens[b][all_targets], "dot")
        with np.errstate(all="ignore"):
            quotients = products * _rnorm64(_wide(tokens[b][all_targets]))  # of which a void source takes the best
        bias = np.zeros(n) if source_bias is None else _wide(source_bias[b])
        gold = similarity.max(-1) + bias[all_sources]
        allowed = 0.0 if exact else _rounding(d) * (1 + np.abs(bias[np.isfinite(bias)]).max(initial=0.0))
        number = np.searchsorted(all_sources, sources[b])
        np.testing.assert_array_equal(all_sources[number], sources[b])
        column = np.searchsorted(all_targets, targets[b])
        np.testing.assert_array_equal(all_targets[column], targets[b])
        for s, c in zip(number, column, strict=True):
            best = similarity[s].max()
            if np.isnan(best) or exact:
                assert c == np.argmax(quotients[s]), "not the first of the best targets"  # the first NaN counts
            else:
                assert similarity[s, c] >= best - allowed
        np.testing.assert_array_equal(np.isnan(scores[b]), np.isnan(gold[number]))
        finite = np.isfinite(gold[number])
        assert (np.abs(scores[b][finite] - gold[number][finite]) <= allowed).all()
        rank = np.where(np.isnan(gold), -np.inf, gold)
        left = np.setdiff1d(np.arange(len(gold)), number)
        if exact or not np.isfinite(gold).any():
            np.testing.assert_array_equal(number, np.sort(np.lexsort((np.arange(len(gold)), -rank))[:r]))
        elif len(left):
            assert rank[number].min() >= rank[left].max() - allowed


def _axes(tokens: Tensor) -> bool:
    """Whether all tokens are powers of two along an axis, or zero, so that cosines have no rounding."""
    mantissa, _ = np.frexp(np.abs(_wide(tokens)))
    return bool(np.isin(mantissa, (0.0, 0.5)).all() and (np.count_nonzero(mantissa, -1) <= 1).all())


def _points(features: Tensor, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Float64 tokens of one row, normalised for the cosine, zeros for void ones; and which are void."""
    x = _wide(features)
    with np.errstate(all="ignore"):
        void = ~((x * x).sum(-1) <= FLT_MAX)
        x = np.where(void[:, None], 0.0, x)
        return (x * _rnorm64(x)[:, None] if metric == "cosine" else x), void


def _distance(x: np.ndarray, y: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """[n, m] squared distances or one minus the cosine of normalised tokens, and how far float32 may be off."""
    x2, y2 = (x * x).sum(-1)[:, None], (y * y).sum(-1)[None]
    products = x @ y.T
    allowed = _rounding(x.shape[-1]) * (1 + 0 * products if metric == "cosine" else x2 + y2) + VANISHED
    if metric != "cosine" and _whole(x) and _whole(y):
        allowed = 0 * allowed
    return np.maximum(0.0, 1 - products if metric == "cosine" else x2 + y2 - 2 * products), allowed


def _assert_nearest(assignment: np.ndarray, distance: np.ndarray, allowed: np.ndarray, void: np.ndarray) -> None:
    row = np.arange(len(assignment))
    assert (assignment[void] == 0).all()
    chosen, slack = distance[row, assignment], allowed[row, assignment]
    exact = (allowed == 0).all(-1) & ~void
    np.testing.assert_array_equal(assignment[exact], distance[exact].argmin(-1))
    excess = chosen - (distance + allowed).min(-1) - slack
    assert not (excess[~void] > 0).any(), f"a centre is {excess[~void].max():.3g} nearer than the chosen one"


class _Farthest:
    """The choices of KKZ: the largest token, then the farthest from those before. `reach`: how far, give or take."""

    def __init__(self, x: np.ndarray, size: np.ndarray, void: np.ndarray, metric: str) -> None:
        self.x, self.metric = x, metric
        self.order: list[int] = []
        self.left = np.flatnonzero(~void)
        self.reach = size
        self.slack = (size * _rounding(x.shape[-1]) + VANISHED) * (0 if metric == "l2" and _whole(x) else 1)

    def objection(self, c: int) -> str:
        """Why the next one cannot be token c."""
        if self.reach[c] + self.slack[c] < (self.reach - self.slack)[self.left].max():
            return f"token {c}, chosen at {len(self.order)}, is not the farthest"
        first = self.left[self.reach[self.left].argmax()]
        return "" if self.slack.any() or c == first else "not the first of the farthest"

    def after(self, c: int) -> "_Farthest":
        """With token c chosen."""
        following = copy.copy(self)
        following.order, following.left = [*self.order, c], self.left[self.left != c]
        distance, allowed = (t[:, 0] for t in _distance(self.x, self.x[c:c + 1], self.metric))
        nearer = distance < self.reach if self.order else np.ones(len(distance), bool)
        following.reach = np.where(nearer, distance, self.reach)
        following.slack = np.where(nearer, allowed, self.slack)
        return following

    def completes(self, chosen: Sequence[int]) -> bool:
        """Whether these are the next ones, in some order."""
        return not chosen or any(self.after(c).completes([other for other in chosen if other != c])
                                 for c in sorted(chosen, key=lambda c: -self.reach[c]) if not self.objection(c))


def _real(chosen: Sequence[int] | np.ndarray, void: np.ndarray) -> list[int]:
    """Those that are not void, of which there are as many as there can be."""
    assert len(set(chosen)) == len(chosen)
    real = [int(c) for c in chosen if not void[c]]
    assert len(real) == min(len(chosen), (~void).sum())
    return real


def _assert_farthest_first(chosen: Sequence[int], x: np.ndarray, size: np.ndarray, void: np.ndarray,
                           metric: str) -> None:
    """Each token but the void ones, which come last, is the farthest from those before it."""
    real = _real(chosen, void)
    assert list(chosen[:len(real)]) == real, "a void token was chosen too early"
    state = _Farthest(x, size, void, metric)
    for c in real:
        assert not state.objection(c), state.objection(c)
        state = state.after(c)


def _size(features: Tensor) -> np.ndarray:
    x, _ = _points(features, "l2")
    return (x * x).sum(-1)


def assert_kmeans(outputs: Sequence[Tensor], features: Tensor, clusters: int, iterations: int = 10, metric: str = "l2",
                  weights: Tensor | None = None, initial: Tensor | None = None) -> None:
    """What can be said of the outputs alone: the centres of 0 iterations, and the assignment to the centres."""
    assignment, centres = outputs[0].cpu().numpy(), _wide(outputs[1])
    for b in range(len(features) if features.shape[1] else 0):
        x, void = _points(features[b], metric)
        if iterations == 0 and initial is not None:
            np.testing.assert_array_equal(centres[b], _wide(initial[b]))
        elif iterations == 0:
            _assert_initial(centres[b], x, _size(features[b]), void, metric)
        with np.errstate(all="ignore"):
            held = (centres[b] ** 2).sum(-1) <= FLT_MAX
            c = np.where(held[:, None], centres[b], 0.0)
            distance, allowed = _distance(x, c * _rnorm64(c)[:, None] if metric == "cosine" else c, metric)
        distance[:, ~held] = np.inf
        _assert_nearest(assignment[b], distance, allowed, void)


def assert_kmeans_steps(run: Run, features: Tensor, clusters: int, iterations: int = 10, metric: str = "l2",
                        weights: Tensor | None = None, initial: Tensor | None = None) -> None:
    """Each number of iterations gives the means of the one before."""
    before: Any = None
    for step in range(iterations + 1):
        outputs = run(features, clusters, iterations=step, metric=metric, weights=weights, initial=initial)
        assert_kmeans(outputs, features, clusters, step, metric, weights, initial)
        assignment, centres = outputs[0].cpu().numpy(), _wide(outputs[1])
        for b in range(len(features) if step and features.shape[1] else 0):
            x, void = _points(features[b], metric)
            weight = np.ones(len(x)) if weights is None else _wide(weights[b])
            with np.errstate(invalid="ignore"):
                weight = np.where(void | ~(weight > 0) | np.isinf(weight), 0.0, weight)
            _assert_means(centres[b], before[1][b], before[0][b], x, weight, metric)
        before = assignment, centres


def _assert_initial(centres: np.ndarray, x: np.ndarray, size: np.ndarray, void: np.ndarray, metric: str) -> None:
    chosen: list[int] = []
    for centre in centres:
        gap = np.abs(x - centre).max(-1, initial=0.0) + np.isin(np.arange(len(x)), chosen) * 9e99
        gap[void] += 9e9 if (gap[~void] < 1e-5).any() else 0.0  # a zero token may look like a void one
        assert gap.min() <= (4 * EPS if metric == "cosine" else 0), "a centre is no token"
        alike = np.flatnonzero(gap <= gap.min() + (2 * EPS if metric == "cosine" else 0))
        chosen.append(int(alike[size[alike].argmax()]))
    _assert_farthest_first(chosen, x, size, void, metric)


def _assert_means(centres: np.ndarray, before: np.ndarray, assignment: np.ndarray, x: np.ndarray, weight: np.ndarray,
                  metric: str) -> None:
    for c in range(len(centres)):
        members = (assignment == c) & (weight > 0)
        if not members.any():
            np.testing.assert_array_equal(centres[c], before[c], err_msg="an empty cluster moved")
            continue
        w = weight[members][:, None]
        mean = (x[members] * w).sum(0) / w.sum()
        allowed = EPS * np.abs(mean) + (4 * EPS * np.abs(x[members]).max(0) if metric == "cosine" else 0)
        assert (np.abs(centres[c] - mean) <= allowed + 1e-44).all(), f"centre {c} is not the mean of its tokens"


def assert_kmedoids(outputs: Sequence[Tensor], features: Tensor, clusters: int, iterations: int = 100,
                    metric: str = "l2") -> None:
    """What can be said of the outputs alone: the medoids of 0 iterations, and the assignment to the medoids."""
    assignment, medoids = (t.cpu().numpy() for t in outputs)
    for b in range(len(features) if features.shape[1] else 0):
        x, void = _points(features[b], metric)
        assert (np.diff(medoids[b]) > 0).all()
        if iterations == 0:
            _assert_start(medoids[b], x, _size(features[b]), void, metric)
        _assert_nearest_tokens(assignment[b], medoids[b], *_distance(x, x, metric), void)


def assert_kmedoids_steps(run: Run, features: Tensor, clusters: int, iterations: int = 100, metric: str = "l2") -> None:
    """Each number of iterations gives the best members of the clusters of the one before."""
    before: Any = None
    for step in range(iterations + 1):
        outputs = run(features, clusters, iterations=step, metric=metric)
        assert_kmedoids(outputs, features, clusters, step, metric)
        assignment, medoids = (t.cpu().numpy() for t in outputs)
        for b in range(len(features) if step and features.shape[1] else 0):
            x, void = _points(features[b], metric)
            _assert_medoids(medoids[b], before[1][b], before[0][b], *_distance(x, x, metric), void, metric)
        before = assignment, medoids


def _assert_start(medoids: np.ndarray, x: np.ndarray, size: np.ndarray, void: np.ndarray, metric: str) -> None:
    """KKZ chooses them in some order, which depends on the rounding where several are as far."""
    assert _Farthest(x, size, void, metric).completes(_real(medoids, void)), "not the farthest in any order"


def _assert_medoids(medoids: np.ndarray, before: np.ndarray, assignment: np.ndarray, distance: np.ndarray,
                    allowed: np.ndarray, void: np.ndarray, metric: str) -> None:
    if metric == "l2":
        root = np.sqrt(distance)
        allowed = EPS * root + np.minimum(np.sqrt(allowed), allowed / np.maximum(root, 1e-30))
        distance = root
    exact = not allowed.any() or ((distance == np.round(distance)).all() and distance.sum() < 2**20)
    for c in range(len(before)):
        members = np.flatnonzero((assignment == c) & ~void)
        found = np.intersect1d(medoids, members)
        if len(members) == 0:
            assert before[c] in medoids
            continue
        assert len(found) == 1, f"cluster {c} has {len(found)} new medoids"
        cost = distance[np.ix_(members, members)].sum(-1)
        slack = allowed[np.ix_(members, members)].sum(-1)
        place = int(np.searchsorted(members, found[0]))
        if exact:
            assert place == int(cost.argmin())
        assert cost[place] - slack[place] <= (cost + slack).min()


def _assert_nearest_tokens(assignment: np.ndarray, centres: np.ndarray, distance: np.ndarray, allowed: np.ndarray,
                           void: np.ndarray) -> None:
    """As `_assert_nearest`, where the centres are tokens that belong to themselves."""
    np.testing.assert_array_equal(assignment[centres], np.arange(len(centres)))
    others = np.setdiff1d(np.arange(len(assignment)), centres)
    to_centres, slack = distance[:, centres], allowed[:, centres]
    to_centres[:, void[centres]] = np.inf
    _assert_nearest(assignment[others], to_centres[others], slack[others], void[others])


def assert_density_peaks(outputs: Sequence[Tensor], features: Tensor, clusters: int, neighbours: int = 5) -> None:
    assignments, all_centres = (t.cpu().numpy() for t in outputs)
    batch, n, d = features.shape
    width = max(1, d)
    for b in range(batch if n else 0):
        centres = all_centres[b]
        x, void = _points(features[b], "l2")
        assert (np.diff(centres) > 0).all()
        distance, allowed = _distance(x, x, "l2")
        _assert_nearest_tokens(assignments[b], centres, distance.copy(), allowed, void)
        distance[void], distance[:, void] = np.inf, np.inf
        distance[np.arange(n), np.arange(n)] = np.where(void, np.inf, 0.0)
        order = np.argsort(distance, -1, kind="stable")[:, :neighbours]
        near = np.take_along_axis(distance, order, -1) / width
        spread, slack = near.mean(-1), np.take_along_axis(allowed, order, -1).max(-1) / width
        spread[void] = np.nan
        exact = not allowed.any()
        slack = slack + (0 if exact else EPS * spread)
        largest = distance[np.isfinite(distance)].max(initial=0.0)
        low, high = np.empty(n), np.empty(n)
        for i in range(n):
            if void[i]:
                low[i] = high[i] = -np.inf
                continue
            earlier = np.arange(n) < i
            sure = (spread + slack < spread[i] - slack[i]) | (exact & (spread == spread[i]) & earlier)
            maybe = sure if exact else (spread - slack <= spread[i] + slack[i]) & (np.arange(n) != i)
            off = allowed[i]
            top = (distance[i] + off)[sure].min() if sure.any() else largest + allowed.max()
            bottom = (distance[i] - off)[maybe].min() if maybe.any() else largest - allowed.max()
            with np.errstate(invalid="ignore"):
                low[i], high[i] = (np.nan_to_num(np.exp(-m) * np.sqrt(max(0.0, t) / width), nan=unknown, posinf=np.inf)
                                   for m, t, unknown in ((spread[i] + slack[i], min(top, bottom), 0.0),
                                                         (spread[i] - slack[i], max(top, bottom), np.inf)))
        left = np.setdiff1d(np.arange(n), centres)
        if exact:
            # Other scores than equal ones differ by more than the rounding of the exponential.
            order = np.lexsort((np.arange(n), np.array([-float(f"{value:.5g}") for value in low])))
            np.testing.assert_array_equal(centres, np.sort(order[:clusters]))
        elif len(left):
            vanished = 2e-38 * np.sqrt(largest / width)  # of an exponential at the lower end of float32
            assert high[centres].min() * (1 + 8 * EPS) + vanished >= low[left].max() * (1 - 8 * EPS)


def _edges(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Hostile features [B, N, D] of all kinds, N at least 12."""
    yield "2x37x40", clustered(74, 40, dtype=dtype).view(2, 37, 40)
    yield "hostile", hostile_tokens(21, 24, dtype)[None]
    yield "whole", (rand(2, 29, 3) * 2).round().to(dtype)
    yield "line", (rand(1, 26, 1, seed=3) * 4).round().to(dtype)
    yield "equal-expanded", rand(1, 1, 16, dtype=dtype).expand(2, 13, 16)
    yield "strided", rand(2, 40, 66, dtype=dtype)[:, ::2, ::2]
    yield "offset", padded(rand(1, 19, 32, dtype=dtype), 3)
    if dtype == torch.float32:
        yield "transposed", rand(2, 24, 30).mT
        yield "tiny-and-huge", torch.cat([rand(1, 9, 8) * 1e-19, rand(1, 5, 8) * 1e18], 1)
        yield "all-void", torch.full((1, 14, 4), torch.nan)


def match_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for name, x in _edges(dtype):
            yield Sample(f"{tag}-{name}", (x, 4), {})
        bias = padded(rand(2, 37, seed=5), 2)
        tokens = clustered(74, 40, dtype=dtype).view(2, 37, 40)
        yield Sample(f"{tag}-bias", (tokens, 9), {"source_bias": bias})
        yield Sample(f"{tag}-protected", (tokens, 17), {"protected": 1})
        yield Sample(f"{tag}-stride-5", (tokens, 20), {"stride": 5, "protected": 3, "source_bias": bias})
        yield Sample(f"{tag}-one-target", (tokens[:, :9], 8), {"stride": 9})
        # The targets are sound, some of the sources are not.
        sources, targets = hostile_tokens(15, 24, dtype), rand(15, 24, dtype=dtype, seed=2)
        yield Sample(f"{tag}-hostile-sources", (torch.stack([sources, targets], 1).view(1, 30, 24), 12), {})
        # Norms are powers of two, so that cosines are exact and tie.
        axis = torch.eye(4)[torch.randint(4, (2, 41), generator=torch.Generator().manual_seed(1))]
        sign = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.0])[torch.arange(82).view(2, 41) % 5]
        yield Sample(f"{tag}-exact", ((axis * sign[..., None]).to(dtype), 13), {"protected": 2})
    for shape, r, options in (((1, 1, 3), 0, {}), ((1, 2, 3), 1, {}), ((0, 6, 2), 3, {}), ((1, 0, 2), 0, {}),
                              ((1, 5, 0), 3, {}), ((1, 4, 2), 0, {"protected": 4}), ((2, 3, 2), 0, {"protected": 2})):
        yield Sample(f"float32-{'x'.join(map(str, shape))}-r{r}", (rand(*shape), r), options)


def peaks_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for name, x in _edges(dtype):
            yield Sample(f"{tag}-{name}", (x, 4), {"neighbours": 4})
        yield Sample(f"{tag}-all-neighbours", (clustered(23, 16, dtype=dtype)[None], 23), {"neighbours": 23})
    for shape in ((1, 1, 3), (0, 6, 2), (1, 5, 0), (1, 0, 2)):
        yield Sample(f"float32-{'x'.join(map(str, shape))}", (rand(*shape), min(1, shape[1])), {"neighbours": 1})


def kmeans_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for metric in ("l2", "cosine"):
            for name, x in _edges(dtype):
                yield Sample(f"{tag}-{metric}-{name}", (x, 5), {"metric": metric, "iterations": 2})
        tokens = clustered(62, 16, dtype=dtype).view(2, 31, 16)
        weights = rand(2, 31, seed=5)  # half of them negative
        weights[0, :3] = torch.tensor([torch.nan, torch.inf, 0.0])
        centres = rand(2, 16, 7, seed=6).mT
        centres[0, 1], centres[1, 2, 3] = torch.inf, torch.nan
        centres[0, 5] = 50.0  # stays empty
        options = {"weights": weights, "initial": centres, "iterations": 3}
        yield Sample(f"{tag}-weights-initial", (tokens, 7), options)
        yield Sample(f"{tag}-cosine-weights-initial", (tokens, 7), {**options, "metric": "cosine"})
    yield Sample("float32-as-many-as-tokens", (hostile_tokens(17, 8)[None], 17), {"iterations": 1})
    for shape in ((1, 1, 3), (0, 6, 2), (1, 5, 0), (1, 0, 2)):
        yield Sample(f"float32-{'x'.join(map(str, shape))}", (rand(*shape), min(1, shape[1])), {"iterations": 1})


def kmedoids_samples(dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Sample]:
    for dtype in dtypes:
        tag = str(dtype).removeprefix("torch.")
        for metric in ("l2", "cosine"):
            for name, x in _edges(dtype):
                yield Sample(f"{tag}-{metric}-{name}", (x, 5), {"metric": metric, "iterations": 3})
    yield Sample("float32-as-many-as-tokens", (hostile_tokens(17, 8)[None], 17), {"iterations": 1})
    for shape in ((1, 1, 3), (0, 6, 2), (1, 5, 0), (1, 0, 2)):
        yield Sample(f"float32-{'x'.join(map(str, shape))}", (rand(*shape), min(1, shape[1])), {"iterations": 1})
