"""Where an image is and what it says; every verb that takes an image asks here.

`places.find_image` is the door: a name -> a `FoundImage` with configuration, labels, digest, SBOM
and layers, from a folder or file, the Docker engine or a registry. Nothing is pulled. A place is a
`places.Place`: `FILES`, `ENGINE`, `REGISTRY`.

`info` is the configuration of an image; `contents` what images are made of and how two differ.
"""
