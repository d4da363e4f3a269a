# MLT on arithmetic, controlled regularization (Appendix A).
include("train_math_mini_mlt.py")
dropout = 0.0
