"""Callbacks that write plots (PNG and TensorBoard) and CSV tables, of a whole run or of one evaluation.

picture.py           base class of plots that are redrawn during training
curves.py            loss, accuracy or IoU, learning rate, momentum and speed over the epochs
evaluation.py        base class of plots and tables of one validation or test
confusion_matrix.py  confusion matrix and accuracy of each class
subject_accuracy.py  accuracy of each person and activity
worst_mistakes.py    wrongly classified images with the highest confidence
mistake_heat.py      heat maps of the worst of them
segmentation.py      masks with the lowest and the highest IoU
reliability.py       reliability diagram and tables of callbacks/calibration.py
ternary_shares.py    shares of -1, 0 and +1 in each ternary layer
predicted_masks.py   mask and overlay images written by ``predict``
image_pixels.py      converts images to pixels, draws mask overlays, defines the mask colours
"""
