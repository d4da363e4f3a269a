# MLT on capital cities, controlled regularization (Appendix A).
include("train_facts_mini_mlt.py")
dropout = 0.0
