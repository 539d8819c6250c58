"""The report as one page: from the figures of `report.json` and the bytes of its media to HTML that loads nothing.

The verdict comes first, then what can be heard, then the figures, then where they come from. Text is escaped by
`markup.h`; a Content-Security-Policy forbids every request, so the page stays whole when it is mailed around.
"""

from __future__ import annotations

import base64
import hashlib
import string
from pathlib import Path

from quaver.runtime.measure.markup import h, join
from quaver.runtime.measure.page.accuracy import accuracy
from quaver.runtime.measure.page.calibration import calibration
from quaver.runtime.measure.page.cost import cost
from quaver.runtime.measure.page.elements import Report
from quaver.runtime.measure.page.header import header
from quaver.runtime.measure.page.layers import layers
from quaver.runtime.measure.page.listen import BUDGET, Media, listen
from quaver.runtime.measure.page.origin import origin
from quaver.runtime.measure.page.sets import sets
from quaver.runtime.measure.page.tradeoff import tradeoff

__all__ = ["render"]

PLACES = (
    ("tradeoff", "Accuracy against time"),
    ("listen", "Listen"),
    ("accuracy", "Drift"),
    ("set", "Set measures"),
    ("cost", "Cost"),
    ("layers", "Layers"),
    ("calibration", "Calibration"),
    ("origin", "Origin"),
)


def render(report: Report, media: Media, *, budget: int = BUDGET) -> str:
    """The page of a report; `media(name)` returns the bytes of a file named in `report["clips"]`.

    Sounds and pictures take `budget` bytes at most; what is left are links to the files.
    """
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = (accuracy, sets, cost, layers, calibration, origin)
    return string.Template(template).substitute(
        title=join(report["verdict"]["word"], ": ", report["name"]),
        script_digest=f"sha256-{digest}",
        header=header(report, PLACES),
        main=join(tradeoff(report), listen(report, media, budget=budget), *(part(report) for part in figures)),
        footer=h("footer", "Written by quaver ", report["environment"].get("quaver", ""), ", ", report["made"], "."),
    )
