"""Reading recordings, and the session on disk."""
