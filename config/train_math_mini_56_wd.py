# n56 on arithmetic, controlled regularization (Appendix A).
include("train_math_mini_56.py")
weight_decay = 0.1
