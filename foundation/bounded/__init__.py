"""Reading of files that others made: sizes and nesting are bounded before memory is taken, and every fault is one ValueError."""
