"""Pictures of a run and of an evaluation, as PNG and in TensorBoard, and the tables that belong to them.

picture.py           base of the pictures that are redrawn during training
curves.py            loss, accuracy or IoU, learning rate, momentum and speed over the epochs
evaluation.py        base of the pictures of one validation or test
confusion_matrix.py  subject_accuracy.py  worst_mistakes.py  segmentation.py   pictures of one evaluation
reliability.py       the reliability diagram of callbacks/calibration.py
ternary_shares.py    shares of -1, 0 and +1 in each ternary layer
predicted_masks.py   masks that ``predict`` writes
image_pixels.py      images as pixels, masks as overlays, and the colours of true and predicted masks
"""
