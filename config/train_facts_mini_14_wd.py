# n14 on capital cities, controlled regularization (Appendix A).
include("train_facts_mini_14.py")
weight_decay = 0.1
