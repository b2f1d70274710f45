from mfimage.load import pipeline as pipeline

__version__: str
METAFLOW_PACKAGE_POLICY: str
