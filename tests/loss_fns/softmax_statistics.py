"""The public functions of what a softmax predicts, and their fields."""

import numpy as np

import jxent

WITH_LOGITS = jxent.sparse_softmax_statistics_with_logits
LINEAR = jxent.linear_sparse_softmax_statistics
FIELDS = ("log_prob", "entropy", "log_normalizer")
IDENTITY = np.eye(5, dtype=np.float32)
