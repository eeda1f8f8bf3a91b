"""Pages: every text escaped, every element closed, figures inside."""

import base64
from html.parser import HTMLParser

import pytest

from stimg.bench import html

HOSTILE = '<script>alert("x")</script> & \''


class Parsed(HTMLParser):
    """Elements, attributes and text of a page; an element that is not closed, or closed out of turn, is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("img", "meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_texts_and_attributes_are_escaped_and_html_is_not():
    element = html.tag("p", HOSTILE, html.tag("b", "bold"), title=HOSTILE, class_="x")
    parsed = Parsed(element)
    assert parsed.tags == ["p", "b"]
    assert dict(parsed.attributes) == {"title": HOSTILE, "class": "x"}
    assert "".join(parsed.words) == HOSTILE + "bold"
    assert html.join(element, HOSTILE).startswith(element)
    assert Parsed(html.join("<i>", element)).tags == ["p", "b"]
    assert not isinstance(str(element) + "<", html.Html)  # a sum is a plain text again, and escaped


def test_a_table_has_a_heading_and_named_rows():
    parsed = Parsed(html.table(["", "a<b"], [[HOSTILE, "1", html.tag("td", "2", class_="x")]]))
    assert parsed.tags.count("th") == 3
    assert parsed.tags.count("td") == 2
    assert HOSTILE in parsed.words


def test_a_picture_is_inside():
    parsed = Parsed(html.picture(b"\x89PNG", alt=HOSTILE, caption="c", width=9))
    found = dict(parsed.attributes)
    assert base64.b64decode(found["src"].removeprefix("data:image/png;base64,")) == b"\x89PNG"
    assert (found["alt"], found["width"]) == (HOSTILE, "9")
    assert parsed.tags == ["figure", "img", "figcaption"]


def test_a_part_is_closed_until_asked_for():
    assert "open" not in dict(Parsed(html.fold("more", "text")).attributes)
    assert "open" in dict(Parsed(html.fold("more", "text", open_=True)).attributes)


@pytest.mark.parametrize("figure", [True, False])
def test_a_page_of_sections(tmp_path, figure):
    path = tmp_path / "x.png"
    path.write_bytes(b"png")
    section = html.Section("S", [HOSTILE], {HOSTILE: HOSTILE}, {path: HOSTILE} if figure else {}, code=HOSTILE)
    parsed = Parsed(html.page(HOSTILE, "lead", [section]))
    assert parsed.tags.count("script") == 0
    assert parsed.tags.count("img") == figure
    assert "".join(parsed.words).count(HOSTILE) == 6 + figure
