"""Files of records: formats, reading, writing, running a function over them."""
