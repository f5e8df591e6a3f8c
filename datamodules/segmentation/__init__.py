"""Data sets for prompted segmentation: images with masks and text prompts, from folders or files of annotation tools.

datamodule.py   PromptedSegmentationDataModule
prompt_sets.py  PromptSet: the settings of one data set       grouping.py, splits.py, shipped.py  groups and the split
listed_sets.py  lists, divides and checks all sets            notes.py        messages about their files, each said once
listing.py      lists the images of a set with their masks:   mask_files.py, coco.py, yolo.py, labelme.py
polygons.py     rasterises polygons and run lengths           coco_shapes.py, doubtful_shapes.py, image_names.py  their parts
masks.py        reads masks, and all masks of a split before the first step
loader.py       batches decoded by worker processes, and the choice of prompts
canvases.py     squeezed images and masks of the canvas cache
generator.py    synthetic images with masks, for tests and for machines without data
"""
