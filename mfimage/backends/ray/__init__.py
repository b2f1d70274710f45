"""The function in actors of a Ray cluster; `backend.RayBackend` is the way in."""
