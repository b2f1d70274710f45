"""Many records in one request: tables and tensors to records, and their results back.

``tables`` (data frames, CSV), ``tensors`` (Open Inference Protocol); ``rows`` calls the function.
The contracts of platforms use them.
"""
