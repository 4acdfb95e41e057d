"""Which Accelerate config fits a model on a cluster, and how many bytes each part of the training takes there."""
