"""Write flowers to classify: python flowers.py N FILE.parquet."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_iris

count, path = int(sys.argv[1]), sys.argv[2]
iris = load_iris()
pq.write_table(
    pa.table({name: iris.data[range(-count, 0), i] for i, name in enumerate(iris.feature_names)}),
    path,
)
