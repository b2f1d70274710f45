"""What people look at: HTML of functions and images.

Notebooks, Metaflow's cards and `--html` files are made from it: `load.py`, the command line and
the Metaflow extension call it. `html.py` renders templates, in which every value is escaped.
"""
