"""Fuzzing: mutated files of every format that is read end in a good result or in one line, within limits of time and memory."""
