"""HTML from function calls: text is escaped unless it already is markup, so a prompt can never become a tag."""

from __future__ import annotations

from html import escape


class Markup(str):
    """A string that is HTML already and is not escaped again."""

    __slots__ = ()


def h(tag: str, *children: object, **attributes: object) -> Markup:
    """One element, children and attribute values escaped.

    `class_` loses its underscore, `aria_label` gets its dash; an attribute that is None or False is left out, one that
    is True stands alone.
    """
    pairs = [(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items()]
    head = "".join(
        f" {name}" if value is True else f' {name}="{escape(str(value))}"'
        for name, value in pairs
        if value is not None and value is not False
    )
    body = "" if tag in ("img", "br", "meta") else f"{join(*children)}</{tag}>"
    return Markup(f"<{tag}{head}>{body}")


def join(*children: object) -> Markup:
    """Children one after the other; None is nothing, text is escaped."""
    return Markup("".join(c if isinstance(c, Markup) else escape(str(c)) for c in children if c is not None))
