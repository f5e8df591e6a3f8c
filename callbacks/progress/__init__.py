"""Progress in the terminal: a progress bar or plain log lines, throughput, memory, and remaining time.

progress.py  the Progress callback       lines.py     formats the progress line and the epoch line
live_bar.py  draws the bar in place      eta.py       estimates the remaining time
speed.py     the Speed callback: images per second, share of time waiting for data, memory
"""

from callbacks.progress.progress import Progress
from callbacks.progress.speed import Speed

__all__ = ["Progress", "Speed"]
