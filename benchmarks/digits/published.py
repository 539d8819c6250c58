"""What D2-DPM publishes of LDM-4 on ImageNet 256 x 256, and which of its orders hold elsewhere.

    a before b      a's published figure is better than b's: FID and sFID lower, IS, precision and recall higher

Source: D2-DPM (arXiv:2408.11275), Tables 1, 2 and 5. The networks, images and feature networks here are others, so that
orders can be compared and figures cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

COLUMNS = ("IS", "Frechet", "spatial", "precision", "recall")  # IS, FID, sFID, precision %, recall %
LOWER = ("Frechet", "spatial")
PAIRS = (
    ("Q-Diffusion", "PTQ4DM"),
    ("PTQD", "Q-Diffusion"),
    ("S-D2", "PTQD"),
    ("D-D2", "PTQD"),
    ("D-D2", "S-D2"),
    ("DMC", "PTQD"),
    ("D-D2", "DMC"),
    ("PTQD", "FP"),
    ("D-D2", "FP"),
)
Block = Mapping[str, tuple[float, ...]]
# (table, width, eta) -> method -> COLUMNS
PUBLISHED: Mapping[tuple[int, str, float], Block] = {
    (1, "W8A8", 0.0): {
        "FP": (366.03, 11.13, 7.834, 93.93, 27.98),
        "PTQ4DM": (324.21, 9.37, 9.87, 87.15, 31.77),
        "Q-Diffusion": (327.16, 8.72, 10.46, 86.91, 33.26),
        "PTQD": (324.64, 8.46, 10.12, 87.68, 34.64),
        "S-D2": (332.55, 8.11, 8.02, 87.35, 36.55),
        "D-D2": (333.89, 8.12, 7.92, 88.56, 36.69),
    },
    (1, "W4A8", 0.0): {
        "FP": (366.03, 11.13, 7.834, 93.93, 27.98),
        "PTQ4DM": (336.28, 10.45, 13.94, 90.61, 28.63),
        "Q-Diffusion": (347.52, 11.13, 9.07, 90.89, 29.39),
        "PTQD": (355.10, 10.41, 8.45, 92.13, 27.54),
        "S-D2": (358.14, 9.75, 6.60, 92.25, 30.21),
        "D-D2": (357.57, 9.71, 6.65, 92.22, 30.21),
    },
    (1, "W8A8", 1.0): {
        "FP": (361.84, 13.83, 20.56, 92.22, 19.58),
        "PTQ4DM": (332.18, 12.24, 18.63, 87.21, 23.60),
        "Q-Diffusion": (335.61, 11.07, 16.15, 88.50, 24.93),
        "PTQD": (335.70, 10.86, 15.02, 88.44, 25.24),
        "S-D2": (342.71, 10.57, 14.81, 88.58, 26.02),
        "D-D2": (343.68, 10.58, 14.72, 88.90, 26.03),
    },
    (1, "W4A8", 1.0): {
        "FP": (361.84, 13.83, 20.56, 92.22, 19.58),
        "PTQ4DM": (340.10, 13.68, 22.05, 89.50, 20.01),
        "Q-Diffusion": (349.89, 14.22, 20.17, 89.93, 20.57),
        "PTQD": (353.57, 13.15, 17.41, 91.09, 20.42),
        "S-D2": (355.20, 12.60, 15.80, 91.26, 20.94),
        "D-D2": (356.39, 12.65, 15.47, 91.44, 21.36),
    },
    (2, "W4A8", 0.0): {
        "FP": (213.74, 3.32, 5.23, 83.04, 53.31),
        "PTQD": (162.77, 6.46, 10.14, 73.88, 58.10),
        "D-D2": (169.03, 5.56, 9.45, 75.20, 58.14),
    },
    (2, "W4A8", 1.0): {
        "FP": (250.97, 3.54, 5.07, 87.10, 49.12),
        "PTQD": (153.01, 7.90, 7.87, 71.75, 55.15),
        "S-D2": (171.49, 6.91, 7.49, 72.82, 55.64),
    },
    (5, "W4A8", 1.0): {
        "FP": (250.97, 3.54, 5.07),
        "PTQD": (153.01, 7.90, 7.87),
        "S-D2": (171.49, 6.91, 7.49),
        "DMC": (159.30, 7.14, 7.67),
        "D-D2": (172.13, 6.81, 7.42),
    },
}


def orders(table: int, width: str, eta: float) -> Iterator[tuple[str, str, str]]:
    """(column, better, worse) of every pair of methods that a block of a table publishes unequal figures of."""
    block = PUBLISHED.get((table, width, eta), {})
    for first, second in PAIRS:
        if first in block and second in block:
            for column, a, b in zip(COLUMNS, block[first], block[second], strict=False):
                if a != b:
                    better = (a < b) == (column in LOWER)
                    yield column, *((first, second) if better else (second, first))
