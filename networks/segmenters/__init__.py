"""Networks that mark what a text prompt names: CLIPSeg's design (clip.py) and a small one for CPUs (light.py)."""
