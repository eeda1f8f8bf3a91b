"""Sphinx configuration. Pages that repeat the code are written by ``pages.py`` before Sphinx looks for sources."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pages  # noqa: E402

pages.write(HERE)
os.environ.pop("MPLBACKEND", None)  # kernels of notebooks inherit it, and with another backend than their own they show no figures

project = "stimg"
author = "The stimg developers"
copyright = "2026, the stimg developers"
version = release = installed_version("stimg")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "bench/figures.md", "generated/_*", "jupyter_execute", "**.ipynb_checkpoints"]
suppress_warnings = ["toc.empty_glob", "mystnb.unknown_mime_type"]

autosummary_generate = True
templates_path = ["_templates"]  # shows what models and data modules inherit from bases of stimg, which have no page of their own
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the numpy docstrings say types with shapes and units
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_rtype = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The notebooks of tutorials/ carry no outputs: each build runs those that changed ("cache"), all ("force") or none ("off").
nb_execution_mode = os.environ.get("STIMG_DOCS_EXECUTE", "cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# Links to other projects need the network; an empty table keeps a build without it free of warnings.
intersphinx_mapping = (
    {}
    if os.environ.get("STIMG_DOCS_OFFLINE")
    else {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/main/", None),
    }
)

html_theme = "sphinx_book_theme"
html_title = "stimg"
html_static_path = ["_static"]
html_css_files = ["stimg.css"]
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2}
