"""One place that keeps the libraries below from telling what their caller tells already."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch  # noqa: F401
import scvi  # noqa: F401  both set up their loggers when they are imported

LOGGERS = ("lightning.pytorch", "lightning.fabric", "scvi", "drvi.scvi_tools_based")
WARNINGS = (
    ".*LeafSpec.*",  # Lightning with a recent torch
    r"Found \d+ module\(s\) in eval mode.*",  # Lightning's: a frozen encoder is meant to be
    "early_stopping was automatically disabled due to the use of DDP",  # scvi-tools', which is not the one used here
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence notices of Lightning and scvi-tools that call for nothing; their warnings stay, and so does a level that a user has chosen."""
    told = [logger for logger in map(logging.getLogger, LOGGERS) if logger.level == logging.INFO]
    try:
        for logger in told:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger in told:
            logger.setLevel(logging.INFO)
