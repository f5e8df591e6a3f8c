"""Data sets for prompted segmentation: images with masks and text prompts, from folders or files of annotation tools.

datamodule.py   PromptedSegmentationDataModule
prompt_sets.py  PromptSet: the settings of one data set       grouping.py, splits.py  groups of images, and the split
listing.py      lists the images of a set with their masks:   mask_files.py, coco.py, yolo.py, labelme.py
polygons.py     rasterises polygons and run lengths           coco_shapes.py, image_names.py  parts of these readers
masks.py        reads masks, and all masks of a split before the first step
loader.py       batches decoded by worker processes, and the choice of prompts
generator.py    synthetic images with masks, for tests and for machines without data
"""
