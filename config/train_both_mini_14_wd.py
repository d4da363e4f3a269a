# n14 on arithmetic and capital cities, controlled regularization (Appendix A).
include("train_both_mini_14.py")
weight_decay = 0.1
