# n14 on arithmetic, controlled regularization (Appendix A).
include("train_math_mini_14.py")
weight_decay = 0.1
