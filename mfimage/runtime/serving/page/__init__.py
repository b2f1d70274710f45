"""The page that a server shows a browser."""
