"""What the terminal shows of a run: a progress bar or plain lines, throughput, and the time left.

progress.py  the callback          lines.py     its text
live_bar.py  the bar in a terminal eta.py       the time left
speed.py     images per second, share of waiting for data, memory
"""

from callbacks.progress.progress import Progress
from callbacks.progress.speed import Speed

__all__ = ["Progress", "Speed"]
