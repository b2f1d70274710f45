"""The SBOM of an image: `document.make_sbom` writes it, `attach` puts it beside pushed images."""
