"""Figures as the bytes of files."""

import io
from typing import Any

import matplotlib.pyplot as plt
from PIL import Image


def png(figure: Any, *, dpi: float = 180.0) -> bytes:
    """Return a figure as the bytes of a PNG file of 256 colours on white ground, small enough for a page or a mail, and close it."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()
