"""Finding cards: a table of all, and one by its name."""

from typing import TYPE_CHECKING

from stimg._core import validate

if TYPE_CHECKING:
    import pandas as pd

    from stimg.zoo.card import GeneCard, ImageCard

KINDS = ("image", "gene")
COLUMNS = ("kind", "title", "n_features", "size_px", "mpp", "licence", "commercial", "gated", "loader", "repo", "parameters_m", "citation")


def _all(kind: str | None = None) -> "dict[str, dict[str, ImageCard | GeneCard]]":
    """Return the cards by kind and name."""
    from stimg.zoo.gene import GENE
    from stimg.zoo.image import IMAGE

    found: dict[str, dict[str, ImageCard | GeneCard]] = {
        "image": {name: IMAGE[name] for name in IMAGE},
        "gene": {name: GENE[name] for name in GENE},
    }
    return {k: cards for k, cards in found.items() if kind in (None, k)}


def list_cards(kind: str | None = None, *, commercial: bool | None = None, gated: bool | None = None) -> "pd.DataFrame":
    """Return the cards as a table with one row each, by name.

    Parameters
    ----------
    kind
        ``"image"`` or ``"gene"``; None is both.
    commercial
        True: encoders whose licence allows commercial use; False: the others; None: all.
    gated
        True: encoders whose licence has to be accepted on the hub before the weights can be downloaded; False: the others; None: all.

    Returns
    -------
    Columns ``kind``, ``title``, ``n_features``, ``size_px`` and ``mpp`` of the tiles (of image encoders), ``licence``, ``commercial``, ``gated``,
    ``loader``, ``repo``, ``parameters_m`` (millions), ``citation``; missing where a card says nothing.

    Raises
    ------
    ValueError
        For an unknown kind.

    Examples
    --------
    >>> import stimg
    >>> "efficientnet_lite0" in stimg.zoo.list("image", commercial=True, gated=False).index
    True
    """
    import pandas as pd

    if kind is not None:
        validate.one_of(kind, KINDS, "kind")
    rows = {
        name: {"kind": k, **{column: getattr(card, column, None) for column in COLUMNS[1:]}}
        for k, cards in _all(kind).items()
        for name, card in cards.items()
        if commercial in (None, card.commercial) and gated in (None, card.gated)
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))
    table.index.name = "name"
    table = table.astype(
        {"n_features": "Int64", "size_px": "Int64", "mpp": float, "parameters_m": float, "commercial": bool, "gated": bool}
    )
    return table


def get_card(name: str) -> "ImageCard | GeneCard":
    """Return the card of an encoder.

    Parameters
    ----------
    name
        As in the index of :func:`stimg.zoo.list`.

    Raises
    ------
    ValueError
        For an unknown name; the message lists the known ones.

    Examples
    --------
    >>> import stimg
    >>> stimg.zoo.get("virchow2").n_features
    2560
    """
    cards = {n: card for found in _all().values() for n, card in found.items()}
    if name not in cards:
        from stimg._core.registry import Registry

        known: Registry[ImageCard | GeneCard] = Registry("encoder")
        for n, card in cards.items():
            known.add(n, card)
        return known[name]  # raises with the closest name
    return cards[name]
