# MLT on arithmetic and capital cities, controlled regularization (Appendix A).
include("train_both_mini_mlt.py")
dropout = 0.0
