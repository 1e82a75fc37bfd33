"""Runs that do not train one net: what each is and does, in words, for whoever meets one where training is shown."""

from __future__ import annotations

ABOUT = {
    "calibrate": (
        "A calibration trains nothing. It measures what a device reaches: matrix products in each precision, memory bandwidth, "
        "the cost of starting operations and of recording, idle power, and how many threads pay. MFU and the roofline compare "
        "runs with these figures, not with a data sheet."
    ),
    "landscape": (
        "A loss surface trains nothing. It computes the loss on a plane through the weights that some runs kept, so that their "
        "paths can be seen on it."
    ),
    "batch-law": (
        "A batch-size law is many short trainings of one net, each until the same training loss: how many steps, examples and "
        "seconds that takes at every batch size."
    ),
}
