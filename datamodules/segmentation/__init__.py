"""Images with masks and prompts, from folders or COCO files.

datamodule.py   PromptedSegmentationDataModule
prompt_sets.py  a data set: its folders of images and masks, its prompts
coco.py         masks from a COCO file           polygons.py  masks from polygons and run lengths
loader.py       batches that worker processes decode, and the choice of prompts
generator.py    made-up images with masks, for tests and for machines without data
"""
