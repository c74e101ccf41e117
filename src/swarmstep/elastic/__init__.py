"""Groups whose members come and go: membership, the commit vote, and the supervisor that restarts workers."""
