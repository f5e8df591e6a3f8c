"""Data sets for prompted segmentation: images with masks and text prompts, from folders or COCO files.

datamodule.py   PromptedSegmentationDataModule
prompt_sets.py  PromptSet: one data set with its image and mask folders and its prompts
coco.py         reads masks from a COCO file     polygons.py  rasterises polygons and run lengths
masks.py        reads masks, and all masks of a split before the first step
loader.py       batches decoded by worker processes, and the choice of prompts
generator.py    synthetic images with masks, for tests and for machines without data
"""
