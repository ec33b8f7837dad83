"""Sphinx settings. The build needs no network; pages with code run at build."""

import os

import rmtspec

os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "rmtspec"
author = "the rmtspec developers"
copyright = "2026, the rmtspec developers"
version = release = rmtspec.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "sphinx-mathjax-offline",  # formulas without a network
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "jupyter_execute"]
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180

html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme = "pydata_sphinx_theme"
html_title = "rmtspec"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 6,
    "navbar_align": "left",
    "show_nav_level": 2,
}
html_sidebars = {"index": [], "quickstart": [], "**": ["sidebar-nav-bs"]}
html_show_sourcelink = False
