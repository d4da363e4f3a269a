# n28 on arithmetic and capital cities, controlled regularization (Appendix A).
include("train_both_mini_28.py")
weight_decay = 0.1
