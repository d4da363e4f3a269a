# n56 on arithmetic and capital cities, controlled regularization (Appendix A).
include("train_both_mini_56.py")
weight_decay = 0.1
