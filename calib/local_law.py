"""The error's law over a neighbourhood, in closed form from joint moments, and how much of a law holds elsewhere.

    phi   [q, x_t] of all channels at k x k places, zeros outside: F = 2 C k^2 numbers
    W     = (S + lambda diag(S))^-1 S_phiD        S, S_phiD: covariances of phi, and of phi with the error D [C]
    b     = mean(D) - W mean(phi)                 ridge regression; lambda 0 and W_c zero but for q_c: D2-DPM's law

Moments of (phi, D) are kept in two halves, every other trajectory, so what a law fitted on one half expects, m, can be
held against the errors of the other without running anything again:

    E[(D - a m)^2] = E[D^2] - 2 a E[m D] + a^2 E[m^2]                least at a = E[m D] / E[m^2]

Both directions are summed. A law that makes errors larger in either of them is not to be trusted at all: a = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from quaver.calib.moments import Joint, merge_joint

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # lambda: the one that is best on the other half is taken, timestep by timestep
Law = tuple[np.ndarray, np.ndarray]  # W [C, F], b [C]
Fit = Callable[[Joint], Law]


@dataclass(frozen=True)
class Held:
    """How a law fares on the half it was not fitted on, per channel [C].

    raw: E[D^2]. rest: E[(D - a m)^2]. shrink: a in 0..1.
    """

    raw: np.ndarray
    rest: np.ndarray
    shrink: np.ndarray

    @property
    def share(self) -> float:
        """The share of the squared error that the law takes off, over all channels."""
        return float(1 - self.rest.sum() / self.raw.sum()) if self.raw.sum() > 0 else 0.0


def vectors(q: np.ndarray, x: np.ndarray, D: np.ndarray, k: int) -> np.ndarray:
    """(phi, D) [N, F + C] of every place of q, x, D [B, C, H, W]; N = B H W."""
    wide = np.pad(np.concatenate([q, x], axis=1), ((0, 0), (0, 0), *[(k // 2, k // 2)] * 2))
    near = np.lib.stride_tricks.sliding_window_view(wide, (k, k), axis=(2, 3))
    B, C, H, W = D.shape
    phi = near.transpose(0, 2, 3, 1, 4, 5).reshape(B * H * W, 2 * C * k * k)
    return np.concatenate([phi, np.moveaxis(D, 1, -1).reshape(len(phi), C)], axis=1)


def own(C: int, k: int) -> np.ndarray:
    """The indices [C] of each channel's own q in phi."""
    return np.arange(C) * k**2 + k**2 // 2


def pairs(joint: Joint, C: int, k: int) -> Joint:
    """Joint moments [..., C] of (q, D) out of those [...] of (phi, D)."""
    at = np.stack([own(C, k), joint.mean.shape[-1] - C + np.arange(C)], axis=-1)
    m2 = joint.m2[..., at[:, :, None], at[:, None, :]]
    return Joint(np.broadcast_to(joint.count[..., None], m2.shape[:-2]), joint.mean[..., at], m2)


def channel_law(joint: Joint, C: int, k: int) -> Law:
    """D2-DPM's law per channel as W and b."""
    found, at = pairs(joint, C, k), own(C, k)
    slope = np.divide(found.m2[:, 0, 1], found.m2[:, 0, 0], out=np.zeros(C), where=found.m2[:, 0, 0] > 0)
    W = np.zeros((C, joint.mean.shape[-1] - C))
    W[np.arange(C), at] = slope
    return W, found.mean[:, 1] - slope * found.mean[:, 0]


def ridge_law(joint: Joint, C: int, ridge: float) -> Law:
    """The law over the whole neighbourhood."""
    F = joint.mean.shape[-1] - C
    S, cross = joint.m2[:F, :F], joint.m2[:F, F:]
    scale = np.where(np.diag(S) > 0, np.diag(S), 1.0)
    W = np.linalg.solve(S + ridge * np.diag(scale), cross).T
    return W, joint.mean[F:] - W @ joint.mean[:F]


def hold(halves: tuple[Joint, Joint], fit: Fit, C: int) -> Held:
    """Fit on one half, look at the other, both ways; joint moments [] of (phi, D)."""
    seen = [_against(fit(a), b, C) for a, b in (halves, halves[::-1])]
    raw, agree, square = np.sum(seen, axis=0)
    better = np.all([2 * dot > own for _, dot, own in seen], axis=0)
    wanted = np.divide(agree, square, out=np.zeros(C), where=square > 0)
    shrink = np.where(better, np.clip(wanted, 0.0, 1.0), 0.0)
    return Held(raw, raw - 2 * shrink * agree + shrink**2 * square, shrink)


def _against(law: Law, joint: Joint, C: int) -> np.ndarray:
    """E[D^2], E[m D] and E[m^2] [3, C] of a law's m over joint moments."""
    W, b = law
    F, n = W.shape[1], max(float(joint.count), 1.0)
    S, cross, mean_D = joint.m2[:F, :F] / n, joint.m2[:F, F:] / n, joint.mean[F:]
    mean_m = W @ joint.mean[:F] + b
    raw = np.diag(joint.m2[F:, F:]) / n + mean_D**2
    return np.stack([raw, np.einsum("cf,fc->c", W, cross) + mean_m * mean_D, ((W @ S) * W).sum(axis=1) + mean_m**2])


def fit_laws(halves: tuple[Joint, Joint], C: int, k: int) -> tuple[tuple[Law, Held], tuple[Law, Held]]:
    """The law per channel and the local one, fitted on both halves, and how each fares on the one it was not."""
    whole = merge_joint(*halves)
    channel = hold(halves, partial(channel_law, C=C, k=k), C)
    tried = {ridge: hold(halves, partial(ridge_law, C=C, ridge=ridge), C) for ridge in RIDGES}
    best = min(tried, key=lambda ridge: float(tried[ridge].rest.sum()))
    return (channel_law(whole, C, k), channel), (ridge_law(whole, C, best), tried[best])


def nearest(channel: tuple[Law, Held], local: tuple[Law, Held]) -> tuple[Law, Held]:
    """Channel by channel the law that leaves less."""
    ((W_1, b_1), one), ((W_2, b_2), two) = channel, local
    near = two.rest < one.rest
    law = np.where(near[:, None], W_2, W_1), np.where(near, b_2, b_1)
    return law, Held(one.raw, np.where(near, two.rest, one.rest), np.where(near, two.shrink, one.shrink))
