"""The function in interpreters of its own; `backend.ProcessBackend` is the way in."""
