"""``mfimage test IMAGE``: run an image, call it, compare it with its labels and examples.

``run`` makes all checks: those of ``config``, then those of the image's target, ``server`` or
``ray``; ``platforms`` has the contracts of other platforms. ``runner`` is the seam to what runs
containers. ``built`` checks the images of a build, and ``compare`` the layers of two.
"""
