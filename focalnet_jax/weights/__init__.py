"""Parameters on disk, their descriptions, and those that others have published."""
