"""Descriptions of the tasks other than training, for pages that show training."""

from __future__ import annotations

ABOUT = {
    "calibrate": (
        "A calibration does not train a model. It measures the device: matrix products in each precision, memory "
        "bandwidth, the overhead of operations and of recording, idle power, and the best number of threads. MFU and "
        "the roofline compare runs with these figures, not with a data sheet."
    ),
    "landscape": (
        "A loss surface does not train a model. It computes the loss on a plane through the checkpoints of some runs, "
        "to show their paths on it."
    ),
    "batch-law": (
        "A batch-size law trains one model many times, each time until the same training loss. It shows how many "
        "steps, samples and seconds this takes at each batch size."
    ),
}
