# n28 on arithmetic, controlled regularization (Appendix A).
include("train_math_mini_28.py")
weight_decay = 0.1
