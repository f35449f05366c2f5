"""Synthetic checkpoints: any catalogued shape, Gaussian weights truly quantized into a method's format.

Speed and power depend on the data, so zeros or uninitialised memory are no measurement. The same stream of tensors
feeds both roads: files (:mod:`.checkpoint`) and, with no disk at all, the engine itself (:mod:`.inplace`).
"""
