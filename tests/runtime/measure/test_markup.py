from __future__ import annotations

from quaver.runtime.measure.markup import Markup, h, join


def test_text_and_attributes_are_escaped_and_markup_is_not():
    assert h("p", "<b>", Markup("<i></i>"), title='a"b') == '<p title="a&quot;b">&lt;b&gt;<i></i></p>'


def test_names_attributes_the_way_html_does():
    found = h("audio", controls=True, hidden=False, aria_label="x", class_="y", id=None)
    assert found == '<audio controls aria-label="x" class="y"></audio>'


def test_none_is_nothing_and_numbers_are_text():
    assert join(None, 3, "&") == "3&amp;"
    assert h("img", src="data:,") == '<img src="data:,">'
