"""Tells Metaflow which types of cards there are."""

from mfimage.views.metaflow import FunctionCard

CARDS = [FunctionCard]
