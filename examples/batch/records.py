"""Write random wines as JSON lines: python records.py 100000 data/wines.jsonl."""

import json
import random
import sys
from pathlib import Path

count, path = int(sys.argv[1]), Path(sys.argv[2])
chance = random.Random(1)  # noqa: S311
path.parent.mkdir(parents=True, exist_ok=True)
with path.open("w") as file:
    for _ in range(count):
        wine = {
            "alcohol": round(chance.uniform(11, 15), 2),
            "color_intensity": round(chance.uniform(1, 13), 2),
            "proline": chance.randrange(280, 1700),
        }
        file.write(json.dumps(wine) + "\n")
