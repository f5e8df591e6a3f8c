"""`python -m tools.cut_windows`: cuts raw sensor recordings into windows."""
