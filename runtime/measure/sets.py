"""A measure between two sets, with its uncertainty, at one N with its floor.

A Frechet distance, a divergence, a precision: each is a number that sets of finite size give even where nothing
differs. So it stands beside its floor, what the reference gives against itself:

    value    measure(reference half j, judged)          floor    measure(reference half j, reference half i)

mean over random halves i, j of the reference that share no item, and as many judged items as a half has. The
reference may be real clips (real against real) or the float engine's (one seed set against another). `paired` says that
item n of both sets has one prompt, seed and noise; then the judged items are those of half i, so that no seed stands on
both sides and floor and value differ by the engine alone. The floor is the reference judged as its own pair.

Intervals are jackknives over G groups of items (Tukey 1958), Student's t of G - 1 times sqrt(variance); paired items
are left out together, and so are those of one prompt, which have more in common than others; the V of unpaired sets add
up:

    V = (G - 1)/G sum over g of (d_g - mean d)^2                       d_g: the figure without group g
    Q = G (G - 1)/2 var over g, h of (d - d_g - d_h + d_gh)
    variance = V - Q, from V/2 to V

Where sets hardly differ, a distance is quadratic in what little they differ by, and V twice its variance; Q is that
part of it (Efron and Stein 1981). A bootstrap has three times the variance there. How often these intervals hold stands
in docs/validation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quaver.runtime.measure.quality import Interval

Array = np.ndarray
Measure = Callable[[Array, Array], float]  # reference [N, ...], judged [M, ...] -> figure
Measures = Callable[[Array, Array], float | Array]  # or several figures
SPLITS, GROUPS, TWICE = 12, 12, 24
FEWEST = 8  # items, or prompts, of a set that has groups: its halves lose two of four
LEFT = 4  # items of a half, less two groups: one and its three neighbours


def half(reference: Array, judged: Array, *, paired: bool) -> int:
    """How many items of either set are compared. Raises: ValueError when paired sets differ in size."""
    if paired and len(reference) != len(judged):
        raise ValueError(f"paired sets differ in size: {len(reference)} and {len(judged)}")
    return len(reference) // 2 if paired else min(len(reference) // 2, len(judged))


def over_halves(
    measure: Measures,
    reference: Array,
    judged: Array,
    *,
    rng: np.random.Generator,
    paired: bool,
    prompts: Sequence[str] | None = None,
    size: int = 0,
    splits: int = SPLITS,
    of: Callable[[Array], float] = float,
) -> Interval:
    """Mean of a measure of `judged` `[M, ...]` against halves of `reference` `[N, ...]`, with its 95% interval.

    Of a measure of several figures, `of` makes one of their means. `prompts` [M] are those of the judged items, and of
    the reference if paired; of fewer than `FEWEST`, the interval holds for other seeds of these prompts alone.
    `size` items of either set are compared, `half` unless said. Of sets of fewer than `FEWEST` items the bounds are the
    range of the splits. Raises: ValueError when two items or fewer would be compared, or as `half`.
    """
    size = size or half(reference, judged, paired=paired)
    if size < 2:
        raise ValueError(f"sets of {len(reference)} and {len(judged)} leave {size} items to a half, expected 2 or more")
    if not paired:
        taken = rng.permutation(len(judged))[: 2 * size]
        judged, prompts = judged[taken], None if prompts is None else np.asarray(prompts)[taken].tolist()
    own = _groups(len(reference), rng, prompts if paired else None, size)
    theirs = own if paired else own.max() + 1 + _groups(len(judged), rng, prompts, size)
    parts = [_split(len(reference), len(judged), size, rng, paired) for _ in range(splits)]

    def over(left_out: Sequence[int] = ()) -> Array:
        keep, stay = ~np.isin(own, left_out), ~np.isin(theirs, left_out)
        return np.array([measure(reference[j[keep[j]]], judged[p[stay[p]]]) for j, p in parts])

    if min(len(reference), len(judged)) < FEWEST:
        found = over()
        low, high = np.quantile([of(each) for each in found], [0.025, 0.975])
        return Interval(of(found.mean(axis=0)), float(low), float(high))
    sets = [np.unique(own)] if paired else [np.unique(own), np.unique(theirs)]
    return jackknife(lambda left_out: of(over(left_out).mean(axis=0)), sets, rng=rng)


def of_set(
    measure: Callable[[Array], float], items: Array, *, rng: np.random.Generator, prompts: Sequence[str] | None = None
) -> Interval:
    """A measure of one set of `items` `[N, ...]`, `FEWEST` or more, with its 95% interval; `prompts` [N] are theirs."""
    groups = _groups(len(items), rng, prompts, len(items))
    return jackknife(lambda left_out: measure(items[~np.isin(groups, left_out)]), [np.unique(groups)], rng=rng)


def jackknife(
    without: Callable[[Sequence[int]], float], sets: Sequence[Array], *, rng: np.random.Generator
) -> Interval:
    """95% interval of a statistic, which `without` gives less some groups; `sets` are the groups of each set, [G] each.

    `TWICE` pairs of groups are left out together.
    """
    whole = without(())
    once = {g: without((g,)) for groups in sets for g in groups.tolist()}
    pairs = [rng.choice(list(once), 2, replace=False).tolist() for _ in range(TWICE)]
    bent = [whole - once[g] - once[h] + without((g, h)) for g, h in pairs]
    linear = sum((len(groups) - 1) * float(np.var([once[g] for g in groups.tolist()])) for groups in sets)
    quadratic = len(once) * (len(once) - 1) / 2 * float(np.var(bent, ddof=1))
    variance = min(max(linear - quadratic, linear / 2), linear)
    by = student(min(map(len, sets)) - 1) * variance**0.5
    return Interval(whole, whole - by, whole + by)


def student(degrees: int) -> float:
    """The 97.5% quantile of Student's t, to 0.01 from 7 degrees of freedom on (Cornish and Fisher 1938)."""
    return 1.960 + 2.372 / degrees + 2.822 / degrees**2


def _groups(size: int, rng: np.random.Generator, prompts: Sequence[str] | None, half: int) -> Array:
    """The group of each of `size` items, at random and evenly: [size]. Items of one of `prompts` [size] share theirs.

    Each item is for itself where prompts are fewer than `FEWEST`, or two groups of them are too much of a half.
    """
    if prompts is not None and FEWEST <= len(set(prompts)) < size:
        which = np.unique(prompts, return_inverse=True)[1]
        groups = _groups(which.max() + 1, rng, None, half)[which]
        if np.sort(np.bincount(groups))[-2:].sum() <= half - min(half // 2, LEFT):
            return groups
    return rng.permutation(size) % min(GROUPS, size)


def _split(size: int, judged: int, half: int, rng: np.random.Generator, paired: bool) -> tuple[Array, Array]:
    """Indices [half] of a half of the reference, and of the judged items: those of the other half if paired."""
    i, j = rng.permutation(size)[: 2 * half].reshape(2, half)
    return j, i if paired else rng.permutation(judged)[:half]
